"""All vectors of a source as one fp32 matrix that is mapped: where they lie, or from a file beside the output."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from embank.pipelines.reporting import Phase, Reporter
from embank.pipelines.vectors.files import VectorFile

_SMALLEST, _LARGEST = 1e-16, 1e16
"""Numbers whose squares, and sums of them, are well within fp32."""


def as_matrix(source: VectorFile, scratch: Path, *, reporter: Reporter) -> Tensor:
    """All vectors, fp32 [N, D], each looked at once. Whatever their number, they take no memory that the system can't
    have back: their pages are those of a file.

    Args:
        source: of the vectors.
        scratch: a file that is written where the source holds other numbers than fp32.
        reporter: of the reading.

    Raises:
        DataError: vectors that are missing, of unlike lengths, not finite, or whose lengths fp32 can't tell.
    """
    phase = Phase(reporter, "reading", total=source.num_rows, unit="rows")
    rows_RD, largest, start = source.mapped(), 0.0, 0
    with nullcontext() if rows_RD is not None else scratch.open("wb") as file:
        for chunk in source.chunks():
            largest = max(largest, _largest(source, chunk, start=start))
            start += len(chunk)
            if file is not None:
                file.write(chunk.contiguous().numpy().data)
            phase.advance(len(chunk), rows=len(chunk))
    if 0 < largest < _SMALLEST:
        raise source.refused(
            f"numbers reach {largest:.4g} at most, and so the lengths of the vectors vanish in fp32; scale them up"
        )
    return mapped_file(scratch, torch.float32, (source.num_rows, source.dim)) if rows_RD is None else rows_RD


def _largest(source: VectorFile, chunk: Tensor, *, start: int) -> float:
    """The largest number of a chunk, by its size.

    Raises:
        DataError: so large that the length of its vector is beyond fp32; neighbours can't be told then.
    """
    value = float(torch.stack(chunk.aminmax()).abs().max()) if chunk.numel() else 0.0
    if value > _LARGEST:
        row, place = (chunk.abs() > _LARGEST).nonzero()[0].tolist()
        raise source.refused(
            f"number {place} is {float(chunk[row, place]):.4g}, so that the vector's length is beyond fp32; scale the "
            "vectors down",
            row=start + row,
        )
    return value


def mapped_file(path: Path, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A file's bytes as a tensor, mapped; what is written to it stays in this process."""
    size = torch.Size(shape).numel()
    if not size:
        return torch.empty(*shape, dtype=dtype)
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(*shape)
