"""Product quantisation of trained rows: `pq`, and `opq` after a rotation.

A row is cut into C parts of two columns, each held as the number of its nearest of 16 centroids: 2 bits a number. A
number in the name is the number of parts. Methods `dpq` and `mgqe` train through such codes and have a codec of their
own, whose form this one shares.

Source: Jégou et al., "Product quantization for nearest neighbor search" (TPAMI 2011), section II; Ge et al., "Optimized
product quantization" (CVPR 2013), sections 3.2 (the rotation to begin with: principal directions, dealt to the parts so
that all have as much to code; here none where that loses less) and 3.1 (rotation and codebooks in turn). Centroids are
those of k-means on at most 65,536 rows, spread evenly, of dims above 256 fewer.

Legend: C codebooks, K centroids of each, w columns of a part.
"""

from typing import Self

import torch
from torch import Tensor

from embank.compression.codecs.codes import CodedRows, decode, nearest
from embank.compression.parts.bits import code_bits, packed_nbytes
from embank.tables import Held
from embank.tables.ids.hashing import generator_of
from embank.tables.serving.codecs.chunks import intermediate, row_chunks, spread
from embank.tables.serving.codecs.composite import Composite

NUM_CODES = 16
_SAMPLE, _SAMPLE_NUMBERS = 1 << 16, 1 << 24
"""Rows, and numbers of them: 8,192 rows of dim 2,048 are plenty for 16 centroids."""
_STEPS = 20
_TURNS, _STEPS_A_TURN = 10, 3
_WIDE, _WIDE_TURNS = 256, 2
_LEAST_VARIANCE = 1e-12
"""As a share of the largest: less counts as so much."""


class ProductRows(CodedRows):
    """Product codes of 4 bits for each two columns, and 16 centroids a codebook: .06 of the bytes at dim 16.

    Example:
        >>> rows_RD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> coded = ProductRows.encode(rows_RD)
        >>> coded.take(torch.arange(3)).tolist(), ProductRows.nbytes_of(1000, 16) / (4 * 1000 * 16)
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], 0.0785)
    """

    arguments = ("number",)

    @classmethod
    def encode(cls, rows_RD: Tensor, *, number: int | None = None) -> Self:
        rows_RD = rows_RD.detach()
        centroids_CKw = k_means(_sample(rows_RD), first_centroids(rows_RD, number=number), num_steps=_STEPS)
        return cls(rows_RD, centroids_CKw, num_head=len(rows_RD), num_tail_codes=centroids_CKw.shape[1])

    @classmethod
    def nbytes_of(cls, num_rows: int, dim: int, *, number: int | None = None) -> int:
        num_codes = _num_codes(num_rows)
        num_values = num_rows * num_codebooks(dim, number)
        return packed_nbytes(num_values, code_bits(num_codes)) + 4 * num_codes * dim


class RotatedProductRows(Composite):
    """Product codes of rotated rows, and the rotation, fp32 [D, D].

    Example:
        >>> rows_RD = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)).cumsum(1)
        >>> coded, plain = RotatedProductRows.encode(rows_RD), ProductRows.encode(rows_RD)
        >>> ids = torch.arange(2000)
        >>> float((coded.take(ids) - rows_RD).norm()) < float((plain.take(ids) - rows_RD).norm())
        True
    """

    held = Held(facts=("parts",))
    arguments = ("number",)
    rotation: Tensor

    def __init__(self, rows_RD: Tensor, *, number: int | None) -> None:
        super().__init__()
        rows_RD = rows_RD.detach()
        sample, dim = _sample(rows_RD), rows_RD.shape[1]
        rotation_DD, centroids_CKw = _start(sample, number=number)
        for _ in range(_TURNS if dim <= _WIDE else _WIDE_TURNS):
            rotated = sample @ rotation_DD
            centroids_CKw = k_means(rotated, centroids_CKw, num_steps=_STEPS_A_TURN)
            decoded = decode(centroids_CKw, nearest(rotated, centroids_CKw))
            left, _, right = torch.linalg.svd(sample.double().T @ decoded.double())
            rotation_DD = (left @ right).float()
        centroids_CKw = k_means(sample @ rotation_DD, centroids_CKw, num_steps=_STEPS)
        rotated_RD, start = intermediate(*rows_RD.shape), 0
        for chunk in row_chunks(rows_RD):
            torch.mm(chunk, rotation_DD, out=rotated_RD[start : start + len(chunk)])
            start += len(chunk)
        codes = ProductRows(rotated_RD, centroids_CKw, num_head=len(rows_RD), num_tail_codes=centroids_CKw.shape[1])
        self.hold("codes", codes)
        self.register_buffer("rotation", rotation_DD.T.contiguous())

    @classmethod
    def encode(cls, rows_RD: Tensor, *, number: int | None = None) -> Self:
        return cls(rows_RD, number=number)

    @classmethod
    def nbytes_of(cls, num_rows: int, dim: int, *, number: int | None = None) -> int:
        return ProductRows.nbytes_of(num_rows, dim, number=number) + 4 * dim * dim

    def take(self, rows_N: Tensor) -> Tensor:
        return self.part("codes").take(rows_N) @ self.rotation


def num_codebooks(dim: int, number: int | None) -> int:
    """Parts of a row: of two columns or the next width that divides it; or the largest divisor up to a number.

    Example:
        >>> [num_codebooks(dim, None) for dim in (1, 3, 6, 16)], num_codebooks(16, 5)
        ([1, 1, 3, 8], 4)
    """
    divisors = [count for count in range(1, dim + 1) if dim % count == 0]
    return max((count for count in divisors if count <= (number or dim // 2)), default=1)


def _num_codes(num_rows: int) -> int:
    return min(NUM_CODES, max(1, num_rows))


def _sample(rows_RD: Tensor) -> Tensor:
    return spread(rows_RD, num_rows=min(_SAMPLE, _SAMPLE_NUMBERS // max(1, rows_RD.shape[1])))


def first_centroids(rows_RD: Tensor, *, number: int | None) -> Tensor:
    """Parts of some rows, [C, K, w], to begin k-means with: distinct rows, drawn alike every time."""
    num_rows, dim = rows_RD.shape
    books, num_codes = num_codebooks(dim, number), _num_codes(num_rows)
    if not num_rows:
        return torch.zeros(books, num_codes, dim // books)
    drawn = torch.randperm(num_rows, generator=generator_of(0, "product quantisation"))[:num_codes]
    return rows_RD[drawn].view(num_codes, books, -1).transpose(0, 1).contiguous()


def _start(sample: Tensor, *, number: int | None) -> tuple[Tensor, Tensor]:
    """A rotation and codebooks to begin with: the principal directions, or the columns as they are where these lose
    less, as they may where parts are so narrow that they can't share what there is to code."""
    dim = sample.shape[1]
    found = []
    for rotation_DD in (first_rotation(sample, num_books=num_codebooks(dim, number)), torch.eye(dim)):
        rotated = sample @ rotation_DD
        centroids_CKw = k_means(rotated, first_centroids(rotated, number=number), num_steps=_STEPS_A_TURN)
        lost = sum(
            float((decode(centroids_CKw, nearest(chunk, centroids_CKw)) - chunk).double().square().sum())
            for chunk in row_chunks(rotated)
        )
        found.append((lost, rotation_DD, centroids_CKw))
    _, rotation_DD, centroids_CKw = min(found, key=lambda one: one[0])
    return rotation_DD, centroids_CKw


def first_rotation(rows_RD: Tensor, *, num_books: int) -> Tensor:
    """Principal directions as columns, [D, D]: from the largest variance down, each goes to the part that is not full
    and has the smallest product of variances."""
    dim = rows_RD.shape[1]
    centred = rows_RD.double() - rows_RD.double().mean(0) if len(rows_RD) else rows_RD.double()
    variances_D, vectors_DD = torch.linalg.eigh(centred.T @ centred)
    sizes_D = (variances_D / (variances_D[-1] * _LEAST_VARIANCE)).clamp(min=1).nan_to_num(1.0).log()
    parts: list[list[int]] = [[] for _ in range(num_books)]
    sums = [0.0] * num_books
    for column in reversed(range(dim)):  # variances ascend
        part = min((p for p in range(num_books) if len(parts[p]) < dim // num_books), key=lambda p: (sums[p], p))
        parts[part].append(column)
        sums[part] += float(sizes_D[column])
    rotation_DD: Tensor = vectors_DD[:, [column for part in parts for column in part]].float()
    return rotation_DD


def k_means(rows_RD: Tensor, centroids_CKw: Tensor, *, num_steps: int) -> Tensor:
    """Lloyd's algorithm in every part. A centroid that nothing is nearest to moves to the part that is farthest from
    its own.

    Args:
        rows_RD: fp32.
        centroids_CKw: to begin with.
        num_steps: at most; fewer once nothing moves.
    """
    num_books, num_codes, width = centroids_CKw.shape
    parts_RCw = rows_RD.reshape(len(rows_RD), num_books, width)
    firsts_C = torch.arange(0, num_books * num_codes, num_codes)
    for _ in range(num_steps if len(rows_RD) else 0):
        codes_RC = nearest(rows_RD, centroids_CKw)
        places = (codes_RC + firsts_C).reshape(-1)
        sums = torch.zeros(num_books * num_codes, width, dtype=torch.float64)
        sums.index_add_(0, places, parts_RCw.reshape(-1, width).double())
        counts = torch.bincount(places, minlength=len(sums))
        means = (sums / counts.clamp(min=1)[:, None]).float().view(centroids_CKw.shape)
        moved = torch.where((counts > 0).view(num_books, num_codes, 1), means, centroids_CKw)
        for book, code in (counts.view(num_books, num_codes) == 0).nonzero().tolist():
            distances_R = (parts_RCw[:, book] - moved[book, codes_RC[:, book]]).square().sum(1)
            taken = int(distances_R.argmax())
            if distances_R[taken] > 0:
                moved[book, code] = parts_RCw[taken, book]
                codes_RC[taken, book] = code
        if torch.equal(moved, centroids_CKw):
            break
        centroids_CKw = moved
    return centroids_CKw
