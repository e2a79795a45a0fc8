"""TorchRec's managed collisions behind the interface of a streaming vocabulary.

What `torchrec.modules.mc_modules` (1.8.0) gives on a CPU: its "MCH" module with three eviction policies. It counts no
candidates: an id without a row competes with what it has in one batch alone, so there is no admission by count, and
under "lfu" a table that has been in use for a while takes in hardly anyone. Nobody leaves by age. Its other module,
`HashZchManagedCollisionModule`, has a CPU kernel for reading only.
"""

from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor
from torchrec import JaggedTensor
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHEvictionPolicy,
    MCHManagedCollisionModule,
)

from embank.tables.errors import ConfigError, DataError
from embank.tables.ids.token_space import NUM_TOKEN_IDS
from embank.tables.method.options import option_class
from embank.tables.streaming.base import IdVocabulary
from embank.tables.streaming.mapped import StreamCounts
from embank.tables.streaming.sorted_columns import is_ascending

NOBODY = 2**63 - 1
"""What TorchRec writes where a row has no id, and therefore no id that it can have."""

HISTORY_SHARE = 1.25
"""TorchRec makes room for so many times the first batch, and leaves out what is beyond."""

ManagedPolicy = Literal["lfu", "lru", "distance_lfu"]


@option_class
class ManagedCollisionConfig:
    """Options of `ManagedVocabulary`.

    Args:
        policy: "lfu": `LFU_EvictionPolicy`; "lru": `LRU_EvictionPolicy`; "distance_lfu": `DistanceLFU_EvictionPolicy`,
            count over the number of batches since the last one.

    Example:
        >>> ManagedCollisionConfig(policy="lru")
        ManagedCollisionConfig(policy='lru')
    """

    policy: ManagedPolicy = "distance_lfu"

    def __post_init__(self) -> None:
        if self.policy not in ("lfu", "lru", "distance_lfu"):
            raise ConfigError(
                f"TorchRec's managed collisions have no policy '{self.policy}'; use 'lfu', 'lru' or 'distance_lfu', or "
                "StreamingConfig"
            )

    def build(self, *, name: str, capacity: int) -> "ManagedVocabulary":
        """An empty vocabulary."""
        return ManagedVocabulary(self, name=name, capacity=capacity)


class ManagedVocabulary(IdVocabulary):
    """`MCHManagedCollisionModule`, evicting after each batch. TorchRec's last row, which is its unknown one, is row 0
    here.

    Args:
        config: the options.
        name: the table, for messages.
        capacity: R, rows of the table.
    """

    def __init__(self, config: ManagedCollisionConfig, *, name: str, capacity: int) -> None:
        super().__init__(name=name, capacity=capacity)
        self.config = config
        self.first_size: int | None = None  # ids of the first batch since the module was made
        # In a tuple, so that it is no submodule: what it holds is part of the extra state.
        self.inner = (_module(config.policy, capacity),)

    @property
    def module(self) -> MCHManagedCollisionModule:
        """TorchRec's module."""
        return self.inner[0]

    def look_up(self, ids_N: Tensor) -> Tensor:
        self.module.eval()
        return self._asked(ids_N)

    def _asked(self, ids_N: Tensor) -> Tensor:
        if not ids_N.numel():
            return ids_N
        jagged = JaggedTensor(values=ids_N, lengths=torch.ones_like(ids_N, dtype=torch.int32))
        positions_N: Tensor = self.module({self.name: jagged})[self.name].values()
        return (positions_N + 1) % self.capacity

    def checked(self, ids_N: Tensor) -> Tensor:
        """As `IdVocabulary.checked`.

        Raises:
            DataError: an id that TorchRec has other use for, or, in training, more ids than it has room for.
        """
        ids_N = super().checked(ids_N)
        if ids_N.numel() and int(ids_N.max()) == NOBODY:
            raise DataError(
                f"table '{self.name}' was given id {NOBODY}, which TorchRec's managed collisions keep for rows without "
                f"an id; use StreamingConfig, which takes all {NUM_TOKEN_IDS:,} ids"
            )
        if self.training and self.first_size is not None and ids_N.numel() > int(self.first_size * HISTORY_SHARE):
            raise DataError(
                f"table '{self.name}' was given {ids_N.numel():,} ids in a batch; TorchRec's managed collisions leave "
                f"out what is beyond {HISTORY_SHARE} times the first batch ({self.first_size:,} ids). Give the largest "
                "batch first, or use StreamingConfig"
            )
        return ids_N

    def learn(self, ids_N: Tensor) -> tuple[Tensor, Tensor, StreamCounts]:
        if not ids_N.numel():
            return ids_N, ids_N, StreamCounts()
        if self.first_size is None:
            self.first_size = ids_N.numel()
        in_use = self._in_use()
        self.module.train()
        rows_N = self._asked(ids_N)
        given = self.module.evict()
        given = (given + 1) % self.capacity if given is not None else ids_N[:0]
        resets = given[in_use[given]]
        return rows_N, resets, StreamCounts(admissions=given.numel(), evictions=resets.numel(), resets=resets.numel())

    def _in_use(self) -> Tensor:
        """Whether each row has an id, bool [R]."""
        held = self.module.get_buffer("_mch_sorted_raw_ids") != NOBODY
        in_use = torch.zeros(self.capacity, dtype=torch.bool)
        in_use[(self.module.get_buffer("_mch_remapped_ids_mapping")[held] + 1) % self.capacity] = True
        return in_use

    @property
    def num_ids(self) -> int:
        return int(self._in_use().sum())

    def nbytes(self) -> int:
        return sum(buffer.numel() * buffer.element_size() for buffer in self.module.buffers())

    def facts(self) -> dict[str, Any]:
        return {"capacity": self.capacity, "torchrec": True, **asdict(self.config)}

    def state(self) -> dict[str, Any]:
        return {name: tensor.clone() for name, tensor in self.module.state_dict().items()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.inner = (_module(self.config.policy, self.capacity),)  # a used one would go on with its own counter
        self.first_size = None
        self.module.load_state_dict(state)

    def damage(self, state: Any, *, step: int) -> str | None:
        expected = self.module.state_dict()
        if not isinstance(state, dict) or state.keys() != expected.keys():
            return f"its tensors are not {', '.join(expected)}"
        for name, own in expected.items():
            given = state[name]
            if not isinstance(given, Tensor) or (given.dtype, given.shape) != (own.dtype, own.shape):
                return f"{name} is not {own.dtype} {list(own.shape)}"
        ids, rows = state["_mch_sorted_raw_ids"], state["_mch_remapped_ids_mapping"]
        if not is_ascending(ids[ids != NOBODY]) or bool((ids.diff() < 0).any()):
            return "an id has two rows or is negative, or ids are not in ascending order"
        if not torch.equal(rows.cpu().sort().values, torch.arange(self.capacity)):
            return "its rows are not each of the table's once"
        return None


def _module(policy: ManagedPolicy, capacity: int) -> MCHManagedCollisionModule:
    policies: dict[ManagedPolicy, type[MCHEvictionPolicy]] = {
        "lfu": LFU_EvictionPolicy,
        "lru": LRU_EvictionPolicy,
        "distance_lfu": DistanceLFU_EvictionPolicy,
    }
    return MCHManagedCollisionModule(
        zch_size=capacity, device=torch.device("cpu"), eviction_policy=policies[policy](), eviction_interval=1
    )
