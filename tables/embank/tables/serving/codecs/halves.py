"""Rows in 16-bit floating point: `fp16` (11 bits of precision, up to 65,504) and `bf16` (8 bits, the range of fp32).

Source: IEEE 754-2008 binary16; Kalamkar et al., "A study of bfloat16 for deep learning training" (arXiv:1905.12322).
"""

from typing import ClassVar, Self

import torch
from torch import Tensor

from embank.tables.errors import ConfigError
from embank.tables.serving.codecs.float_rows import FloatRows


class HalfRows(FloatRows):
    """Rows cast to a type of 16 bits, without padding."""

    dtype: ClassVar[torch.dtype]
    larger: ClassVar[str]
    """Codecs of larger numbers."""

    def __init__(self, rows_RD: Tensor) -> None:
        super().__init__()
        rows = rows_RD.detach().to(self.dtype)
        if rows.numel() and not bool(torch.stack(rows.aminmax()).isfinite().all()):
            raise ConfigError(
                f"rows reach {float(rows_RD.abs().max()):.4g}, and {str(self.dtype).removeprefix('torch.')} holds "
                f"numbers up to {torch.finfo(self.dtype).max:.5g}; use codec {self.larger}"
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

    dtype, larger = torch.float16, "'fp32' or 'bf16'"


class Bf16(HalfRows):
    """16-bit brain floats: half the bytes, 8 bits of precision, numbers as large as fp32 has them.

    Example:
        >>> Bf16.encode(torch.tensor([[1e30, 1.0]])).take(torch.tensor([0]))
        tensor([[1.0003e+30, 1.0000e+00]])
    """

    dtype, larger = torch.bfloat16, "'fp32'"
