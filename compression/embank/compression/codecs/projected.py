"""Rows as sums of a few directions, what is held of each row by another codec: `pca`, `lowrank`.

`pca8+int4` holds 8 columns of each row in 4 bits. Fewer directions cost more than fewer bits where a table's columns
are all in use, as after training they are; vectors of a language model have directions to spare.

Source: Huerga-Pérez et al., "Optimization of embeddings storage for RAG systems using quantization and dimensionality
reduction techniques" (arXiv:2505.00105): PCA, then 8-bit floats; Eckart and Young, "The approximation of one matrix by
another of lower rank" (Psychometrika 1, 1936): the best W directions are the first W right singular vectors. They are
those of at most 262,144 rows, spread evenly.

Legend: W directions.
"""

from typing import ClassVar, Self

import torch
from torch import Tensor

from embank.tables import encode
from embank.tables.serving.codecs.chunks import intermediate, row_chunks, spread
from embank.tables.serving.codecs.composite import Composite
from embank.tables.serving.codecs.registry import named_codec

_SAMPLE = 1 << 18


class DirectionRows(Composite):
    """Coordinates of each row, coded, and the directions and their origin in fp32.

    Args:
        rows_RD: fp32.
        number: directions; at most R or D are kept, and by default a share of D.
        inner: codec of the coordinates.
    """

    arguments = ("number", "inner")
    default_share: ClassVar[float]
    is_centred: ClassVar[bool]
    directions: Tensor
    origin: Tensor

    def __init__(self, rows_RD: Tensor, *, number: int | None, inner: str) -> None:
        super().__init__()
        rows_RD = rows_RD.detach()
        dim = rows_RD.shape[1]
        sample = spread(rows_RD, num_rows=_SAMPLE)
        origin_D = _mean(sample) if self.is_centred else torch.zeros(dim, dtype=torch.float64)
        directions_WD = _directions(sample, origin_D, number=self.width_of(len(rows_RD), dim, number))
        coordinates_RW = intermediate(len(rows_RD), len(directions_WD))
        start = 0
        for chunk in row_chunks(rows_RD):
            coordinates_RW[start : start + len(chunk)] = ((chunk.double() - origin_D) @ directions_WD.T).float()
            start += len(chunk)
        self.hold("coordinates", encode(coordinates_RW, codec=inner))
        self.register_buffer("directions", directions_WD.float())
        if self.is_centred:
            self.register_buffer("origin", origin_D.float())

    @classmethod
    def width_of(cls, num_rows: int, dim: int, number: int | None) -> int:
        """Columns of the coordinates of so many rows."""
        return min(max(1, num_rows), dim, number or max(1, round(dim * cls.default_share)))

    @classmethod
    def encode(cls, rows_RD: Tensor, *, number: int | None = None, inner: str = "fp32") -> Self:
        return cls(rows_RD, number=number, inner=inner)

    @classmethod
    def nbytes_of(cls, num_rows: int, dim: int, *, number: int | None = None, inner: str = "fp32") -> int:
        width = cls.width_of(num_rows, dim, number)
        return named_codec(inner).nbytes_of(num_rows, width) + 4 * width * dim + (4 * dim if cls.is_centred else 0)

    def take(self, rows_N: Tensor) -> Tensor:
        rows_ND = self.part("coordinates").take(rows_N) @ self.directions
        return rows_ND + self.origin if self.is_centred else rows_ND


class PcaRows(DirectionRows):
    """Principal components, half as many as columns, or a number of them, each row's held by another codec.

    Example:
        >>> rows_RD = torch.tensor([[1.0, 2.0], [2.0, 4.0], [4.0, 8.0]])  # on a line
        >>> coded = encode(rows_RD, codec="pca1")
        >>> torch.allclose(coded.take(torch.arange(3)), rows_RD), coded.nbytes()
        (True, 28)
    """

    default_share = 1 / 2
    is_centred = True


class LowRankRows(DirectionRows):
    """A product of two matrices, of a quarter as many columns as the rows, or a number; another codec holds the first.

    Example:
        >>> rows_RD = torch.tensor([[1.0, 2.0], [2.0, 4.0], [4.0, 8.0]])
        >>> coded = encode(rows_RD, codec="lowrank1+fp16")
        >>> torch.allclose(coded.take(torch.arange(3)), rows_RD, rtol=1e-3), coded.nbytes()
        (True, 14)
    """

    default_share = 1 / 4
    is_centred = False


def _mean(rows_RD: Tensor) -> Tensor:
    sums_D = torch.zeros(rows_RD.shape[1], dtype=torch.float64)
    for chunk in row_chunks(rows_RD):
        sums_D += chunk.double().sum(0)
    return sums_D / max(1, len(rows_RD))


def _directions(rows_RD: Tensor, origin_D: Tensor, *, number: int) -> Tensor:
    """The first right singular vectors of the rows from an origin, fp64 [number, D], each with its largest entry
    positive: vectors of either sign would do, and what is encoded twice must be the same."""
    num_rows, dim = rows_RD.shape
    if not num_rows:
        return torch.eye(number, dim, dtype=torch.float64)
    if num_rows < dim:
        vectors_DD = torch.linalg.svd(rows_RD.double() - origin_D, full_matrices=False).Vh.T
    else:
        vectors_DD = _gram_vectors(rows_RD, origin_D)
    directions_WD = vectors_DD[:, :number].T
    largest_W1 = directions_WD.abs().argmax(1, keepdim=True)
    signed_WD: Tensor = (directions_WD * directions_WD.gather(1, largest_W1).sign()).contiguous()
    return signed_WD


def _gram_vectors(rows_RD: Tensor, origin_D: Tensor) -> Tensor:
    """Right singular vectors [D, D], from the products of columns, which are summed some rows at a time."""
    dim = rows_RD.shape[1]
    gram_DD = torch.zeros(dim, dim, dtype=torch.float64)
    for chunk in row_chunks(rows_RD):
        centred = chunk.double() - origin_D
        gram_DD += centred.T @ centred
    vectors_DD: Tensor = torch.linalg.eigh(gram_DD).eigenvectors
    return vectors_DD.flip(1)  # their values ascend
