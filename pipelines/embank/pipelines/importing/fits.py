"""Tables of methods that have fewer numbers, fitted to the rows of a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from embank.pipelines.importing.matching import Matching
from embank.pipelines.reporting import Phase, Reporter
from embank.pipelines.vectors.files import NUMBERS_PER_CHUNK
from embank.tables import ConfigError, GivenRows, PackedTable, TableCollection, TableSpec, fit_tables, pack_collection
from embank.tables.collections.held_rows import writing
from embank.tables.collections.state import refuse_beyond
from embank.tables.rows.store_spec import ROW_DTYPES
from embank.tables.serving.export.decoded import largest_of

_CURE = "set rows.dtype to fp32"


def fitted_packs(
    specs: Sequence[TableSpec],
    rows: Mapping[str, Tensor],
    matchings: Mapping[str, Matching],
    *,
    codecs: Mapping[str, str],
    seed: int,
    reporter: Reporter,
) -> dict[str, PackedTable]:
    """The inference form of tables that were fitted to rows fp32 [N, D] of their ids."""
    tables = TableCollection(specs, seed=seed, backend="torch")
    tables = filled(tables, rows, matchings, reporter=reporter)
    collection = pack_collection(tables, codec={spec.name: codecs[spec.name] for spec in specs})
    return {spec.name: pack for spec, pack in collection.packed_tables()}


@torch.no_grad()
def filled(
    tables: TableCollection, rows: Mapping[str, Tensor], matchings: Mapping[str, Matching], *, reporter: Reporter
) -> TableCollection:
    """Tables with the rows of a source: plain ones take them, others are fitted. An id that the source has not gets
    zeros, and does not count in a fit.

    Args:
        tables: at the beginning of their methods' stages.
        rows: by table, fp32 [N, D]; tables that are not named stay as they are.
        matchings: of these tables.
        reporter: of the work.

    Returns:
        The tables in their last stage; others where they had one to go.

    Raises:
        ConfigError: a method can't be fitted, or rows in half precision can't hold the numbers.
    """
    for weights in tables.weights().values():
        for name, rows_ND in rows.items():
            refuse_beyond(rows_ND, weights.dtype, what=f"rows of table '{name}'", cure=_CURE)
            _refuse_next_to_nothing(weights.dtype, name, rows_ND)
        break  # all rows have one type
    given: dict[str, GivenRows] = {}
    for method in tables.built_methods():
        spec = method.spec
        if spec.name not in rows:
            continue
        if method.traits.is_plain:
            _take(tables, spec.name, rows[spec.name], reporter=reporter)
        else:
            given[spec.name] = GivenRows(
                ids=torch.arange(spec.num_embeddings),
                vectors=rows[spec.name],
                weights=_weights(spec, matchings[spec.name]),
            )
    phase = Phase(reporter, "fitting", total=max(1, len(given)), unit="tables")
    done, _ = fit_tables(tables, given)
    phase.advance(max(1, len(given)))
    return done


def _take(tables: TableCollection, name: str, rows_ND: Tensor, *, reporter: Reporter) -> None:
    phase = Phase(reporter, f"taking '{name}'", total=len(rows_ND), unit="rows")
    size = max(1, NUMBERS_PER_CHUNK // rows_ND.shape[1])
    with writing(tables):
        target = tables.weights()[name]
        for start in range(0, len(rows_ND), size):
            chunk_rD = rows_ND[start : start + size]
            target[start : start + size] = chunk_rD.to(target)
            phase.advance(len(chunk_rD), rows=len(chunk_rD))


def _refuse_next_to_nothing(dtype: torch.dtype, name: str, rows_ND: Tensor) -> None:
    """Raises ConfigError where rows of a type would hold next to nothing of all of a table's numbers."""
    largest, tiny = largest_of(rows_ND), torch.finfo(dtype).tiny
    if not 0 < largest < tiny:
        return
    kind = next(kind for kind, own in ROW_DTYPES.items() if own == dtype)
    raise ConfigError(
        f"rows of table '{name}' reach {largest:.4g} at most, and {kind} is exact from {tiny:.2g} on; {_CURE}"
    )


def _weights(spec: TableSpec, matching: Matching) -> Tensor | None:
    """How often each id was seen in training, where that is known; 0 for ids without a row."""
    if spec.counts is None and matching.rows_N is None:
        return None
    weights_N = torch.ones(spec.num_embeddings) if spec.counts is None else spec.counts.float().clamp(min=1)
    if matching.rows_N is not None:
        weights_N[torch.from_numpy(matching.rows_N < 0)] = 0
    return weights_N
