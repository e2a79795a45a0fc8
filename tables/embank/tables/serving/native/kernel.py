"""Rows of a stack of tables by the compiled lookup: one pass from ids to logical rows.

Legend: K tables, B ids of each, d numbers of a physical row, D of a logical one.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embank.tables.method.together import Array, Rule, Widened
from embank.tables.serving.codecs.layout import RowLayout
from embank.tables.serving.native.build import Form, Lookup, compiled

_MOST_WIDENED = 32
"""Numbers of a row up to which it multiplies them by a matrix itself; of wider ones a library's product is quicker."""
_RULES = {"own": 0, "cut": 1, "hash": 2}
_NUMBERS_PER_THREAD = 1 << 17
_TABLE = np.dtype(
    [
        *[(name, np.uint64) for name in ("rows", "steps", "offsets", "matrix")],
        ("rule", np.int64),
        *[(name, np.uint64) for name in ("num_rows", "salt", "inverse")],
    ]
)
"""`Table` of lookup.cpp."""


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
        tables = np.zeros(len(layouts), dtype=_TABLE)
        for name in ("rows", "steps", "offsets"):
            held = [getattr(layout, name) for layout in layouts]
            tables[name] = [0 if tensor is None else tensor.data_ptr() for tensor in held]
        tables["rule"] = [_RULES[rule.kind] for rule in rules]
        tables["num_rows"] = [rule.num_rows for rule in rules]
        tables["salt"] = [rule.salt % 2**64 for rule in rules]
        tables["inverse"] = [min(2**64 // max(1, rule.num_rows), 2**64 - 1) for rule in rules]
        self._matrices = None if widening is None else _matrices(widening)
        if self._matrices is not None:
            size = self._matrices[0].numel() * self._matrices.element_size()
            tables["matrix"] = self._matrices.data_ptr() + size * np.arange(len(layouts), dtype=np.uint64)
        self._tables, self._address = tables, tables.ctypes.data

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
        known_rules = [rule for rule in rules if rule is not None]
        if not len(known_layouts) == len(known_rules) == len(layouts) or not layouts:
            return None
        if any(layout.num_rows < top for layout, top in zip(known_layouts, tops, strict=True)):
            return None
        forms = {_form(layout, widening) for layout in known_layouts}
        form = forms.pop()
        if forms or (widening is not None and form.width > _MOST_WIDENED):
            return None
        return cls(form, known_layouts, known_rules, widening)

    def __call__(self, ids_KB: Array) -> Tensor | None:
        """Rows fp32 [B, K D], or None where there is no compiled lookup.

        Args:
            ids_KB: int64 [K, B], all of them within their tables.
        """
        if self._look_up is None:
            return None
        num_tables, num_ids = ids_KB.shape
        if ids_KB.strides[1] != ids_KB.itemsize:
            ids_KB = np.ascontiguousarray(ids_KB)
        out = torch.empty(num_ids, num_tables * self.form.dim)
        known = (self._address, num_tables, ids_KB.ctypes.data, ids_KB.strides[0] // ids_KB.itemsize)
        num_parts = out.numel() // _NUMBERS_PER_THREAD
        if num_parts > 1:
            self._by_threads(known, num_ids, out, num_parts=min(torch.get_num_threads(), num_parts))
        else:
            self._look_up(*known, 0, num_ids, out.data_ptr())
        return out

    def _by_threads(self, known: Sequence[int], num_ids: int, out: Tensor, *, num_parts: int) -> None:
        assert self._look_up is not None
        ends = [num_ids * part // num_parts for part in range(num_parts + 1)]
        calls = [(*known, first, last, out.data_ptr()) for first, last in pairwise(ends)]
        others = [_threads().submit(self._look_up, *call) for call in calls[1:]]
        self._look_up(*calls[0])
        for other in others:
            other.result()


def _form(layout: RowLayout, widening: Widened | None) -> Form:
    return Form(
        numbers=layout.numbers.value,
        width=layout.width,
        dim=layout.width if widening is None else widening.weights_JdD.shape[2],
        stride=layout.stride,
        group=layout.group,
        scale_stride=layout.scale_stride,
        widened=0 if widening is None else 1 if widening.biases_JD is None else 2,
    )


def _matrices(widening: Widened) -> Tensor:
    """Of each table its matrix, and below it the bias if there is one, in one piece of memory."""
    if widening.biases_JD is None:
        return widening.weights_JdD.contiguous()
    return torch.cat([widening.weights_JdD, widening.biases_JD.unsqueeze(1)], dim=1)


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that take parts of large lookups; they wait without turning."""
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="embank-lookup")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a fork has none of them
