"""Entries that are not zero, in the smallest of four forms (see `parts.sparse`). What pruned tables are served from."""

from collections.abc import Callable, Hashable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from embank.compression.codecs.sparse_joined import JoinedBitmaps, JoinedLists
from embank.compression.parts.bits import picked
from embank.compression.parts.sparse import FORMS, JoinedBits, form_nbytes, rank_at, rank_bits
from embank.tables import Coded, Held, encode
from embank.tables.method.together import Array
from embank.tables.serving.codecs.base import MIN_NUMBERS
from embank.tables.serving.codecs.composite import Composite
from embank.tables.serving.codecs.fp32 import Fp32
from embank.tables.serving.codecs.joined import Joined, block_of, in_blocks, place_of
from embank.tables.serving.codecs.layout import Layout, RowLayout, SparseLayout

_SHIFT16 = 1 << 15  # torch lacks a 16-bit unsigned type worth the name: 0 .. 65,535 is held as -32,768 .. 32,767
_WINDOW_BITS = 4  # from 2**4 entries on down they are compared at once: on a CPU as fast for many ids, and for one


class SparseRows(Coded):
    """A table with many zeros, in one of the four forms.

    Attributes:
        dim: width of a row.
        form: one of `FORMS`.
        num_steps: of a binary search within the fullest bucket of a list.

    Example:
        >>> rows_RD = torch.zeros(1000, 4)
        >>> rows_RD[7, 2] = 0.5
        >>> coded = SparseRows.encode(rows_RD)
        >>> coded.form, coded.nbytes()  # of 16,000
        ('list16', 14)
        >>> coded.take(torch.tensor([6, 7]))
        tensor([[0.0000, 0.0000, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.5000, 0.0000]])
    """

    held = Held(
        facts=("dim", "form", "num_steps"),
        uncounted=("words", "samples", "starts", "lows"),
        sizes=("dim", "num_steps"),
    )
    dim: int
    form: str
    values: Tensor  # dense: [R, D]; otherwise [Z]
    words: Tensor
    samples: Tensor
    starts: Tensor
    lows: Tensor

    def __init__(self, rows_RD: Tensor, *, form: str | None = None) -> None:
        """Packs rows.

        Args:
            rows_RD: the table, pruned entries being zero.
            form: None takes the smallest.
        """
        super().__init__()
        num_entries = rows_RD.numel()
        nonzeros = rows_RD.count_nonzero()
        self.dim, self.num_steps = rows_RD.shape[1], 0
        self.form = form or min(FORMS, key=lambda f: int(form_nbytes(f, num_entries, nonzeros)))
        rows_RD = rows_RD.detach()
        if self.form == "dense":
            self.register_buffer("values", rows_RD)
            return
        self.register_buffer("values", rows_RD[rows_RD != 0])
        if self.form == "bitmap":
            words, samples = rank_bits(rows_RD != 0)
            self.register_buffer("words", words)
            self.register_buffer("samples", samples)
            return
        # Numbers of entries ascend, so their high bits need not be held: `starts` says which entries share them.
        entries_Z = (rows_RD != 0).reshape(-1).nonzero()[:, 0]
        size = 1 << self._low_bits
        bounds = torch.arange(-(-num_entries // size) + 1) * size
        starts = torch.searchsorted(entries_Z, bounds)
        self.num_steps = int(starts.diff().amax()).bit_length()  # fixed here, so that a lookup's loop can be exported
        lows_Z = entries_Z & (size - 1)
        self.register_buffer("starts", starts.to(torch.int32 if int(nonzeros) < 2**31 else torch.int64))
        self.register_buffer("lows", lows_Z.byte() if size == 256 else (lows_Z - _SHIFT16).short())

    @classmethod
    def encode(cls, rows_RD: Tensor) -> Self:
        return cls(rows_RD)

    @property
    def _low_bits(self) -> int:
        return 8 if self.form == "list8" else 16

    def take(self, rows_N: Tensor) -> Tensor:
        if self.form == "dense":
            return self._values(rows_N)
        if not self._num_values():
            return torch.zeros(rows_N.numel(), self.dim, device=rows_N.device)
        return self._from_bitmap(rows_N) if self.form == "bitmap" else self._from_list(rows_N)

    def recoded(self, codec: str) -> Coded:
        return self if self.values.numel() < MIN_NUMBERS else CodedValues.of(self, codec)

    def layout(self) -> Layout | None:
        values = self._values_layout() if self._num_values() and self.dim > 0 else None
        if self.form == "dense":
            return values
        if not isinstance(values, RowLayout):
            return None
        num_rows = self.num_joint_rows()
        if self.form == "bitmap":
            return SparseLayout(values, num_rows, self.dim, low_bits=0, fine=self.words, counts=self.samples)
        return SparseLayout(values, num_rows, self.dim, low_bits=self._low_bits, fine=self.lows, counts=self.starts)

    def _values_layout(self) -> Layout | None:
        return Fp32(self._value_rows()).layout()

    def joint_place(self) -> Hashable | None:
        values = self._values_place()
        if values is None or not self._num_values():
            return None
        about = (self.form, self.dim, values)
        if self.form == "dense":
            return about
        if self.form == "bitmap":  # a row's bits are read as one word
            return (*about, JoinedBits.place(self.words, self.samples)) if 1 <= self.dim <= 64 else None
        places = (place_of(part.unsqueeze(1)) for part in (self.starts, self.lows))
        return (*about, self.starts.dtype, *places)

    def num_joint_rows(self) -> int:
        if self.form == "dense":
            return self._num_values()
        if self.form == "bitmap":
            return 64 * self.words.numel() // self.dim
        return ((self.starts.numel() - 1) << self._low_bits) // self.dim

    @classmethod
    def joined(cls, matrices: Sequence[Self]) -> Callable[[Array], Tensor]:
        values = cls._joined_values(matrices)
        if matrices[0].form == "dense":
            return values
        joined = JoinedBitmaps if matrices[0].form == "bitmap" else JoinedLists
        return in_blocks(joined(matrices, values), block=block_of(num_matrices=len(matrices), width=matrices[0].dim))

    def _values_place(self) -> Hashable | None:
        """What matrices have in common whose values are taken at once."""
        return place_of(self._value_rows()) if self.values.numel() else None

    def _value_rows(self) -> Tensor:
        return self.values if self.form == "dense" else self.values.unsqueeze(1)

    @classmethod
    def _joined_values(cls, matrices: Sequence[Self]) -> Callable[[Array], Tensor]:
        """What gives values [M, K, 1] (of dense forms rows [M, K, D]) at places [K, M] of each matrix."""
        return Joined([matrix._value_rows() for matrix in matrices]).take

    def _num_values(self) -> int:
        return self.values.shape[0]

    def _values(self, places: Tensor) -> Tensor:
        """Values at places, of any shape; where all entries are held, rows [N, D] at [N]."""
        return self.values.index_select(0, places) if self.form == "dense" else picked(self.values, places)

    def _from_bitmap(self, rows_N: Tensor) -> Tensor:
        """Every entry is looked for: held or not, and the rank of the row's first one says where."""
        words, begin_N = self.words, rows_N * self.dim
        entries_ND = begin_N.unsqueeze(1) + torch.arange(self.dim, device=rows_N.device)
        held_ND = (picked(words, entries_ND >> 6) >> entries_ND.bitwise_and_(63)).bitwise_and_(1)
        first_N = rank_at(words, self.samples, begin_N)
        # Values lie in the order of entries: a row's j-th held entry is j - 1 after its first. Where an entry is not
        # held any value is read, and multiplied by 0.
        places_ND = held_ND.cumsum(1).add_(first_N.sub_(1).unsqueeze(1))
        return self._values(places_ND.clamp_(min=0)).mul_(held_ND)

    def _from_list(self, rows_N: Tensor) -> Tensor:
        """The row's first entry is looked for; of it and the next ones, D at most, those of the row are put in their
        columns."""
        begin_N, dim, num_values = rows_N * self.dim, self.dim, self._num_values()
        bucket_N = begin_N >> self._low_bits
        # Where the row's bucket and the next ones begin. A row reaches over so many at most: those that its D entries
        # fill, and a part of one at either end.
        reach = torch.arange(dim // (1 << self._low_bits) + 3, device=rows_N.device)
        starts = self.starts
        edges = picked(starts, (bucket_N.unsqueeze(1) + reach).clamp_(max=starts.numel() - 1)).long().unbind(1)
        place_N = self._num_below(begin_N - (bucket_N << self._low_bits), edges[0], edges[1])
        places_ND = place_N.unsqueeze(1) + torch.arange(dim, device=rows_N.device)
        held_ND = places_ND.clamp(max=num_values - 1)
        column_ND = self._entries(places_ND, held_ND, bucket_N=bucket_N, edges=edges[1:]) - begin_N.unsqueeze(1)
        column_ND = column_ND.where(places_ND < num_values, dim).clamp_(max=dim)
        values_ND = self._values(held_ND)
        out_NX = values_ND.new_zeros(rows_N.numel(), dim + 1)  # a column too many takes what is not the row's
        return out_NX.scatter_(1, column_ND, values_ND)[:, :-1]

    def _num_below(self, lows_N: Tensor, place_N: Tensor, end_N: Tensor) -> Tensor:
        """How many entries of the list are below some: binary search within each one's bucket, until so few are left
        that all of them are compared at once.

        Args:
            lows_N: low bits of the wanted entries.
            place_N, end_N: where their buckets begin and end.
        """
        lows = self.lows
        last = lows.numel() - 1
        wanted_N = lows_N if self._low_bits == 8 else lows_N - _SHIFT16
        # By falling powers of two: a step is taken if the entry just before its end is still below the wanted one.
        # Every id takes as many steps; those whose bucket is shorter are stopped by its end.
        for bit in reversed(range(_WINDOW_BITS, self.num_steps)):
            before_N = place_N + ((1 << bit) - 1)
            is_below_N = (lows.index_select(0, before_N.clamp(max=last)) < wanted_N) & (before_N < end_N)
            place_N = place_N + is_below_N * (1 << bit)
        window = torch.arange(1 << min(_WINDOW_BITS, self.num_steps), device=lows_N.device)
        near_NW = place_N.unsqueeze(1) + window
        is_below_NW = picked(lows, near_NW.clamp(max=last)) < wanted_N.unsqueeze(1)
        return place_N + is_below_NW.logical_and_(near_NW < end_N.unsqueeze(1)).sum(1)

    def _entries(self, places_ND: Tensor, held_ND: Tensor, *, bucket_N: Tensor, edges: Sequence[Tensor]) -> Tensor:
        """Entries at places of the list from some bucket on. What lies further on than a row reaches may come out too
        small, but not smaller than the row's end.

        Args:
            places_ND: the places.
            held_ND: the same, the last one in place of those beyond the list.
            bucket_N: of the first entry of each row.
            edges: where the buckets after it begin, [N] each.
        """
        # The high bits: one more for each bucket that begins at or before the place.
        high_ND = bucket_N.unsqueeze(1) + (places_ND >= edges[0].unsqueeze(1)).long()
        for edge_N in edges[1:]:
            high_ND += places_ND >= edge_N.unsqueeze(1)
        lows_ND = picked(self.lows, held_ND)
        entries_ND = high_ND.bitwise_left_shift_(self._low_bits).add_(lows_ND)
        return entries_ND if self._low_bits == 8 else entries_ND.add_(_SHIFT16)


class CodedValues(Composite, SparseRows):
    """The same, the values held by a codec, as rows of one column: 64 consecutive ones share a step.

    Example:
        >>> rows_RD = torch.zeros(1000, 4)
        >>> rows_RD[::10, 2] = 0.5
        >>> plain = SparseRows.encode(rows_RD)
        >>> coded = plain.recoded("int4")
        >>> torch.equal(coded.take(torch.arange(1000)), rows_RD), plain.nbytes() - coded.nbytes()
        (True, 342)
    """

    held = Held(
        facts=(*SparseRows.held.facts, "parts", "num_values"),
        uncounted=SparseRows.held.uncounted,
        sizes=SparseRows.held.sizes,
    )
    num_values: int

    @classmethod
    def of(cls, plain: SparseRows, codec: str) -> Self:
        """Another form of sparse rows, whose places it shares."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.parts = {}
        for fact in SparseRows.held.facts:
            setattr(made, fact, getattr(plain, fact))
        made.num_values = len(plain.values)
        for name, buffer in plain.named_buffers():
            if name != "values":
                made.register_buffer(name, buffer)
        made.hold("values", encode(plain.values if plain.form == "dense" else plain.values[:, None], codec=codec))
        return made

    encode = Coded.encode  # type: ignore[assignment] # refused: these are made of rows in the plain form

    def recoded(self, codec: str) -> Coded:
        return self

    def _values_layout(self) -> Layout | None:
        return self.part("values").layout()

    def _values_place(self) -> Hashable | None:
        part = self.part("values")
        place = part.joint_place()
        return None if place is None else (type(part), place)

    @classmethod
    def _joined_values(cls, matrices: Sequence[Self]) -> Callable[[Array], Tensor]:
        parts = [matrix.part("values") for matrix in matrices]
        return type(parts[0]).joined(parts)

    def _num_values(self) -> int:
        return self.num_values

    def _values(self, places: Tensor) -> Tensor:
        taken = self.part("values").take(places.reshape(-1))
        return taken if self.form == "dense" else taken.view(places.shape)
