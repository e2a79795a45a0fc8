"""Copies of whole collections: `copy.deepcopy`, `pickle` and what stands on it (`torch.save` of a model, processes that are spawned).

A collection is made again from its arguments, and given the state of the other. Hooks and attributes that somebody has set on it
are not copied.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from embank.tables.errors import ConfigError

if TYPE_CHECKING:
    from embank.tables.core import Tables


def reduced(tables: "Tables") -> tuple[Any, ...]:
    """What `object.__reduce__` returns of a collection.

    Raises:
        ConfigError: its rows are files, or spread over processes.
    """
    cure = "Save them with embank.tables.checkpoint.save_checkpoint, and load that into tables that are made anew"
    if tables.sharding is not None:
        raise ConfigError(f"tables whose rows are spread over processes can't be copied or pickled. {cure}")
    if tables.tier.name == "disk":
        raise ConfigError(
            f"tables on the disk tier can't be copied or pickled: their rows are files of this process, in '{tables.tier.directory}'. {cure}"
        )
    state = {name: value.clone() for name, value in tables.state_dict().items()}
    facts = {
        "training": tables.training,
        "training_state": tables.training_state.facts(),
        "lr": tables.lr,
        "rows_learn": tables.rows_learn,
    }
    return _restored, (type(tables), tables.specs, tables.arguments, state, facts)


def _restored(
    cls: "type[Tables]",
    specs: Any,
    arguments: Mapping[str, Any],
    state: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> "Tables":
    """The inverse of `reduced`."""
    tables = cls(specs, sharding=None, **arguments)
    tables.load_state_dict(state)
    tables.train(facts["training"])
    tables.training_state.restore(facts["training_state"])
    tables.set_lr(facts["lr"])
    tables.rows_learn = facts["rows_learn"]
    return tables
