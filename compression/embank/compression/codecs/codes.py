"""Product codes: a row is cut into C parts, each held as the number of its nearest centroid (`dpq`, `mgqe`).

Legend: K centroids of a codebook, w columns of a part.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from embank.compression.parts.bits import code_bits, pack_values, picked, read_values
from embank.tables import Coded, Held, encode
from embank.tables.serving.codecs.base import MIN_NUMBERS
from embank.tables.serving.codecs.composite import Composite
from embank.tables.serving.codecs.joined import Joined, joint_or_each, place_of

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

    def joint_place(self) -> Hashable | None:
        if not self.num_rows or not self.centroids.numel():
            return None
        has_parts = self.num_head > 0, self.num_head < self.num_rows
        bits = self.head_bits if has_parts[0] else 0, self.tail_bits if has_parts[1] else 0
        memory = self.head.untyped_storage().data_ptr(), self.tail.untyped_storage().data_ptr()
        return self.centroids.shape, place_of(self.centroids.flatten(0, 1)), bits, memory

    def num_joint_rows(self) -> int:
        return self.num_rows

    @classmethod
    def joined(cls, matrices: Sequence[Self]) -> Callable[[Tensor], Tensor]:
        """As `take`, the centroids numbered over the codebooks of all matrices."""
        one = matrices[0]
        num_books, num_codes, width = one.centroids.shape
        centroids = Joined([matrix.centroids.flatten(0, 1) for matrix in matrices])
        books_KC = centroids.first_K1 + torch.arange(0, num_books * num_codes, num_codes)
        head_K1 = torch.tensor([[matrix.num_head] for matrix in matrices])
        head, tail = (
            _Streams([getattr(matrix, name) for matrix in matrices], bits=bits, num_books=num_books)
            for name, bits in (("head", one.head_bits), ("tail", one.tail_bits))
        )
        has_head, has_tail = one.num_head > 0, one.num_head < one.num_rows

        def take(rows_KB: Tensor) -> Tensor:
            if not has_tail:
                codes_BKC = head(rows_KB)
            elif not has_head:
                codes_BKC = tail(rows_KB)
            else:
                tail_BKC, head_BKC = tail((rows_KB - head_K1).clamp(min=0)), head(rows_KB.minimum(head_K1 - 1))
                codes_BKC = torch.where((rows_KB < head_K1).t().unsqueeze(2), head_BKC, tail_BKC)
            numbers_M = (codes_BKC + books_KC).flatten()
            return centroids.rows.index_select(0, numbers_M).view(-1, num_books * width)

        return joint_or_each(take, [matrix.take for matrix in matrices])

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


class _Streams:
    """Codes of several matrices, in one piece of memory.

    Args:
        streams: of each matrix.
        bits: of a code.
        num_books: codes of a row.
    """

    def __init__(self, streams: Sequence[Tensor], *, bits: int, num_books: int) -> None:
        joined = Joined([stream.unsqueeze(1) for stream in streams])
        self.stream, self.first_K1, self.bits = joined.rows.flatten(), joined.first_K1, bits
        self.num_books, self.columns_C = num_books, torch.arange(num_books)

    def __call__(self, rows_KB: Tensor) -> Tensor:
        """Codes [B, K, C] of rows [K, B]."""
        places_BKC = rows_KB.t().unsqueeze(2) * self.num_books + self.columns_C
        return read_values(self.stream, places_BKC, bits=self.bits, first_byte=self.first_K1)


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

    def joint_place(self) -> Hashable | None:
        return None

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
