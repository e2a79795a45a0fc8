"""What became of an import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embank.pipelines.importing.matching import Matching
from embank.pipelines.reporting import Phase, Reporter
from embank.pipelines.vectors.files import NUMBERS_PER_CHUNK
from embank.tables.serving.table import PackedTable
from embank.tables.specs import TableSpec


@dataclass(frozen=True, kw_only=True)
class ImportedTable:
    """A table that was imported.

    Args:
        name: of the table.
        ids, dim: its size.
        rows: of the source's table.
        missing: ids that have no row there; they have zeros.
        surplus: rows that no id has.
        by: what rows were found by: "token", "id" or "row".
        method, codec: that hold it.
        nbytes: as it is served.
        error: of what is looked up, against the source's rows: norm of the difference / norm of the rows. 0 for exactly
            the same.
        max_difference: the largest of a number.
        has_optimizer_state: whether the state of its rows' optimizer was taken too.
    """

    name: str
    ids: int
    dim: int
    rows: int
    missing: int
    surplus: int
    by: str
    method: str
    codec: str
    nbytes: int
    error: float
    max_difference: float
    has_optimizer_state: bool = False


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import wrote.

    Args:
        out: the bundle, or the run.
        kind: of the source.
        path: of the source.
        tables: in order.
        initial: tables that the source has not, which keep their initial values.
        left: tables of the source that were left out.
        network: parameters of the network that were taken; 0 where it has its initial values.
        result: of a run of a whole model, what its result.json holds.
        config: whether a configuration was given, so that `out` is a run.
    """

    out: Path
    kind: str
    path: Path
    tables: Sequence[ImportedTable]
    initial: Sequence[str] = ()
    left: Sequence[str] = ()
    network: int = 0
    result: Mapping[str, Any] | None = None
    config: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values, without what belongs to a machine."""
        return {
            "from": self.kind,
            "file": self.path.name,
            "tables": [asdict(table) for table in self.tables],
            "initial": list(self.initial),
            "left": list(self.left),
            "network": self.network,
        }


@torch.no_grad()
def imported_table(
    spec: TableSpec,
    pack: PackedTable,
    rows_ND: Tensor,
    matching: Matching,
    *,
    codec: str,
    has_state: bool = False,
    reporter: Reporter,
) -> ImportedTable:
    """Compares what a table looks up to the rows that it was given."""
    square = norm = largest = 0.0
    phase = Phase(reporter, f"comparing '{spec.name}'", total=spec.num_embeddings, unit="rows")
    size = max(1, NUMBERS_PER_CHUNK // (4 * spec.embedding_dim))
    for start in range(0, spec.num_embeddings, size):
        wanted_rD = rows_ND[start : start + size]
        phase.advance(len(wanted_rD), rows=len(wanted_rD))
        kept = slice(None) if matching.rows_N is None else torch.from_numpy(matching.rows_N[start : start + size] >= 0)
        ids_r = torch.arange(start, start + len(wanted_rD))[kept]
        if not len(ids_r):
            continue
        difference_rD = pack.lookup(ids_r) - wanted_rD[kept]
        square += float(difference_rD.double().square().sum())
        norm += float(wanted_rD[kept].double().square().sum())
        largest = max(largest, float(difference_rD.abs().max()))
    return ImportedTable(
        name=spec.name,
        ids=spec.num_embeddings,
        dim=spec.embedding_dim,
        rows=matching.num_rows,
        missing=matching.num_missing,
        surplus=matching.num_surplus,
        by=matching.by,
        method=spec.method,
        codec=codec,
        nbytes=pack.nbytes(),
        error=(square / norm) ** 0.5 if norm else float(square > 0),
        max_difference=largest,
        has_optimizer_state=has_state,
    )
