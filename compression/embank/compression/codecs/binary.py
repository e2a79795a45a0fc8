"""Rows as signs, the first of the numbers, each next of what the ones before left: `binary`.

Source: Gan et al., "Binary embedding-based retrieval at Tencent" (KDD 2023, arXiv:2302.08714), sections 3.1 (recurrent
binarisation) and 3.3 (symmetric distance). There a network learns the signs and level t weighs 2**-t; here signs are
those of what is left and a row's level weighs the mean size of that, the best weight for given signs, so that trained
rows need no further training.

Legend: L levels.
"""

from typing import Self

import torch
from torch import Tensor

from embank.compression.parts.bits import pack_values, packed_nbytes, picked, read_rows
from embank.tables import Coded, ConfigError, Held
from embank.tables.serving.codecs.chunks import row_chunks
from embank.tables.serving.codecs.halves import wider_than_fp16

_LEVELS = 2


class BinaryRows(Coded):
    """Signs in as many levels as its number says, 1 to 16, 2 by default, and an fp16 weight for each row and level.

    Example:
        >>> coded = BinaryRows.encode(torch.tensor([[3.0, -1.0, 1.0, -3.0]]))
        >>> coded.weights.tolist()  # 3 -1 1 -3 is 2 * (+-+-) and 1 * (++--)
        [[2.0, 1.0]]
        >>> coded.take(torch.tensor([0])), coded.nbytes()
        (tensor([[ 3., -1.,  1., -3.]]), 5)
    """

    held = Held(facts=("dim", "num_levels"), sizes=("dim", "num_levels"))
    arguments = ("number",)
    most_number = 16  # which take more bytes than fp16 has them, at any width
    signs: Tensor
    weights: Tensor

    def __init__(self, rows_RD: Tensor, *, num_levels: int) -> None:
        super().__init__()
        self.dim, self.num_levels = rows_RD.shape[1], num_levels
        streams, weights = [], []
        for chunk in row_chunks(rows_RD.detach(), multiple=8):  # whole bytes
            is_plus_rLD, weights_rL = _levels(chunk, num_levels=num_levels)
            streams.append(pack_values(is_plus_rLD, bits=1))
            weights.append(weights_rL)
        self.register_buffer("signs", torch.cat([torch.empty(0, dtype=torch.uint8), *streams]))
        self.register_buffer("weights", torch.cat([torch.empty(0, num_levels, dtype=torch.float16), *weights]))

    @classmethod
    def encode(cls, rows_RD: Tensor, *, number: int = _LEVELS) -> Self:
        return cls(rows_RD, num_levels=number)

    @classmethod
    def nbytes_of(cls, num_rows: int, dim: int, *, number: int = _LEVELS) -> int:
        return packed_nbytes(num_rows * dim * number, 1) + 2 * num_rows * number

    @classmethod
    def rows_per_block(cls, dim: int) -> int:
        return 8  # whole bytes

    def take(self, rows_N: Tensor) -> Tensor:
        signs_NLD = self._bits(rows_N).float() * 2 - 1
        return (signs_NLD * self.weights.index_select(0, rows_N).float().unsqueeze(2)).sum(1)

    def _bits(self, rows_N: Tensor) -> Tensor:
        """1 for a plus, [N, L, D]."""
        bits = read_rows(self.signs, rows_N, dim=self.dim * self.num_levels, bits=1)
        return bits.reshape(-1, self.num_levels, self.dim)

    def inner_products(self, rows_N: Tensor, rows_M: Tensor) -> Tensor:
        """Of rows with rows, [N, M], from their signs: the symmetric distance of the paper.

        Two levels of signs agree in all but as many columns as their exclusive or has ones.
        """
        ones = torch.tensor([value.bit_count() for value in range(256)])
        bytes_NLB, bytes_MLB = _as_bytes(self._bits(rows_N)), _as_bytes(self._bits(rows_M))
        products_NM = torch.zeros(len(rows_N), len(rows_M))
        for own in range(self.num_levels):
            for other in range(self.num_levels):
                unlike_NMB = bytes_NLB[:, None, own] ^ bytes_MLB[None, :, other]
                agreement_NM = self.dim - 2 * picked(ones, unlike_NMB.int()).sum(2)
                weights_N, weights_M = self.weights[rows_N, own].float(), self.weights[rows_M, other].float()
                products_NM += agreement_NM * weights_N[:, None] * weights_M
        return products_NM


def _levels(rows_rD: Tensor, *, num_levels: int) -> tuple[Tensor, Tensor]:
    """Signs [r, L, D] and weights fp16 [r, L].

    Raises:
        ConfigError: a weight is beyond fp16.
    """
    left_rD, signs, weights = rows_rD.clone(), [], []
    for _ in range(num_levels):
        is_plus_rD = left_rD >= 0
        weight_r = left_rD.abs().mean(1).half()
        left_rD -= torch.where(is_plus_rD, weight_r.float()[:, None], -weight_r.float()[:, None])
        signs.append(is_plus_rD)
        weights.append(weight_r)
    weights_rL = torch.stack(weights, dim=1)
    if not bool(weights_rL.isfinite().all()):
        largest = float(rows_rD.abs().max())
        raise ConfigError(
            f"rows reach {largest:.4g}, more than the fp16 weights of codec 'binary' hold; use "
            f"{wider_than_fp16(largest)}"
        )
    return torch.stack(signs, dim=1), weights_rL


def _as_bytes(bits_NLD: Tensor) -> Tensor:
    """Eight columns a byte, [N, L, B]; those that fill up the last one are 0."""
    padded = torch.nn.functional.pad(bits_NLD, (0, -bits_NLD.shape[2] % 8)).to(torch.uint8)
    shifts = torch.arange(8, dtype=torch.uint8)
    bytes_NLB: Tensor = (padded.view(*padded.shape[:2], -1, 8) << shifts).sum(3).to(torch.uint8)
    return bytes_NLB
