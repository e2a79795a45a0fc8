"""Product codes: a row is cut into C parts, each held as the number of its nearest centroid (`dpq`, `mgqe`).

Legend: K centroids of a codebook, w columns of a part.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from embank.compression.parts.bits import (
    bits_at,
    code_bits,
    pack_values,
    picked,
    read_values,
    values_of_words,
    values_per_word,
    words_of,
)
from embank.tables import Coded, Held, encode
from embank.tables.method.together import Array
from embank.tables.serving.codecs.base import MIN_NUMBERS
from embank.tables.serving.codecs.composite import Composite
from embank.tables.serving.codecs.fp32 import Fp32
from embank.tables.serving.codecs.joined import FEW, Joined, block_of, in_blocks, place_of
from embank.tables.serving.codecs.layout import CodeLayout, Layout, RowLayout

_SCORES_PER_CHUNK = 1 << 17
"""A megabyte: measured best from 2,000 to 40,000,000 scores."""
_ROWS_PER_CHUNK = 1 << 16


class CodedRows(Coded):
    """Codes at their exact bits, those of the first rows and of the others in two streams, and the centroids.

    Args:
        rows_RD: fp32 rows.
        centroids_CKw: of each codebook; shared, not copied.
        num_head: rows below it choose among all centroids, the others among the first few.
        num_tail_codes: how many these are.

    Attributes:
        num_rows: of the matrix.
        head_bits, tail_bits: bits of a code.

    Example:
        >>> centroids_CKw = torch.tensor([[[0.0], [1.0]], [[0.0], [2.0]]])  # two parts of one column
        >>> rows_RD = torch.tensor([[0.9, 0.1], [0.2, 1.8]])
        >>> coded = CodedRows(rows_RD, centroids_CKw, num_head=2, num_tail_codes=1)
        >>> coded.codes(torch.tensor([0, 1]))
        tensor([[1, 0],
                [0, 1]])
        >>> coded.take(torch.tensor([0, 1]))
        tensor([[1., 0.],
                [0., 2.]])
    """

    held = Held(facts=("num_rows", "num_head", "head_bits", "tail_bits"), sizes=("head_bits", "tail_bits"))
    centroids: Tensor
    head: Tensor
    tail: Tensor

    def __init__(self, rows_RD: Tensor, centroids_CKw: Tensor, *, num_head: int, num_tail_codes: int) -> None:
        super().__init__()
        self.num_rows, self.num_head = rows_RD.shape[0], num_head
        self.head_bits, self.tail_bits = code_bits(centroids_CKw.shape[1]), code_bits(num_tail_codes)
        self.register_buffer("centroids", centroids_CKw.detach().clone())
        for name, part, bits in (
            ("head", rows_RD[:num_head], self.head_bits),
            ("tail", rows_RD[num_head:], self.tail_bits),
        ):
            is_head = torch.tensor([name == "head"])
            streams = []
            for start in range(0, max(1, part.shape[0]), _ROWS_PER_CHUNK):  # whole bytes: 8 rows divide a chunk
                chunk = part[start : start + _ROWS_PER_CHUNK]
                is_head_r = is_head.expand(chunk.shape[0])
                codes = nearest_codes(chunk, self.centroids, is_head_r, num_tail_codes=num_tail_codes)
                streams.append(pack_values(codes, bits=bits))
            self.register_buffer(name, torch.cat(streams))

    def take(self, rows_N: Tensor) -> Tensor:
        """What `decode` makes of the codes, by a faster kernel: centroids are numbered over all codebooks."""
        centroids_CKw, numbers_NC = self.centroids, self._numbers(rows_N)
        num_books, _, width = centroids_CKw.shape
        if width == 1:
            return picked(centroids_CKw.view(-1), numbers_NC)
        parts_MW = centroids_CKw.view(-1, width).index_select(0, numbers_NC.view(-1))
        return parts_MW.view(-1, num_books * width)

    def layout(self) -> CodeLayout | None:
        centroids, (num_books, num_codes) = self._centroids_layout(), self._books()
        if not isinstance(centroids, RowLayout):
            return None
        return CodeLayout(
            centroids,
            num_rows=self.num_rows,
            num_books=num_books,
            num_codes=num_codes,
            head=self.head,
            tail=self.tail,
            num_head=min(self.num_head, self.num_rows),
            head_bits=self.head_bits,
            tail_bits=self.tail_bits,
        )

    def _centroids_layout(self) -> Layout | None:
        return Fp32(self.centroids.flatten(0, 1)).layout() if self.centroids.is_contiguous() else None

    def joint_place(self) -> Hashable | None:
        centroids = self._centroids_place()
        if not self.num_rows or centroids is None or not all(s.is_contiguous() for _, s, _ in self._streams()):
            return None
        # What a stream of no rows is of plays no part.
        kinds = [(bits, stream.untyped_storage().data_ptr()) for bits, stream, num in self._streams() if num]
        memories = {memory for _, memory in kinds}
        return None if len(memories) > 1 else (self._books(), centroids, *[bits for bits, _ in kinds], *memories)

    def _streams(self) -> list[tuple[int, Tensor, int]]:
        """Bits of a code, codes and rows of each stream."""
        num_tail = max(0, self.num_rows - self.num_head)
        return [(self.head_bits, self.head, self.num_head), (self.tail_bits, self.tail, num_tail)]

    def _centroids_place(self) -> Hashable | None:
        if not self.centroids.numel() or not self.centroids.is_contiguous():
            return None
        return self.centroids.shape, place_of(self.centroids.flatten(0, 1))

    def num_joint_rows(self) -> int:
        return self.num_rows

    @classmethod
    def joined(cls, matrices: Sequence[Self]) -> Callable[[Array], Tensor]:
        codes, books = _Codes(matrices), cls._joined_books(matrices)
        block = block_of(num_matrices=len(matrices), width=matrices[0]._books()[0])

        def take(rows_KB: Array) -> Tensor:
            decode = books(rows_KB.shape[1])
            return in_blocks(lambda own_Kb: decode(codes(own_Kb)), block=block)(rows_KB)

        return take

    @classmethod
    def _joined_books(cls, matrices: Sequence[Self]) -> Callable[[int], Callable[[Array], Tensor]]:
        """What gives for a number of ids what makes rows fp32 [B, K, D] of codes [B, K, C]."""
        num_books, num_codes, width = matrices[0].centroids.shape
        centroids = Joined([matrix.centroids.flatten(0, 1) for matrix in matrices])
        first_KC = centroids.first_K1 + np.arange(0, num_books * num_codes, num_codes)
        held = _by_width(centroids.stream, width)
        return lambda num_ids: lambda codes_BKC: _centroids(held, codes_BKC, first_KC)

    def recoded(self, codec: str) -> Coded:
        return self if self.centroids.numel() < MIN_NUMBERS else CodedCentroids.of(self, codec)

    def _books(self) -> tuple[int, int]:
        """Codebooks, and codes of each."""
        return self.centroids.shape[0], self.centroids.shape[1]

    def _numbers(self, rows_N: Tensor) -> Tensor:
        """Of the centroids of some rows, counted over all codebooks, int64 [N, C]."""
        num_books, num_codes = self._books()
        return self.codes(rows_N) + torch.arange(0, num_books * num_codes, num_codes, device=rows_N.device)

    def codes(self, rows_N: Tensor) -> Tensor:
        """Codes of some rows, int64 [N, C]."""
        num_books, _ = self._books()
        columns_C = torch.arange(num_books, device=rows_N.device)
        # Both streams are read for all rows and one is chosen, as a branch on data could not be exported. Positions of
        # the other kind are clamped to one that exists.
        head_NC = rows_N[:, None] * num_books + columns_C
        if self.num_head >= self.num_rows:
            return read_values(self.head, head_NC, bits=self.head_bits)
        tail_NC = (head_NC - self.num_head * num_books).clamp(min=0)
        tail_codes_NC = read_values(self.tail, tail_NC, bits=self.tail_bits)
        if not self.num_head:
            return tail_codes_NC
        head_codes_NC = read_values(self.head, head_NC.clamp(max=self.num_head * num_books - 1), bits=self.head_bits)
        return torch.where((rows_N < self.num_head)[:, None], head_codes_NC, tail_codes_NC)


def _by_width(centroids: Array, width: int) -> Array:
    """Centroids one after the other as they are taken soonest: [M] of one column, else [M, w]."""
    return centroids if width == 1 else centroids.reshape(-1, width)


def _centroids(held: Array, codes_BKC: Array, first_KC: Array) -> Tensor:
    """Rows [B, K, D] of codes, and the first centroid of each book."""
    return torch.from_numpy(held.take(codes_BKC + first_KC, 0)).flatten(2)


class _Codes:
    """Codes of several matrices whose streams are in one piece of memory."""

    def __init__(self, matrices: Sequence[CodedRows]) -> None:
        kinds = [kind for kind in zip(*(matrix._streams() for matrix in matrices), strict=True) if kind[0][2]]
        streams = Joined([stream.unsqueeze(1) for kind in kinds for _, stream, _ in kind])
        (num_books, _), firsts_K1 = matrices[0]._books(), np.split(streams.first_K1, len(kinds))
        self._parts = [
            _Stream(streams.stream, first_K1, bits=kind[0][0], num_books=num_books)
            for kind, first_K1 in zip(kinds, firsts_K1, strict=True)
        ]
        self._num_head_K1 = np.array([[matrix.num_head] for matrix in matrices])
        if len(kinds) > 1:
            self._parts[1].first_bit_K1 -= self._num_head_K1 * self._parts[1].row_bits

    def __call__(self, rows_KB: Array) -> Array:
        """Codes [B, K, C], whole numbers of any type, of rows [K, B]."""
        if len(self._parts) == 1:
            (part,) = self._parts
            return part.codes(part.begin(rows_KB).T)
        head, tail = self._parts
        is_head_BK = (rows_KB < self._num_head_K1).T
        begin_BK = np.where(is_head_BK, head.begin(rows_KB).T, tail.begin(rows_KB).T)
        if rows_KB.shape[1] <= FEW:  # quicker than one kind after the other
            bits_BK1 = np.where(is_head_BK, head.bits, tail.bits)[..., None]
            return bits_at(head.stream, begin_BK[..., None] + head.book_C * bits_BK1, bits=bits_BK1)
        kind = np.uint8 if max(head.bits, tail.bits) <= 8 else np.int64
        begin_N, is_head_N = begin_BK.ravel(), is_head_BK.ravel()
        codes_NC: Array = np.empty((len(begin_N), len(head.book_C)), dtype=kind)
        for part, own_n in ((head, np.flatnonzero(is_head_N)), (tail, np.flatnonzero(~is_head_N))):
            codes_NC[own_n] = part.codes(begin_N[own_n])
        return codes_NC.reshape(*begin_BK.shape, len(head.book_C))


class _Stream:
    """Codes of the same bits of several matrices.

    Args:
        stream: of all of them.
        first_K1: where each begins.
        bits: of a code.
        num_books: codes of a row.
    """

    def __init__(self, stream: Array, first_K1: Array, *, bits: int, num_books: int) -> None:
        self.stream, self.bits, self.row_bits = stream, bits, bits * num_books
        self.book_C, self.first_bit_K1 = np.arange(num_books), 8 * first_K1
        self._per_word = values_per_word(num_books, bits) if bits else 0
        self._words = words_of(stream)
        self._word_places = range(0, self.row_bits // 8, self._per_word * bits // 8) if self._per_word else ()
        self._safe = len(self._words) - self.row_bits // 8  # from here on a row's words may end behind the stream

    def begin(self, rows_KB: Array) -> Array:
        """The first bits of rows [K, B]."""
        first_bit_KB: Array = rows_KB * self.row_bits + self.first_bit_K1
        return first_bit_KB

    def codes(self, begin: Array) -> Array:
        """Codes [..., C], whole numbers of any type, of rows that begin at some bits."""
        if self._per_word:
            first_byte = np.ascontiguousarray(begin) >> 3  # ids in another order take three times as long to look up
            if first_byte.max(initial=0) < self._safe:
                words = np.stack([self._words[first_byte + place] for place in self._word_places], axis=-1)
                return values_of_words(words, bits=self.bits, per_word=self._per_word)
        return bits_at(self.stream, begin[..., None] + self.book_C * self.bits, bits=self.bits)


class CodedCentroids(Composite, CodedRows):
    """The same, the centroids held by a codec: each is a row of that.

    Example:
        >>> centroids_CKw = torch.randn(4, 16, 2, generator=torch.Generator().manual_seed(0))
        >>> rows_RD = centroids_CKw[:, 3].reshape(1, 8)
        >>> plain = CodedRows(rows_RD, centroids_CKw, num_head=1, num_tail_codes=16)
        >>> coded = plain.recoded("int8")
        >>> torch.allclose(coded.take(torch.tensor([0])), rows_RD, atol=0.02), plain.nbytes(), coded.nbytes()
        (True, 514, 138)
    """

    held = Held(
        facts=(*CodedRows.held.facts, "parts", "num_books", "num_codes"), sizes=(*CodedRows.held.sizes, "num_books")
    )
    num_books: int
    num_codes: int

    @classmethod
    def of(cls, plain: CodedRows, codec: str) -> Self:
        """Another form of coded rows, whose codes it shares."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.parts = {}
        for fact in CodedRows.held.facts:
            setattr(made, fact, getattr(plain, fact))
        made.num_books, made.num_codes, width = plain.centroids.shape
        made.register_buffer("head", plain.head)
        made.register_buffer("tail", plain.tail)
        made.hold("centroids", encode(plain.centroids.reshape(-1, width), codec=codec))
        return made

    def _centroids_layout(self) -> Layout | None:
        return self.part("centroids").layout()

    def _centroids_place(self) -> Hashable | None:
        part = self.part("centroids")
        place = part.joint_place()
        return None if place is None else (type(part), place)

    @classmethod
    def _joined_books(cls, matrices: Sequence[Self]) -> Callable[[int], Callable[[Array], Tensor]]:
        parts = [matrix.part("centroids") for matrix in matrices]
        num_tables, (num_books, num_codes) = len(parts), matrices[0]._books()
        take, num_centroids = type(parts[0]).joined(parts), num_books * num_codes
        first_C = np.arange(0, num_centroids, num_codes)
        first_KC = np.arange(0, num_tables * num_centroids, num_centroids)[:, None] + first_C

        def few(codes_BKC: Array) -> Tensor:
            numbers_KM = (codes_BKC + first_C).transpose(1, 0, 2).reshape(num_tables, -1)
            parts_MKw = take(numbers_KM)
            parts_BCKw = parts_MKw.view(len(codes_BKC), num_books, num_tables, parts_MKw.shape[2])
            return parts_BCKw.transpose(1, 2).flatten(2)

        def decoder(num_ids: int) -> Callable[[Array], Tensor]:
            if num_ids * num_books <= num_centroids:
                return few
            # More are asked for than there are: each is decoded once, and all are forgotten with the call.
            decoded_MKw = take(np.broadcast_to(np.arange(num_centroids), (num_tables, num_centroids)))
            held = _by_width(decoded_MKw.transpose(0, 1).contiguous().numpy().reshape(-1), decoded_MKw.shape[2])
            return lambda codes_BKC: _centroids(held, codes_BKC, first_KC)

        return decoder

    def recoded(self, codec: str) -> Coded:
        return self

    def _books(self) -> tuple[int, int]:
        return self.num_books, self.num_codes

    def take(self, rows_N: Tensor) -> Tensor:
        parts_Mw = self.part("centroids").take(self._numbers(rows_N).view(-1))
        return parts_Mw.view(-1, self.num_books * parts_Mw.shape[1])


def nearest_codes(rows_ND: Tensor, centroids_CKw: Tensor, is_head_N: Tensor | None, *, num_tail_codes: int) -> Tensor:
    """For each part of each row the nearest centroid, int64 [N, C].

    Args:
        rows_ND: the rows.
        centroids_CKw: of each codebook.
        is_head_N: which rows choose among all centroids; None for all.
        num_tail_codes: the others choose among so many, the first ones.
    """
    if is_head_N is None or bool(is_head_N.all()):
        return nearest(rows_ND, centroids_CKw)
    codes_NC = torch.empty(rows_ND.shape[0], centroids_CKw.shape[0], dtype=torch.int64, device=rows_ND.device)
    codes_NC[is_head_N] = nearest(rows_ND[is_head_N], centroids_CKw)
    codes_NC[~is_head_N] = nearest(rows_ND[~is_head_N], centroids_CKw[:, :num_tail_codes])
    return codes_NC


def nearest(rows_ND: Tensor, centroids_CKw: Tensor) -> Tensor:
    """For each part of each row the nearest centroid, int64 [N, C].

    |w - c|**2 is compared as |c|**2 - 2 w c (|w|**2 is the same for all centroids), by one matrix product for all
    codebooks and some rows at a time, so that the scores stay in the processor's cache. In double precision: the two
    forms then agree but for exact ties, and mixed precision leaves the codes alone.
    """
    num_codebooks, num_codes, width = centroids_CKw.shape
    parts_CNw = rows_ND.detach().view(-1, num_codebooks, width).transpose(0, 1)
    centroids_CKw = centroids_CKw.detach().double()
    norms_C1K, centroids_CwK = centroids_CKw.square().sum(2)[:, None, :], centroids_CKw.transpose(1, 2)
    codes_CN = torch.empty(parts_CNw.shape[:2], dtype=torch.int64, device=rows_ND.device)
    size = max(1, _SCORES_PER_CHUNK // (num_codebooks * num_codes))
    for start in range(0, parts_CNw.shape[1], size):
        parts_Cnw = parts_CNw[:, start : start + size].double()
        scores_CnK = torch.baddbmm(norms_C1K, parts_Cnw, centroids_CwK, alpha=-2)
        codes_CN[:, start : start + size] = _argmin(scores_CnK)
    return codes_CN.T.contiguous()


def _argmin(values: Tensor) -> Tensor:
    """The first place of the least value along the last dim; NumPy's takes an eighth of torch's time on a CPU."""
    if values.device.type != "cpu":
        return values.argmin(-1)
    return torch.from_numpy(values.numpy().argmin(-1))


def decode(centroids_CKw: Tensor, codes_NC: Tensor) -> Tensor:
    """Centroids of codes, side by side: [N, D]."""
    books_C = torch.arange(centroids_CKw.shape[0], device=codes_NC.device)
    return centroids_CKw[books_C, codes_NC].flatten(1)
