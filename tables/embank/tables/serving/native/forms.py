"""What the compiled lookup is made for, and what it is told of each table: `Form` and `Table` of its source."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from embank.tables.method.together import Array, Rule, Widened
from embank.tables.serving.codecs.layout import CodeLayout, Layout, RowLayout, SparseLayout

_MOST_WIDENED = 32
"""Numbers of a row up to which it multiplies them by a matrix itself; of wider ones a library's product is quicker."""
_RULES = {"own": 0, "cut": 1, "hash": 2, "kept": 3}
_RECORD, _PRODUCT, _BITMAP, _LIST = range(4)
_WORD_BITS, _WORDS_PER_COUNT, _MOST_CODE_BITS = 64, 8, 48
_LOW_TYPES = {8: torch.uint8, 16: torch.int16}
_COUNTS = (torch.int32, torch.int64)
_PLACES = [("fine", np.uint64), ("counts", np.uint64), ("is_wide", np.int64)]
TABLE = np.dtype(
    [
        *[(name, np.uint64) for name in ("numbers", "steps", "offsets", "num_held", "num_values", "matrix")],
        ("rule", np.int64),
        *[(name, np.uint64) for name in ("num_rows", "salt", "inverse")],
        ("kept", _PLACES),
        ("entries", _PLACES),
        *[(name, np.uint64) for name in ("head", "head_end", "tail", "tail_end", "num_head")],
    ]
)
"""`Table` of table.h."""


class Form(NamedTuple):
    """What one compiled lookup is made for; the fields are explained in `lookup.cpp`."""

    numbers: int
    width: int
    stride_bits: int
    group: int
    scale_stride_bytes: int
    row: int
    dim: int
    shape: int = _RECORD
    books: int = 0
    codes: int = 0
    head_bits: int = 0
    tail_bits: int = 0
    low_bits: int = 0
    widened: int = 0
    holes: int = 0

    def macros(self) -> tuple[str, ...]:
        """The fields as a compiler takes them."""
        return tuple(f"-D{name.upper()}={value}" for name, value in self._asdict().items())

    @classmethod
    def of(cls, layout: Layout, *, widening: Widened | None, padded: int | None, holes: bool) -> "Form | None":
        """That of a table; None where there is none for it.

        Args:
            layout: of its rows.
            widening: what makes logical rows of physical ones, or None.
            padded: numbers of a logical row with zeros behind those of a physical one, or None.
            holes: whether ids may have no row.
        """
        records, row = _records(layout), _row_of(layout)
        if widening is not None and not _is_usable(widening, width=row):
            return None
        if not _is_whole(layout) or (padded is not None and (padded < row or widening is not None)):
            return None
        dim = row if widening is None else int(widening.weights_JdD.shape[2])
        form = cls(
            numbers=records.numbers.value,
            width=records.width,
            stride_bits=records.stride_bits,
            group=records.group,
            scale_stride_bytes=records.scale_stride_bytes,
            row=row,
            dim=padded or dim,
            widened=0 if widening is None else 1 if widening.biases_JD is None else 2,
            holes=int(holes),
        )
        if isinstance(layout, CodeLayout):
            bits = {"head_bits": layout.head_bits, "tail_bits": layout.tail_bits}
            return form._replace(shape=_PRODUCT, books=layout.num_books, codes=layout.num_codes, **bits)
        if isinstance(layout, SparseLayout):
            return form._replace(shape=_LIST if layout.low_bits else _BITMAP, low_bits=layout.low_bits)
        return form


def tensors_of(layout: Layout, rule: Rule) -> list[Tensor]:
    """What lies in memory that the lookup reads."""
    records = _records(layout)
    held = [records.rows, records.steps, records.offsets, *(rule.kept or ())]
    if isinstance(layout, CodeLayout):
        held += [layout.head, layout.tail]
    elif isinstance(layout, SparseLayout):
        held += [layout.fine, layout.counts]
    return [tensor for tensor in held if tensor is not None]


def tables_of(layouts: Sequence[Layout], rules: Sequence[Rule], matrices: Tensor | None) -> Array:
    """`Table` of each table, where its memory is now.

    Args:
        layouts, rules: of each.
        matrices: what rows are multiplied by, one after the other in one piece of memory, or None.
    """
    tables = np.zeros(len(layouts), dtype=TABLE)
    for table, layout, rule in zip(tables, layouts, rules, strict=True):
        records = _records(layout)
        table["numbers"], table["num_held"] = records.rows.data_ptr(), layout.num_rows
        if records.steps is not None and records.offsets is not None:
            table["steps"], table["offsets"] = records.steps.data_ptr(), records.offsets.data_ptr()
        table["rule"], table["num_rows"], table["salt"] = _RULES[rule.kind], rule.num_rows, rule.salt % 2**64
        table["inverse"] = min(2**64 // rule.num_rows, 2**64 - 1)
        if rule.kept is not None:
            table["kept"] = _places(*rule.kept)
        if isinstance(layout, CodeLayout):
            table["num_head"] = layout.num_head
            for name, stream in (("head", layout.head), ("tail", layout.tail)):
                table[name], table[f"{name}_end"] = stream.data_ptr(), stream.data_ptr() + stream.numel()
        elif isinstance(layout, SparseLayout):
            table["entries"] = _places(layout.fine, layout.counts)
            table["num_values"] = min([records.num_rows] + [layout.fine.numel()] * bool(layout.low_bits))
    if matrices is not None:
        size = matrices[0].numel() * matrices.element_size()
        tables["matrix"] = matrices.data_ptr() + size * np.arange(len(layouts), dtype=np.uint64)
    return tables


def is_rule(rule: Rule, *, num_ids: int, num_rows: int) -> bool:
    """Whether each id leads to a row that there is, or the lookup looks for itself.

    Args:
        rule: the rule.
        num_ids: below it ids are.
        num_rows: rows that there are.
    """
    if type(rule.num_rows) is not int or rule.num_rows <= 0:
        return False
    if rule.kind == "own":
        return num_ids <= num_rows
    if rule.kept is None:
        return rule.num_rows <= num_rows
    words, samples = rule.kept
    return num_ids <= rule.num_rows and _num_bits(words, samples) >= rule.num_rows


def _records(layout: Layout) -> RowLayout:
    if isinstance(layout, CodeLayout):
        return layout.centroids
    return layout.values if isinstance(layout, SparseLayout) else layout


def _row_of(layout: Layout) -> int:
    """Numbers of a physical row."""
    if isinstance(layout, CodeLayout):
        return layout.num_books * layout.centroids.width
    return layout.dim if isinstance(layout, SparseLayout) else layout.width


def _is_usable(widening: Widened, *, width: int) -> bool:
    """Whether matrices are such as rows of so many numbers are multiplied by here."""
    weights_JdD, biases_JD = widening
    tensors = [weights_JdD] if biases_JD is None else [weights_JdD, biases_JD]
    is_plain = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    return is_plain and weights_JdD.shape[1] == width <= _MOST_WIDENED


def _is_whole(layout: Layout) -> bool:
    """Whether all is there that a layout speaks of; of a damaged bundle it may not be."""
    if isinstance(layout, SparseLayout):
        num_rows = _num_bits(layout.fine, layout.counts) // max(1, layout.dim)
        if layout.low_bits:
            is_list = layout.fine.dtype == _LOW_TYPES.get(layout.low_bits) and _is_read(layout.fine, layout.counts)
            num_rows = is_list * ((layout.counts.numel() - 1) << layout.low_bits) // max(1, layout.dim)
        return layout.dim > 0 and layout.values.width == 1 and layout.num_rows <= num_rows
    if not isinstance(layout, CodeLayout):
        return True
    num_tail = layout.num_rows - layout.num_head
    streams = [(layout.head, layout.num_head, layout.head_bits), (layout.tail, num_tail, layout.tail_bits)]
    return (
        min(layout.num_books, layout.num_codes, layout.num_rows) > 0
        and layout.num_books * layout.num_codes <= layout.centroids.num_rows
        and all(
            0 <= bits <= _MOST_CODE_BITS
            and stream.dtype == torch.uint8
            and _is_read(stream)
            and 0 <= num * layout.num_books * bits <= 8 * stream.numel()
            for stream, num, bits in streams
        )
    )


def _is_read(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)


def _num_bits(words: Tensor, counts: Tensor) -> int:
    """Bits of a bitmap that can be looked up; 0 where it is none."""
    if words.dtype != torch.int64 or counts.dtype not in _COUNTS or not _is_read(words, counts):
        return 0
    return _WORD_BITS * min(words.numel(), _WORDS_PER_COUNT * counts.numel())


def _places(fine: Tensor, counts: Tensor) -> tuple[int, int, bool]:
    """`Places` of table.h."""
    return fine.data_ptr(), counts.data_ptr(), counts.dtype == torch.int64
