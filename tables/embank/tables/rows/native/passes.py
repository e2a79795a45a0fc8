"""Rows looked up and updated by compiled code: one pass over all tables of a store, whatever their widths.

Legend: S bags per lookup, K lookups, C_k columns of lookup k's rows, N ids.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from embank.tables.errors import WorkError
from embank.tables.native.build import library, tell
from embank.tables.rows.base import padded_dim, rowwise_scale
from embank.tables.rows.store_spec import RowOptimizer

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_SOURCE = Path(__file__).with_name("rows.cpp")
_OPTIMIZERS = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 2}
_TABLE = np.dtype(
    [
        *[(name, np.uint64) for name in ("rows", "state")],
        *[(name, np.int64) for name in ("num_rows", "pitch", "columns", "padded")],
        ("scale", np.float64),
    ]
)
_LOOKUP = np.dtype([("table", np.int64), ("numbers", np.uint64), ("stride", np.int64)])
_NO_MEMORY = 1  # what the update returns
_NUMBER_NBYTES = 4
_NUMBERS_PER_THREAD = 1 << 14
"""Numbers to be moved from which on a second thread is worth waking."""


@dataclass(frozen=True, kw_only=True)
class HeldTable:
    """Where the rows and the optimizer state of a table lie.

    Args:
        name: of the table.
        weights: fp32, rows one after the other.
        state: fp32, of row-wise Adagrad one number for each row, of Adagrad as the rows; None for SGD.
        num_rows: of the table.
        pitch: numbers from one row to the next.
        columns: of a row; zeros follow up to the pitch.
    """

    name: str
    weights: Tensor
    state: Tensor | None
    num_rows: int
    pitch: int
    columns: int


class _Compiled(NamedTuple):
    look_up: Callable[..., int]
    update: Callable[..., int]
    parallel: int  # the address of what shares work among torch's threads


class Passes:
    """Lookup and update of rows in the host's memory.

    Args:
        tables: whose rows are looked up.
        lookups: the table of each lookup.
        optimizer: of the rows.
        is_noted: whether to write down what was changed.

    Attributes:
        lr: the learning rate of the next update.
        changed: if it is noted, the indices and offsets of each update; whoever takes them clears it.
    """

    def __init__(
        self, tables: Sequence[HeldTable], lookups: Sequence[int], optimizer: RowOptimizer, *, is_noted: bool = False
    ) -> None:
        self.tables, self.lookups, self.optimizer = list(tables), list(lookups), optimizer
        self.is_noted, self.changed = is_noted, list[tuple[Tensor, Tensor]]()
        self.lr = optimizer.lr
        self.widths = [self.tables[table].columns for table in self.lookups]
        self._no_numbers = np.zeros(len(self.lookups), _LOOKUP)
        self._no_numbers["table"] = self.lookups
        self._firsts = np.cumsum([0, *self.widths])[:-1].astype(np.uint64) * _NUMBER_NBYTES
        held = [t for table in self.tables for t in (table.weights, table.state) if t is not None]
        self._held = list({tensor.untyped_storage()._cdata: tensor for tensor in held}.values())
        self._written: tuple[list[int], _Array] = [], np.zeros(0, _TABLE)
        # What makes autograd ask for the gradients of rows.
        self._anchor = torch.empty(0, dtype=torch.float32, device="cpu", requires_grad=True)

    @classmethod
    def of(
        cls, tables: Sequence[HeldTable], lookups: Sequence[int], optimizer: RowOptimizer, *, is_noted: bool = False
    ) -> "Passes | None":
        """Those of some tables; None where they can't be compiled here."""
        return None if _compiled() is None else cls(tables, lookups, optimizer, is_noted=is_noted)

    def joined(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """Sum-pooled rows [S, sum C_k], the lookups side by side; backward updates the rows.

        Args:
            indices: int64 [N], rows, lookup after lookup, bag after bag.
            offsets: int64 [K * S + 1], where each bag begins.

        Raises:
            IndexError: names an index that is no row of its table.
        """
        (rows,) = self._apply(indices, offsets, is_joined=True)
        return rows

    def parts(self, indices: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        """The same, but one tensor [S, C_k] for each lookup."""
        return self._apply(indices, offsets, is_joined=False)

    def _apply(self, indices: Tensor, offsets: Tensor, *, is_joined: bool) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return self.look_up(indices, offsets, is_joined=is_joined)
        found: tuple[Tensor, ...] = _LookUp.apply(self._anchor, self, indices, offsets, is_joined)  # type: ignore[no-untyped-call]
        return found

    def look_up(self, indices: Tensor, offsets: Tensor, *, is_joined: bool) -> tuple[Tensor, ...]:
        """The rows, without a gradient: joined, or one tensor for each lookup."""
        indices, offsets = _readable(indices), _readable(offsets)
        num_bags, rest = divmod(offsets.numel() - 1, len(self.lookups))
        if rest or int(offsets[-1]) > indices.numel():
            raise ValueError(
                f"{offsets.numel():,} offsets up to {int(offsets[-1]):,} are not those of {len(self.lookups):,} "
                f"lookups of {indices.numel():,} indices: each has as many bags, and one more offset ends the last"
            )
        widths = [sum(self.widths)] if is_joined else self.widths
        found = tuple(torch.empty(num_bags, width, dtype=torch.float32, device="cpu") for width in widths)
        lookups = self._numbers(found)
        compiled = _compiled()
        assert compiled is not None
        tables = self._tables()
        is_missing = compiled.look_up(
            _address(tables),
            _address(lookups),
            len(lookups),
            indices.data_ptr(),
            offsets.data_ptr(),
            num_bags,
            compiled.parallel,
            self._num_threads(indices),
        )
        if is_missing:
            self._refuse(indices, offsets, num_bags)
        return found

    def update(self, indices: Tensor, offsets: Tensor, gradients: Sequence[Tensor]) -> None:
        """One step of the optimizer.

        Args:
            indices, offsets: what was looked up.
            gradients: fp32, of what `look_up` has given.

        Raises:
            WorkError: there is no memory for it; some rows are updated.
            IndexError: an index is no row any more; the others are updated.
        """
        indices, offsets = _readable(indices), _readable(offsets)
        gradients = [each.resolve_neg() for each in gradients]
        gradients = [each if each.stride(1) == 1 else each.contiguous() for each in gradients]
        lookups = self._numbers(gradients)
        compiled = _compiled()
        assert compiled is not None
        tables = self._tables()
        failed = compiled.update(
            _address(tables),
            len(tables),
            _address(lookups),
            len(lookups),
            indices.data_ptr(),
            offsets.data_ptr(),
            gradients[0].shape[0],
            _OPTIMIZERS[self.optimizer.name],
            self.lr,
            self.optimizer.eps,
            compiled.parallel,
            self._num_threads(indices),
        )
        if self.is_noted:
            self.changed.append((indices, offsets))
        if failed == _NO_MEMORY:
            raise WorkError(
                f"out of memory: there is no room to put {indices.numel():,} looked-up ids in order. Some rows are "
                "updated and others are not: go on from a checkpoint"
            )
        if failed:
            self._refuse(indices, offsets, gradients[0].shape[0])

    def _tables(self) -> _Array:
        """`Table` of each table; written anew where the rows have moved, as to shared memory."""
        places = [held.data_ptr() for held in self._held]
        known, written = self._written
        if places != known:
            written = np.zeros(len(self.tables), _TABLE)  # another thread may do the same
            for number, table in enumerate(self.tables):
                state = 0 if table.state is None else table.state.data_ptr()
                sizes = (table.num_rows, table.pitch, table.columns, padded_dim(table.columns))
                scale = rowwise_scale(table.columns) if self.optimizer.name == "rowwise_adagrad" else 1.0
                written[number] = (table.weights.data_ptr(), state, *sizes, scale)
            self._written = places, written
        return written

    def _numbers(self, looked_up: Sequence[Tensor]) -> _Array:
        """`Lookup` of each lookup."""
        lookups = self._no_numbers.copy()
        if len(looked_up) == 1:
            lookups["numbers"] = self._firsts + np.uint64(looked_up[0].data_ptr())
            lookups["stride"] = looked_up[0].stride(0)
        else:
            lookups["numbers"] = [each.data_ptr() for each in looked_up]
            lookups["stride"] = [each.stride(0) for each in looked_up]
        return lookups

    def _num_threads(self, indices: Tensor) -> int:
        num_numbers = indices.numel() * max(self.widths)
        return torch.get_num_threads() if num_numbers >= _NUMBERS_PER_THREAD and not _forked else 1

    def _refuse(self, indices: Tensor, offsets: Tensor, num_bags: int) -> NoReturn:
        """Names an index that is no row of its table."""
        bounds = offsets[:: max(1, num_bags)].tolist()
        for k, table in enumerate(self.tables[number] for number in self.lookups):
            own = indices[bounds[k] : bounds[k + 1]]
            bad = own[(own < 0) | (own >= table.num_rows)]
            if bad.numel():
                raise IndexError(f"table '{table.name}' has {table.num_rows:,} rows, and none of number {bad[0]:,}")
        raise IndexError("an index is no row of its table; it was changed while it was looked up")


def changed_rows(
    changed: Sequence[tuple[Tensor, Tensor]], lookups: Sequence[int], is_projected: Sequence[bool]
) -> dict[int, Tensor]:
    """By table with a projection, the distinct rows that were looked up and changed.

    Args:
        changed: the indices and offsets of each time.
        lookups: the table of each lookup.
        is_projected: of each table.
    """
    rows: dict[int, list[Tensor]] = {}
    for indices, offsets in changed:
        num_bags = (offsets.numel() - 1) // len(lookups)
        bounds = offsets[::num_bags].tolist() if num_bags else [0] * (len(lookups) + 1)
        for k, table in enumerate(lookups):
            if is_projected[table]:
                rows.setdefault(table, []).append(indices[bounds[k] : bounds[k + 1]])
    return {table: torch.unique(torch.cat(some)) for table, some in rows.items()}


class _LookUp(torch.autograd.Function):
    """Rows whose backward pass updates them."""

    @staticmethod
    def forward(
        ctx: Any, _anchor: Tensor, passes: Passes, indices: Tensor, offsets: Tensor, is_joined: bool
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(indices, offsets)
        ctx.passes = passes
        return passes.look_up(indices, offsets, is_joined=is_joined)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        indices, offsets = ctx.saved_tensors
        ctx.passes.update(indices, offsets, gradients)
        return None, None, None, None, None


@cache
def _compiled() -> _Compiled | None:
    """The passes of `rows.cpp`; None where they can't be compiled, or torch's threads are not to be had."""
    parallel = _parallel()
    if parallel is None:
        tell("torch's threads have no GOMP_parallel")
        return None
    made = library(_SOURCE, ("embank_look_up", "embank_update"))
    if made is None:
        return None
    pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    look_up, update = made.embank_look_up, made.embank_update
    batch = (pointer, number, pointer, pointer, number)
    look_up.argtypes, look_up.restype = (pointer, *batch, pointer, number), number
    update.argtypes, update.restype = (pointer, number, *batch, number, real, real, pointer, number), number
    return _Compiled(look_up, update, parallel)


def _parallel() -> int | None:
    """The address of OpenMP's `GOMP_parallel` in the library that torch itself computes with, or None."""
    own = sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*.so*"))
    for name in (None, *map(str, own)):
        try:
            return ctypes.cast(ctypes.CDLL(name).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


_forked: list[int] = []
"""Numbers of processes forked from the one that imported this: OpenMP's threads are not in them, and who waits for
those waits forever."""
os.register_at_fork(after_in_child=lambda: _forked.append(os.getpid()))


def where_plain(passes: Passes | None, indices: Tensor) -> Passes | None:
    """The passes, if there are any and rows are looked up now. None where something follows that which records or only
    imagines it: it knows the operators of torch and FBGEMM."""
    is_followed = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    is_plain = type(indices) is Tensor and not is_followed and _get_current_dispatch_mode() is None
    return passes if is_plain else None


def _readable(numbers: Tensor) -> Tensor:
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise TypeError(f"indices and offsets are whole numbers, and these are {numbers.dtype}")
    return numbers.to(device="cpu", dtype=torch.int64).contiguous()


def _address(array: _Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
