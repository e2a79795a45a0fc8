"""Copies of whole collections: `copy.deepcopy`, `pickle` and what stands on it (`torch.save` of a model, processes that
are spawned).

A collection is made again from its arguments, and given the state of the other. Hooks and attributes that somebody has
set on it are not copied.
"""

import io
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.context import get_spawning_popen
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from embank.tables.collections.parameters import held_names, hold_rows
from embank.tables.collections.state import row_state
from embank.tables.errors import ConfigError

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables


def reduced(tables: "Tables") -> tuple[Any, ...]:
    """What `object.__reduce__` returns of a collection.

    Raises:
        ConfigError: its rows are files, or spread over processes.
    """
    cure = (
        "Save them with embank.tables.storage.checkpoint.save_checkpoint, and load that into tables that are made anew"
    )
    if tables.sharding is not None:
        raise ConfigError(f"tables whose rows are spread over processes can't be copied or pickled. {cure}")
    if tables.tier.name == "disk":
        raise ConfigError(
            "tables on the disk tier can't be copied or pickled: their rows are files of this process, in "
            f"'{tables.tier.directory}'. {cure}"
        )
    state = {name: value.clone() for name, value in {**row_state(tables), **tables.state_dict()}.items()}
    facts = {
        "training": tables.training,
        "training_state": tables.training_state.facts(),
        "lr": tables.lr,
        "rows_learn": tables.rows_learn,
        "held": held_names(tables),
    }
    # A process that is spawned would find tensors in shared memory, which ends with these copies, before it has begun.
    sent = state if get_spawning_popen() is None else _as_bytes(state)
    specs = tuple(replace(spec, init_fn=None) for spec in tables.specs)  # no local function can be sent
    return _restored, (type(tables), specs, tables.arguments, sent, facts)


def _as_bytes(state: Mapping[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def _restored(
    cls: "type[Tables]",
    specs: Any,
    arguments: Mapping[str, Any],
    state: Mapping[str, Tensor] | bytes,
    facts: Mapping[str, Any],
) -> "Tables":
    """The inverse of `reduced`."""
    tables = cls.of_specs(specs, sharding=None, **arguments)
    if not tables.tier.is_meta:
        tables.load_state_dict(torch.load(io.BytesIO(state), weights_only=True) if isinstance(state, bytes) else state)
    tables.train(facts["training"])
    tables.training_state.restore(facts["training_state"])
    if not tables.optimizer.is_external:
        tables.set_lr(facts["lr"])
    tables.rows_learn = facts["rows_learn"]
    hold_rows(tables, facts["held"])
    return tables
