"""Tables made small from vectors that others have trained, without a training: `fit_tables`."""

from collections.abc import Mapping

import torch

from embank.tables.collections.given import GivenRows
from embank.tables.collections.importing import (
    ImportedRows,
    differences,
    find_all,
    import_all,
    refuse_too_large_vectors,
)
from embank.tables.collections.stages import AnyTables, advance
from embank.tables.method.fitting import Wanted
from embank.tables.method.schedule import is_last_stage


def fit_tables(tables: AnyTables, given: Mapping[str, GivenRows]) -> tuple[AnyTables, dict[str, ImportedRows]]:
    """Fits tables to vectors, in the stage that is served.

    Methods that search first (which entries, rows, blocks or widths to keep) choose by the vectors: what they would
    have trained in the stages before is given instead. The others are fitted as `Tables.import_rows` does it, and
    tables that share rows together.

    Args:
        tables: the collection, which is written to; where it has a stage to go, another one is returned in its place.
        given: vectors by table. Tables that are not named go through their stages as they are.

    Returns:
        The collection in its last stage, which can be packed, saved or trained on, and what became of the vectors of
        each table.

    Raises:
        ConfigError, DataError: see `Tables.import_rows`.

    Example:
        >>> spec = TableSpec(
        ...     name="item", num_embeddings=100, embedding_dim=8, feature_names=["item"], method="pep", budget=0.5
        ... )
        >>> vectors_ND = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> tables, report = fit_tables(
        ...     TableCollection([spec]), {"item": GivenRows(ids=torch.arange(100), vectors=vectors_ND)}
        ... )
        >>> tables.specs[0].stage, round(report["item"].error, 1)  # the largest half of the numbers is kept
        (1, 0.3)
    """
    while not all(is_last_stage(method) for method in tables.built_methods()):
        searching = {method.spec.name for method in tables.built_methods() if not is_last_stage(method)}
        found = find_all(tables, given)
        refuse_too_large_vectors(tables, found)  # before a stage of another table is written
        wanted = {name: own.wanted for name, own in found.items() if name in searching}
        import_all(tables, {name: own for name, own in given.items() if name in searching}, guides=True)
        tables = advance(tables, score=_Nearness(tables, wanted) if wanted else None)
    return tables, import_all(tables, given)


class _Nearness:
    """Scores tables by how near they are to vectors.

    Args:
        tables: while they search.
        wanted: by table.
    """

    def __init__(self, tables: AnyTables, wanted: Mapping[str, Wanted]) -> None:
        self.tables, self.wanted = tables, wanted

    def __call__(self, *, max_samples: int | None = None, share: float = 1.0) -> float:
        """Of a share as of all: a distance to vectors takes moments."""
        parts = {name: _some(own, max_samples) for name, own in self.wanted.items()}
        return -sum(
            differences(self.tables, name, part).weighted_square * len(self.wanted[name].ids_K) / len(part.ids_K)
            for name, part in parts.items()
        )


def _some(wanted: Wanted, max_samples: int | None) -> Wanted:
    """At most so many ids, spread evenly."""
    num = len(wanted.ids_K)
    if max_samples is None or num <= max_samples:
        return wanted
    chosen = torch.arange(max_samples) * num // max_samples
    return Wanted(ids_K=wanted.ids_K[chosen], vectors_KD=wanted.vectors_KD[chosen], weights_K=wanted.weights_K[chosen])
