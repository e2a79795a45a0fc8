"""Rows of a stack of tables by the compiled lookup: one pass from ids to logical rows.

Legend: K tables, B ids of each, d numbers of a physical row, D of a logical one.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from embank.tables.method.together import Array, Rule, Widened
from embank.tables.serving.codecs.layout import RowLayout
from embank.tables.serving.native.build import Form, Lookup, compiled

_MOST_WIDENED = 32
"""Numbers of a row up to which it multiplies them by a matrix itself; of wider ones a library's product is quicker."""
_RULES = {"own": 0, "cut": 1, "hash": 2}
_ID_NBYTES = 8
_NUMBERS_PER_THREAD = 1 << 17
_TABLE = np.dtype(
    [
        *[(name, np.uint64) for name in ("rows", "steps", "offsets", "matrix")],
        ("rule", np.int64),
        *[(name, np.uint64) for name in ("num_rows", "salt", "inverse")],
    ]
)
"""`Table` of lookup.cpp."""


class _Found(NamedTuple):
    """Where the memory of each storage begins, `Table` of each table, made of it, and where those lie."""

    places: list[int]
    tables: Array
    address: int


class Kernel:
    """What looks tables up by the compiled lookup.

    Args:
        form: of their rows.
        layouts: of each, whose memory is held.
        rules: how each comes from ids to rows, all of which it has.
        widening: what makes logical rows of physical ones, or None.
    """

    def __init__(
        self, form: Form, layouts: Sequence[RowLayout], rules: Sequence[Rule], widening: Widened | None
    ) -> None:
        self.form, self._parts = form, (list(layouts), list(rules), widening)
        self._matrices = None if widening is None else _matrices(widening)
        held = [tensor for layout in layouts for tensor in (layout.rows, layout.steps, layout.offsets)]
        storages = {tensor.untyped_storage()._cdata: tensor for tensor in held if tensor is not None}
        self._places = [tensor.untyped_storage().data_ptr for tensor in storages.values()]
        self._nothing = torch.empty(0, dtype=torch.float32, device="cpu")  # whatever torch takes by default
        self._found = self._tables()

    def _tables(self) -> "_Found":
        layouts, rules, _ = self._parts
        places = [place() for place in self._places]
        tables = np.zeros(len(layouts), dtype=_TABLE)
        for name in ("rows", "steps", "offsets"):
            tensors = [getattr(layout, name) for layout in layouts]
            tables[name] = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        tables["rule"] = [_RULES[rule.kind] for rule in rules]
        tables["num_rows"] = [rule.num_rows for rule in rules]
        tables["salt"] = [rule.salt % 2**64 for rule in rules]
        tables["inverse"] = [min(2**64 // rule.num_rows, 2**64 - 1) for rule in rules]
        if self._matrices is not None:
            size = self._matrices[0].numel() * self._matrices.element_size()
            tables["matrix"] = self._matrices.data_ptr() + size * np.arange(len(layouts), dtype=np.uint64)
        return _Found(places, tables, tables.ctypes.data)

    def __reduce__(self) -> tuple[type["Kernel"], tuple[Any, ...]]:
        """Copies look into memory of their own: what it holds besides are addresses."""
        return type(self), (self.form, *self._parts)

    @cached_property
    def _look_up(self) -> Lookup | None:
        return compiled(self.form)

    @classmethod
    def of(
        cls,
        layouts: Sequence[RowLayout | None],
        rules: Sequence[Rule | None],
        widening: Widened | None,
        *,
        tops: Sequence[int],
    ) -> "Kernel | None":
        """One for some tables; None where they can't be looked up so.

        Args:
            layouts: of their rows, None where one has none.
            rules: from ids to rows, None where no rule is known.
            widening: of all of them, or None.
            tops: of each table a number of rows that no address reaches.
        """
        known_layouts = [layout for layout in layouts if layout is not None]
        known_rules = [rule for rule in rules if rule is not None and type(rule.num_rows) is int and rule.num_rows > 0]
        if not len(known_layouts) == len(known_rules) == len(layouts) or not layouts:
            return None
        if any(layout.num_rows < top for layout, top in zip(known_layouts, tops, strict=True)):
            return None
        forms = {_form(layout, widening) for layout in known_layouts}
        form = forms.pop()
        if forms or (widening is not None and not _is_usable(widening, width=form.width)):
            return None
        return cls(form, known_layouts, known_rules, widening)

    def __call__(self, ids_KB: Array) -> Tensor | None:
        """Rows fp32 [B, K D], or None where there is no compiled lookup.

        Args:
            ids_KB: int64 [K, B], all of them within their tables; nobody may change them meanwhile.
        """
        look_up = self._look_up
        if look_up is None:
            return None
        found = self._found
        if found.places != [place() for place in self._places]:  # moved, as to shared memory
            found = self._found = self._tables()
        num_tables, num_ids = ids_KB.shape
        if ids_KB.strides[1] != _ID_NBYTES:
            ids_KB = np.ascontiguousarray(ids_KB)
        out = self._nothing.new_empty(num_ids, num_tables * self.form.dim)
        ids_at, stride = ids_KB.__array_interface__["data"][0], ids_KB.strides[0] // _ID_NBYTES
        most_parts = num_ids * num_tables * self.form.dim // _NUMBERS_PER_THREAD
        num_parts = min(torch.get_num_threads(), most_parts) if most_parts > 1 else 1
        if num_parts == 1:
            look_up(found.address, num_tables, ids_at, stride, 0, num_ids, out.data_ptr())
            return out

        def part(first: int, last: int, *_alive: object) -> None:
            look_up(found.address, num_tables, ids_at, stride, first, last, out.data_ptr())

        # Each part holds what it works on: an exception here, such as Ctrl-C, must not take it away from the others.
        ends = [num_ids * number // num_parts for number in range(num_parts + 1)]
        _in_threads([partial(part, first, last, self, ids_KB) for first, last in pairwise(ends)])
        return out


def _in_threads(parts: Sequence[Callable[[], None]]) -> None:
    """Does the first part in this thread, the others in threads of their own, where these can be had."""
    begun = []
    for part in parts[1:]:
        try:
            begun.append(_threads().submit(part))
        except RuntimeError:  # there are no more threads, or the program is about to end
            part()
    parts[0]()
    for other in begun:
        other.result()


def _is_usable(widening: Widened, *, width: int) -> bool:
    """Whether matrices are such as rows of so many numbers are multiplied by here."""
    weights_JdD, biases_JD = widening
    tensors = [weights_JdD] if biases_JD is None else [weights_JdD, biases_JD]
    is_plain = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    return is_plain and weights_JdD.shape[1] == width <= _MOST_WIDENED


def _form(layout: RowLayout, widening: Widened | None) -> Form:
    return Form(
        numbers=layout.numbers.value,
        width=layout.width,
        dim=layout.width if widening is None else widening.weights_JdD.shape[2],
        stride_bits=layout.stride_bits,
        group=layout.group,
        scale_stride_bytes=layout.scale_stride_bytes,
        widened=0 if widening is None else 1 if widening.biases_JD is None else 2,
    )


def _matrices(widening: Widened) -> Tensor:
    """Of each table its matrix, and below it the bias if there is one, in one piece of memory."""
    if widening.biases_JD is None:
        return widening.weights_JdD.contiguous()
    return torch.cat([widening.weights_JdD, widening.biases_JD.unsqueeze(1)], dim=1)


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that take parts of large lookups; while they wait they take no time of a core."""
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="embank-lookup")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a fork has none of them
