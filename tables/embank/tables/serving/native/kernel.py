"""Rows of a stack of tables by the compiled lookup: one pass from ids to logical rows.

Legend: K tables, B ids of each, d numbers of a physical row, D of a logical one.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from embank.tables.method.together import Array, Rule, Widened
from embank.tables.native.build import library
from embank.tables.serving.codecs.layout import Layout
from embank.tables.serving.native.forms import Form, is_rule, tables_of, tensors_of

Lookup = Callable[..., int]

SOURCE = Path(__file__).with_name("lookup.cpp")
_ID_NBYTES = 8
_NUMBERS_PER_THREAD = 1 << 17


@cache
def compiled(form: Form) -> Lookup | None:
    """The function `embank_lookup` for a form of rows; None where it can't be compiled."""
    made = library(SOURCE, ("embank_lookup",), form.macros())
    if made is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function = made.embank_lookup
    function.argtypes, function.restype = [pointer, number, pointer, number, number, number, pointer], number
    return function


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

    def __init__(self, form: Form, layouts: Sequence[Layout], rules: Sequence[Rule], widening: Widened | None) -> None:
        self.form, self._parts = form, (list(layouts), list(rules), widening)
        self._matrices = None if widening is None else _matrices(widening)
        held = [tensor for own in zip(layouts, rules, strict=True) for tensor in tensors_of(*own)]
        storages = {tensor.untyped_storage()._cdata: tensor for tensor in held}
        self._places = [tensor.untyped_storage().data_ptr for tensor in storages.values()]
        self._nothing = torch.empty(0, dtype=torch.float32, device="cpu")  # whatever torch takes by default
        self._found = self._tables()

    def _tables(self) -> "_Found":
        places = [place() for place in self._places]
        layouts, rules, _ = self._parts
        tables = tables_of(layouts, rules, self._matrices)
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
        layouts: Sequence[Layout | None],
        rules: Sequence[Rule | None],
        widening: Widened | None = None,
        *,
        num_ids: Sequence[int],
        padded: int | None = None,
    ) -> "Kernel | None":
        """One for some tables; None where they can't be looked up so.

        Args:
            layouts: of their rows, None where one has none.
            rules: from ids to rows, None where no rule is known.
            widening: of all of them, or None.
            num_ids: of each table, below which its ids are.
            padded: numbers of a logical row with zeros behind those of a physical one, or None.
        """
        known_layouts = [layout for layout in layouts if layout is not None]
        known_rules = [rule for rule in rules if rule is not None]
        if not len(known_layouts) == len(known_rules) == len(layouts) or not layouts:
            return None
        for layout, rule, most in zip(known_layouts, known_rules, num_ids, strict=True):
            if not is_rule(rule, num_ids=most, num_rows=layout.num_rows):
                return None
        holes = any(rule.kind == "kept" for rule in known_rules)
        forms = {Form.of(layout, widening=widening, padded=padded, holes=holes) for layout in known_layouts}
        form = forms.pop()
        return None if forms or form is None else cls(form, known_layouts, known_rules, widening)

    def __call__(self, ids_KB: Array) -> Tensor | None:
        """Rows fp32 [B, K D], or None where there is no compiled lookup, or a damaged table has not what ids lead to.

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
            is_damaged = look_up(found.address, num_tables, ids_at, stride, 0, num_ids, out.data_ptr())
            return None if is_damaged else out

        def part(first: int, last: int, *_alive: object) -> int:
            return look_up(found.address, num_tables, ids_at, stride, first, last, out.data_ptr())

        # Each part holds what it works on: an exception here, such as Ctrl-C, must not take it away from the others.
        ends = [num_ids * number // num_parts for number in range(num_parts + 1)]
        are_damaged = _in_threads([partial(part, first, last, self, ids_KB) for first, last in pairwise(ends)])
        return None if any(are_damaged) else out


def _in_threads(parts: Sequence[Callable[[], int]]) -> list[int]:
    """What parts give: the first one in this thread, the others in threads of their own, where these can be had."""
    given, begun = [], []
    for part in parts[1:]:
        try:
            begun.append(_threads().submit(part))
        except RuntimeError:  # there are no more threads, or the program is about to end
            given.append(part())
    given.append(parts[0]())
    return given + [other.result() for other in begun]


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
