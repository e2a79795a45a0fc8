"""Rows in 8-bit floating point, scaled by one number for the whole matrix: `fp8_e4m3` (4 bits of precision) and
`fp8_e5m2` (3 bits, numbers 2**30 apart).

Source: Micikevicius et al., "FP8 formats for deep learning" (arXiv:2209.05433), section 3. E4M3 has no infinity there
and here. The scale makes the largest number of the matrix the format's largest, as in section 4.
"""

from functools import cache
from typing import ClassVar, Self

import torch
from torch import Tensor

from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.codecs.chunks import row_chunks


@cache
def _values(dtype: torch.dtype) -> tuple[float, ...]:
    """What each of the 256 codes stands for; those that are not finite, which no row has, for 0."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return tuple(codes.nan_to_num(0.0, 0.0, 0.0).tolist())


class Float8Rows(Coded):
    """Codes of 8 bits and one scale.

    A code is looked up among 256 numbers, since exporters can't see bits as a float.
    """

    dtype: ClassVar[torch.dtype]
    codes: Tensor
    scale: Tensor

    def __init__(self, rows_RD: Tensor) -> None:
        super().__init__()
        rows_RD = rows_RD.detach()
        info = torch.finfo(self.dtype)
        largest = max((float(chunk.abs().max()) for chunk in row_chunks(rows_RD) if chunk.numel()), default=0.0)
        scale = torch.tensor(largest / info.max or 1.0).clamp(min=torch.finfo(torch.float32).tiny)
        codes = torch.empty(rows_RD.shape, dtype=torch.uint8)
        for own, chunk in zip(row_chunks(codes), row_chunks(rows_RD), strict=True):
            own.copy_((chunk / scale).clamp(-info.max, info.max).to(self.dtype).view(torch.uint8))
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    @classmethod
    def encode(cls, rows_RD: Tensor) -> Self:
        return cls(rows_RD)

    @classmethod
    def nbytes_of(cls, num_rows: int, dim: int) -> int:
        return num_rows * dim + 4

    def take(self, rows_N: Tensor) -> Tensor:
        values = torch.tensor(_values(self.dtype), device=rows_N.device)
        codes_ND = self.codes.index_select(0, rows_N)
        return values.index_select(0, codes_ND.reshape(-1).int()).view(codes_ND.shape) * self.scale


class Fp8E4M3(Float8Rows):
    """8-bit floats, 4 bits of exponent: a quarter of the bytes, 4 bits of precision, one scale for all.

    Example:
        >>> coded = Fp8E4M3.encode(torch.tensor([[44.8, -1.0, 0.3]]))
        >>> coded.take(torch.tensor([0])), coded.nbytes()
        (tensor([[44.8000, -1.0000,  0.3000]]), 7)
    """

    dtype = torch.float8_e4m3fn


class Fp8E5M2(Float8Rows):
    """8-bit floats, 5 bits of exponent: a quarter of the bytes, 3 bits of precision, for rows of very unlike sizes.

    Example:
        >>> Fp8E5M2.encode(torch.tensor([[57344.0, -1.0, 0.3]])).take(torch.tensor([0]))
        tensor([[ 5.7344e+04, -1.0000e+00,  3.1250e-01]])
    """

    dtype = torch.float8_e5m2
