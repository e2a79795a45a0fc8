"""Rows in 16-bit floating point: `fp16` (11 bits of precision, up to 65,504) and `bf16` (8 bits, the range of fp32).

Source: IEEE 754-2008 binary16; Kalamkar et al., "A study of bfloat16 for deep learning training" (arXiv:1905.12322).
"""

from typing import ClassVar, Self

import torch
from torch import Tensor

from embank.tables.errors import ConfigError
from embank.tables.serving.codecs.float_rows import FloatRows


def wider_than_fp16(largest: float) -> str:
    """Codecs that hold numbers beyond fp16, for a message: bf16 ends a little before float32 does.

    Args:
        largest: the largest of them.

    Example:
        >>> wider_than_fp16(1e6), wider_than_fp16(3.4e38)
        ("'fp32' or 'bf16'", "'fp32'")
    """
    return "'fp32' or 'bf16'" if torch.tensor(largest).bfloat16().isfinite() else "'fp32'"


class HalfRows(FloatRows):
    """Rows cast to a type of 16 bits, without padding."""

    dtype: ClassVar[torch.dtype]

    def __init__(self, rows_RD: Tensor) -> None:
        super().__init__()
        rows = rows_RD.detach().to(self.dtype)
        if rows.numel() and not bool(torch.stack(rows.aminmax()).isfinite().all()):
            largest = float(rows_RD.abs().max())
            raise ConfigError(
                f"rows reach {largest:.4g}, and {str(self.dtype).removeprefix('torch.')} holds numbers up to "
                f"{torch.finfo(self.dtype).max:.5g}; use codec {wider_than_fp16(largest)}"
            )
        self.register_buffer("rows", rows)

    @classmethod
    def encode(cls, rows_RD: Tensor) -> Self:
        return cls(rows_RD)

    @classmethod
    def nbytes_of(cls, num_rows: int, dim: int) -> int:
        return 2 * num_rows * dim

    def take(self, rows_N: Tensor) -> Tensor:
        return self.rows.index_select(0, rows_N).float()


class Fp16(HalfRows):
    """16-bit floats of the IEEE: half the bytes, 11 bits of precision, numbers up to 65,504.

    Example:
        >>> coded = Fp16.encode(torch.tensor([[1.0, 0.1]]))
        >>> coded.take(torch.tensor([0])), coded.nbytes()
        (tensor([[1.0000, 0.1000]]), 4)
    """

    dtype = torch.float16


class Bf16(HalfRows):
    """16-bit brain floats: half the bytes, 8 bits of precision, numbers as large as fp32 has them.

    Example:
        >>> Bf16.encode(torch.tensor([[1e30, 1.0]])).take(torch.tensor([0]))
        tensor([[1.0003e+30, 1.0000e+00]])
    """

    dtype = torch.bfloat16
