"""Rows by rank: the first in more bits than the last, `bits_8_4_2`.

Ids are ranked by frequency when data is prepared, so the first rows of a table are those that are looked up most.

Source: the idea is that of mixed-precision tables whose precision follows how often a row is met (Yang et al.,
"Mixed-precision embedding using a cache", arXiv:2010.11305); there rows move between two precisions while a model
trains, here ranks decide once.
"""

from typing import ClassVar, Self

import torch
from torch import Tensor

from embank.tables import Held, encode
from embank.tables.serving.codecs.composite import Composite
from embank.tables.serving.codecs.registry import named_codec


class RankedBits(Composite):
    """The first eighth of the rows in 8 bits, the next three in 4, the second half in 2.

    Example:
        >>> rows_RD = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0))
        >>> coded = RankedBits.encode(rows_RD)
        >>> coded.nbytes() / (4 * 4096 * 16)
        0.125
        >>> loss_R = (coded.take(torch.arange(4096)) - rows_RD).square().mean(1).sqrt()
        >>> [round(float(part.mean()), 2) for part in loss_R.split([512, 1536, 2048])]
        [0.01, 0.08, 0.32]
    """

    held = Held(facts=("parts", "bounds"))
    shares: ClassVar[tuple[tuple[str, float], ...]] = (("int8", 1 / 8), ("int4", 1 / 2), ("int2", 1.0))
    """Codecs, each up to a share of the rows."""

    def __init__(self, rows_RD: Tensor) -> None:
        super().__init__()
        self.bounds = _bounds(len(rows_RD))
        for (codec, _), start, end in zip(self.shares, self.bounds, self.bounds[1:], strict=False):
            self.hold(codec, encode(rows_RD[start:end], codec=codec))

    @classmethod
    def encode(cls, rows_RD: Tensor) -> Self:
        return cls(rows_RD)

    @classmethod
    def nbytes_of(cls, num_rows: int, dim: int) -> int:
        bounds = _bounds(num_rows)
        sizes = [end - start for start, end in zip(bounds, bounds[1:], strict=False)]
        return sum(named_codec(codec).nbytes_of(size, dim) for (codec, _), size in zip(cls.shares, sizes, strict=True))

    def take(self, rows_N: Tensor) -> Tensor:
        # All parts are read for all rows and one is chosen, as a branch on data could not be exported.
        bounds = self.bounds
        taken_ND = self.part(self.shares[0][0]).take(rows_N.clamp(max=max(0, bounds[1] - 1)))
        for (codec, _), start, end in zip(self.shares[1:], bounds[1:], bounds[2:], strict=False):
            if end > start:
                own_ND = self.part(codec).take((rows_N - start).clamp(min=0, max=end - start - 1))
                taken_ND = torch.where((rows_N < start).unsqueeze(1), taken_ND, own_ND)
        return taken_ND


def _bounds(num_rows: int) -> list[int]:
    """Where each part begins, and the end. A part before the last has a row if there is one."""
    return [0, *(-int(-num_rows * share // 1) for _, share in RankedBits.shares)]
