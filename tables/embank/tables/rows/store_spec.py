"""What a row store is made from: what it holds, how rows are updated, and where they are held."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch

from embank.tables.errors import ConfigError
from embank.tables.rows.physical import PhysicalTable
from embank.tables.rows.shards import TableShard
from embank.tables.scalars import plain

Backend = Literal["fbgemm", "torch"]
RowDtype = Literal["fp32", "fp16", "bf16"]
TierName = Literal["device", "host", "disk"]
ROW_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
RowOptimizerName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]
ROW_OPTIMIZERS: tuple[str, ...] = get_args(RowOptimizerName)
_EXTERNAL = "external"


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

    Example:
        >>> RowOptimizer(name="adagrad", lr=0.05)
        RowOptimizer(name='adagrad', lr=0.05, eps=1e-08, betas=(0.9, 0.999))
        >>> RowOptimizer(name="adamw")
        Traceback (most recent call last):
            ...
        embank.tables.errors.ConfigError: there is no row optimizer 'adamw'; use one of sgd, adagrad,
        rowwise_adagrad, adam
    """

    name: RowOptimizerName | Literal["external"] = "rowwise_adagrad"
    lr: float = 0.02
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        for key in ("lr", "eps", "betas"):
            object.__setattr__(self, key, plain(getattr(self, key)))
        if self.name not in ROW_OPTIMIZERS and not self.is_external:
            raise ConfigError(f"there is no row optimizer '{self.name}'; use one of {', '.join(ROW_OPTIMIZERS)}")
        refuse_bad_lr(self.lr)
        if not 0 <= self.eps < float("inf"):
            raise ConfigError(f"the rows' eps is {self.eps}; it must be finite and 0 or more")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"the rows' betas are {self.betas}; give two numbers from 0 to below 1")

    @classmethod
    def external(cls) -> Self:
        """None: rows are parameters with gradients, as in TorchRec's own collections, for whatever optimizer the
        program has."""
        return cls(name="external")

    @property
    def is_external(self) -> bool:
        """Whether rows are left to an optimizer outside of the collection."""
        return self.name == _EXTERNAL


_MOST_DEVIATIONS = 8
"""Standard deviations from the mean that no number of a table lies beyond."""


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
        device: where lookups come out: "cpu", "cuda" or "cuda:N". On "meta" nothing is held until `to_empty` has moved
            the model to another device, which gives rows their initial values.
        dtype: of rows: "fp32", or "fp16" and "bf16" in half the memory. Updates are made in fp32 and rounded at random,
            to either neighbour with the probability that makes the mean right, so that small ones count. Optimizer
            state stays fp32. On a CPU the torch backend has them.
        cache_load_factor: for "host" under FBGEMM on a GPU: the share of rows that its cache in device memory has room
            for; 0 goes without.

    Example:
        >>> RowTier(name="disk", directory="rows")
        RowTier(name='disk', directory=PosixPath('rows'), prefetch=True, device='cpu', ...)
    """

    name: TierName = "device"
    directory: Path | None = None
    prefetch: bool = True
    device: str = "cpu"
    dtype: RowDtype = "fp32"
    cache_load_factor: float = 0.2

    def __post_init__(self) -> None:
        if self.name not in get_args(TierName):
            raise ConfigError(f"there is no tier '{self.name}' for rows; use {', '.join(get_args(TierName))}")
        if self.directory is not None:
            object.__setattr__(self, "directory", Path(self.directory))
        if self.name == "disk" and self.directory is None:
            raise ConfigError("the disk tier needs a directory for its files")
        refuse_idle_directory(tier=self.name, directory=self.directory)
        if re.fullmatch(r"cpu|meta|cuda(:\d+)?", self.device) is None:
            raise ConfigError(f"there is no device '{self.device}' for rows; use 'cpu', 'cuda' or 'cuda:N'")
        if self.dtype not in ROW_DTYPES:
            raise ConfigError(f"there are no rows of dtype '{self.dtype}'; use {', '.join(ROW_DTYPES)}")
        if not 0 <= self.cache_load_factor <= 1:
            raise ConfigError(f"cache_load_factor is {self.cache_load_factor}; it is a share of the rows, from 0 to 1")

    @property
    def on_gpu(self) -> bool:
        """Whether lookups come out on a GPU."""
        return self.device not in ("cpu", "meta")

    @property
    def is_meta(self) -> bool:
        """Whether nothing is held yet."""
        return self.device == "meta"

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the rows."""
        return ROW_DTYPES[self.dtype]

    @property
    def is_half(self) -> bool:
        """Whether a row's number takes two bytes."""
        return self.dtype != "fp32"

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
                f"rows are to be on '{self.device}', but this machine has {torch.cuda.device_count()} GPU(s); use "
                f"'cuda:0' to 'cuda:{torch.cuda.device_count() - 1}'"
            )


def refuse_idle_directory(*, tier: str, directory: object, section: str = "") -> None:
    """Refuses a directory of files on a tier that has none.

    Args:
        tier: its name.
        directory: None where there is none.
        section: what the names of both begin with where they were given: "rows." in a configuration.

    Raises:
        ConfigError: says what to change.
    """
    if directory is not None and tier != "disk":
        raise ConfigError(
            f"{section}directory is '{directory}', but {section}tier is '{tier}', which has no files; set "
            f"{section}tier to disk, or leave {section}directory out"
        )


def refuse_names(*, tier: object, optimizer: object) -> None:
    """Raises ConfigError where a tier or an optimizer is given by its name alone, or is something else yet."""
    if tier is not None and not isinstance(tier, RowTier):
        raise ConfigError(f"tier is {tier!r}; give a RowTier, such as RowTier(name='disk', directory='rows')")
    if optimizer is not None and not isinstance(optimizer, RowOptimizer):
        raise ConfigError(f"optimizer is {optimizer!r}; give a RowOptimizer, such as RowOptimizer(name='adagrad')")


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """Everything that a row store is made from.

    Args:
        shards: what is held, at most one part of each table.
        lookups: for each lookup, the index of its shard; a table may be looked up several times.
        seed: of initial values and of projections.
        backend: "fbgemm" (fused updates) or "torch" (the slow twin; Adam).
        optimizer: how rows are updated.
        tier: where they are held.
    """

    shards: Sequence[TableShard]
    lookups: Sequence[int]
    seed: int = 0
    backend: Backend = "fbgemm"
    optimizer: RowOptimizer = field(default_factory=RowOptimizer)
    tier: RowTier = field(default_factory=RowTier)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", tuple(self.shards))
        object.__setattr__(self, "lookups", tuple(self.lookups))
        refuse_names(tier=self.tier, optimizer=self.optimizer)
        limit = torch.finfo(self.tier.torch_dtype).max
        for table in self.tables:
            init = table.init
            reach = abs(init.mean) + init.scale * (1 if init.kind == "uniform" else _MOST_DEVIATIONS)
            if not reach < limit:
                raise ConfigError(
                    f"table '{table.name}' begins with numbers of up to {reach:.4g}, and {self.tier.dtype} holds "
                    f"numbers up to {limit:.5g}; give it a smaller init_std"
                )

    @classmethod
    def of_tables(cls, tables: Sequence[PhysicalTable], *, lookups: Sequence[int], **how: Any) -> Self:
        """Of whole tables.

        Args:
            tables: the physical tables.
            lookups: for each lookup, the index of its table.
            how: seed, backend, optimizer and tier.
        """
        return cls(shards=[TableShard.whole(table) for table in tables], lookups=lookups, **how)

    def refuse_half_projected(self) -> None:
        """Raises ConfigError where rows of few bits would have to be on a grid of their method's besides."""
        table = next((table for table in self.tables if table.projection is not None), None)
        if self.tier.is_half and table is not None:
            raise ConfigError(
                f"the method of table '{table.name}' puts rows on a grid after each update, which {self.tier.dtype} "
                "can't hold; use rows of dtype fp32, or another method"
            )

    @property
    def tables(self) -> tuple[PhysicalTable, ...]:
        """The physical table of each shard."""
        return tuple(shard.table for shard in self.shards)

    @property
    def dims(self) -> list[int]:
        """Width of each lookup."""
        return [self.shards[index].num_columns for index in self.lookups]
