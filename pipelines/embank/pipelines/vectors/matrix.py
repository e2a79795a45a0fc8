"""All vectors of a source as one fp32 matrix that is mapped: where they lie, or from a file beside the output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from embank.pipelines.reporting import Phase, Reporter
from embank.pipelines.vectors.files import VectorFile


def as_matrix(source: VectorFile, scratch: Path, *, reporter: Reporter) -> Tensor:
    """All vectors, fp32 [N, D], each looked at once. Whatever their number, they take no memory that the system can't
    have back: their pages are those of a file.

    Args:
        source: of the vectors.
        scratch: a file that is written where the source holds other numbers than fp32.
        reporter: of the reading.

    Raises:
        DataError: vectors that are missing, of unlike lengths, or not finite.
    """
    phase = Phase(reporter, "reading", total=source.num_rows, unit="rows")
    rows_RD = source.mapped()
    if rows_RD is not None:
        for chunk in source.chunks():
            phase.advance(len(chunk), rows=len(chunk))
        return rows_RD
    with scratch.open("wb") as file:
        for chunk in source.chunks():
            file.write(chunk.contiguous().numpy().data)
            phase.advance(len(chunk), rows=len(chunk))
    return mapped_file(scratch, torch.float32, (source.num_rows, source.dim))


def mapped_file(path: Path, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A file's bytes as a tensor, mapped; what is written to it stays in this process."""
    size = torch.Size(shape).numel()
    if not size:
        return torch.empty(*shape, dtype=dtype)
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(*shape)
