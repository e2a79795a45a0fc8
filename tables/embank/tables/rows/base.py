"""The interface of row storage, and the optimizers that update rows."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from embank.tables.errors import ConfigError
from embank.tables.ids.hashing import seed_of
from embank.tables.rows.held_bytes import distinct_nbytes
from embank.tables.rows.shards import TableShard
from embank.tables.scalars import plain

RowOptimizerName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]
ROW_OPTIMIZERS: tuple[str, ...] = get_args(RowOptimizerName)


@dataclass(frozen=True, kw_only=True)
class RowOptimizer:
    """How rows are updated. Only rows that a batch looked up are touched, duplicates summed first.

    Args:
        name: "sgd": w -= lr g. "adagrad": s += g**2, w -= lr g / (sqrt(s) + eps), per element (Duchi et al., JMLR
            2011). "rowwise_adagrad": the same with one s per row, the mean of g**2 over the row. "adam": lazy Adam
            (Kingma and Ba, ICLR 2015; moments of untouched rows stay, bias correction by global step), torch backend
            only.
        lr: learning rate.
        eps: added to the denominator.
        betas: Adam's decay rates.
    """

    name: RowOptimizerName = "rowwise_adagrad"
    lr: float = 0.02
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        for key in ("lr", "eps", "betas"):
            object.__setattr__(self, key, plain(getattr(self, key)))
        if self.name not in ROW_OPTIMIZERS:
            raise ConfigError(f"there is no row optimizer '{self.name}'; use one of {', '.join(ROW_OPTIMIZERS)}")
        refuse_bad_lr(self.lr)
        if not 0 <= self.eps < float("inf"):
            raise ConfigError(f"the rows' eps is {self.eps}; it must be finite and 0 or more")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"the rows' betas are {self.betas}; give two numbers from 0 to below 1")


def refuse_bad_lr(lr: float) -> None:
    """Raises ConfigError for a rate that rows can't be updated with."""
    if isinstance(lr, bool) or not hasattr(lr, "__float__"):
        raise ConfigError(f"the rows' learning rate is {lr!r}; it must be a number")
    if not 0 <= lr < float("inf"):
        raise ConfigError(f"the rows' learning rate is {lr}; it must be finite and 0 or more")


@dataclass(frozen=True, kw_only=True)
class RowTier:
    """Where rows and their optimizer state are held.

    Args:
        name: "device": memory of the device. "host": memory of the host, the same on a CPU. "disk": memory-mapped
            files, which may exceed memory.
        directory: for "disk": where the files go; they are created, and removed when the store ends.
        prefetch: whether `RowStore.prefetch` fetches rows ahead of their use: pages of the disk, rows of the host for a
            GPU.
        device: where lookups come out: "cpu", "cuda" or "cuda:N".
        cache_load_factor: for "host" under FBGEMM on a GPU: the share of rows that its cache in device memory has room
            for; 0 goes without.
    """

    name: Literal["device", "host", "disk"] = "device"
    directory: Path | None = None
    prefetch: bool = True
    device: str = "cpu"
    cache_load_factor: float = 0.2

    def __post_init__(self) -> None:
        if self.directory is not None:
            object.__setattr__(self, "directory", Path(self.directory))
        if self.name == "disk" and self.directory is None:
            raise ConfigError("the disk tier needs a directory for its files")
        if re.fullmatch(r"cpu|cuda(:\d+)?", self.device) is None:
            raise ConfigError(f"there is no device '{self.device}' for rows; use 'cpu', 'cuda' or 'cuda:N'")
        if not 0 <= self.cache_load_factor <= 1:
            raise ConfigError(f"cache_load_factor is {self.cache_load_factor}; it is a share of the rows, from 0 to 1")

    @property
    def on_gpu(self) -> bool:
        """Whether lookups come out on a GPU."""
        return self.device != "cpu"

    def refuse_missing_device(self) -> None:
        """Raises ConfigError if this machine, or this build of torch, has no such device."""
        if not self.on_gpu:
            return
        number = int(self.device.partition(":")[2] or 0)
        if not torch.cuda.is_available():
            raise ConfigError(
                f"rows are to be on '{self.device}', but this machine has no GPU that torch can use; use 'cpu'"
            )
        if number >= torch.cuda.device_count():
            raise ConfigError(
                f"rows are to be on '{self.device}', but this machine has {torch.cuda.device_count()} GPU(s); "
                f"use 'cuda:0' to 'cuda:{torch.cuda.device_count() - 1}'"
            )


class RowStore(nn.Module, ABC):
    """Rows of several physical tables (or of the parts of them that this process holds), looked up together with sum
    pooling.

    Rows are no parameters of the module: its own optimizer updates them, once for each backward pass that reaches a
    lookup. What a backward pass leaves to do (a projection, an update of what is on its way) is done by `update`, or at
    the latest before rows are looked up, read or saved again.

    Legend: S bags per lookup, K lookups, D_k width of lookup k's table.

    Args:
        shards: what is held, at most one part of each table.
        lookups: for each lookup, the index of its shard; a table may be looked up several times.
        seed: of initial values and of projections.
        optimizer: how rows are updated.
        tier: where they are held.
    """

    def __init__(
        self,
        shards: Sequence[TableShard],
        *,
        lookups: Sequence[int],
        seed: int,
        optimizer: RowOptimizer,
        tier: RowTier,
    ) -> None:
        super().__init__()
        self.shards = tuple(shards)
        self.lookups = tuple(lookups)
        self.seed = seed
        self.optimizer = optimizer
        self.tier = tier
        self.num_updates = 0
        self.is_counted = False  # the update that `update` is going to be called for

    @property
    def dims(self) -> list[int]:
        """Width of each lookup."""
        return [self.shards[t].num_columns for t in self.lookups]

    @abstractmethod
    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """Sum-pooled rows.

        Args:
            indices: int64 [N], row ids, lookup after lookup, bag after bag.
            offsets: int64 [K * S + 1], where each bag starts in `indices`.

        Returns:
            [S, sum D_k], the lookups side by side. Backward updates the rows; several lookups of one backward pass one
            after the other.
        """

    def parts(self, indices: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        """What `forward` returns, but one tensor [S, D_k] for each lookup: where a store has several kernels, nothing
        is copied."""
        split: tuple[Tensor, ...] = torch.split(self(indices, offsets), self.dims, dim=1)
        return split

    def prefetch(self, indices: Tensor, offsets: Tensor) -> None:
        """A hint that `forward` will be called with these very tensors soon, in the order of the hints. Never changes
        results.

        Args:
            indices, offsets: as `forward` takes them; not to be written to until then.

        Raises:
            WorkError: a file of the disk tier was cut.
        """

    def update(self) -> None:
        """Ends a training step: does what its backward pass has left to do, and counts the update."""
        if self.is_pending or not self.is_counted:
            self.num_updates += 1
            self._finish()
        self.is_counted = False

    def finish(self) -> None:
        """What `update` would do, where a training loop has not called it and rows are about to be used."""
        if self.is_pending:
            self.num_updates += 1
            self._finish()
            self.is_counted = True

    @property
    @abstractmethod
    def is_pending(self) -> bool:
        """Whether a backward pass has left something to do."""

    @abstractmethod
    def _finish(self) -> None:
        """Does what backward passes have left to do, as update number `num_updates`."""

    @abstractmethod
    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the next update."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Rows [R, D] of each physical table by name: views, not copies; writing to them changes the table."""

    @abstractmethod
    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Optimizer state by table and name: views, not copies. Row-wise Adagrad's is `sum` [R], see `padded_dim`."""

    def load_step(self, step: int) -> None:
        """Tells how many updates have been made: Adam's bias correction and projections depend on it."""
        self.num_updates = step

    @torch.no_grad()
    def project(self, shard: TableShard, weight_RD: Tensor, rows_U: Tensor, *, numbers_U: Tensor | None = None) -> None:
        """Applies a table's projection to local rows that update number `num_updates` has just changed.

        Args:
            shard: whose rows they are.
            weight_RD: rows of the shard, or a copy of some of them; written in place.
            rows_U: which of `weight_RD` have changed.
            numbers_U: their numbers in the table, on its device; by default `rows_U` are local rows of the shard.
        """
        table = shard.table
        if table.projection is None or not rows_U.numel():
            return
        seed = seed_of(self.seed, "projection", table.name, self.num_updates)
        rows_U = rows_U.to(weight_RD.device)
        numbers_U = shard.row_numbers(rows_U) if numbers_U is None else numbers_U
        weight_RD[rows_U] = table.projection(weight_RD[rows_U], numbers_U, seed=seed)

    @abstractmethod
    def flush(self) -> None:
        """Makes what is held durable (disk tier); nothing to do elsewhere.

        Raises:
            WorkError: a file was cut, or the disk reports an error.
        """

    def nbytes(self) -> int:
        """Bytes held, padding and optimizer state included."""
        return distinct_nbytes(self.held_tensors())

    @abstractmethod
    def held_tensors(self) -> list[Tensor]:
        """Every tensor that is really held for rows and their optimizer state, perhaps some of them twice."""


def padded_dim(dim: int) -> int:
    """Width of a row in FBGEMM: the next multiple of 4."""
    return -(-dim // 4) * 4


def rowwise_scale(dim: int) -> float:
    """What keeps row-wise Adagrad exact on padded rows.

    FBGEMM averages g**2 over the padded width P >= D, so its state is D / P of the textbook's. With k = sqrt(D / P),
    lr k g / (sqrt(s_P) + k eps) = lr g / (sqrt(s_D) + eps): the textbook's step, when both lr and eps are scaled by k.
    Both backends keep s_P, so that a checkpoint of one loads into the other.
    """
    return float((dim / padded_dim(dim)) ** 0.5)
