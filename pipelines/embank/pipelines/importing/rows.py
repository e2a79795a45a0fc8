"""The rows of a source in the order of our ids, as one matrix that is mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from embank.pipelines.importing.matching import Matching
from embank.pipelines.reporting import Phase, Reporter
from embank.pipelines.vectors.files import NUMBERS_PER_CHUNK, VectorFile
from embank.pipelines.vectors.matrix import as_matrix, mapped_file


def matched_rows(vectors: VectorFile, matching: Matching, scratch: Path, *, reporter: Reporter) -> Tensor:
    """The row of each of our ids, fp32 [N, D]; zeros where the source has none.

    Args:
        vectors: the source's rows.
        matching: which row each id gets.
        scratch: the beginning of the names of files that are written where the source holds its rows otherwise.
        reporter: of the reading.

    Raises:
        DataError: rows that are missing, of unlike lengths, or not finite.
    """
    rows_RD = as_matrix(vectors, scratch.with_suffix(".read"), reporter=reporter)
    if matching.rows_N is None:
        return rows_RD[: matching.num_ids]
    phase = Phase(reporter, f"sorting '{matching.table}'", total=matching.num_ids, unit="rows")
    size = max(1, NUMBERS_PER_CHUNK // vectors.dim)
    target = scratch.with_suffix(".sorted")
    with target.open("wb") as file:
        for start in range(0, matching.num_ids, size):
            rows_r = torch.from_numpy(matching.rows_N[start : start + size])
            chunk_rD = rows_RD[rows_r.clamp(min=0)]
            chunk_rD[rows_r < 0] = 0
            file.write(np.ascontiguousarray(chunk_rD.numpy()).data)
            phase.advance(len(chunk_rD), rows=len(chunk_rD))
    return mapped_file(target, torch.float32, (matching.num_ids, vectors.dim))
