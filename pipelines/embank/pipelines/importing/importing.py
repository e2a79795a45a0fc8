"""`import_source`: what others have trained, as a bundle or a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from embank.pipelines.config.run import Config
from embank.pipelines.importing.models import import_model
from embank.pipelines.importing.report import Imported
from embank.pipelines.importing.sources import open_source
from embank.pipelines.importing.vocabularies import TokenSources
from embank.pipelines.reporting import Reporter
from embank.tables.errors import ConfigError
from embank.tables.specs import Pooling


def import_source(
    path: str | Path,
    out: str | Path,
    *,
    kind: str,
    vocab: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    name: str | None = None,
    config: Config | None = None,
    order: Sequence[str] | None = None,
    tables_only: bool = False,
    method: str = "full",
    budget: float | None = None,
    codec: str = "fp32",
    pooling: Pooling = "sum",
    column: str | None = None,
    id_column: str | None = None,
    tensor: str | None = None,
    reporter: Reporter | None = None,
) -> Imported:
    """Imports what others have trained: tables as a bundle, or with a configuration a model as a run.

    Args:
        path: what they have saved.
        out: the folder to write; must not exist yet.
        kind: torchrec, fuxictr, deepctr, parquet, safetensors, npy, word2vec; or embank, for a run or a bundle.
        vocab: what rows stand for: PATH, or TABLE=PATH for one table. A prepared folder, a run or a bundle; a file with
            a token a line (or a Parquet column, or a JSON list); FuxiCTR's feature_vocab.json. Without it, row i is id
            i, unless the source says tokens or ids itself.
        names: of tables and features, ours to the source's.
        name: of the only table of a file.
        config: a run is written, for its data and model; None writes a bundle of tables.
        order: see `import_model`.
        tables_only: with a configuration, leave the source's network.
        method, budget, codec, pooling: of the tables of a bundle; a configuration says them itself.
        column, id_column: of a Parquet file.
        tensor: of a safetensors file.
        reporter: of the work.

    Raises:
        DataError, ConfigError, BudgetError: what can't be imported: names file, table and cure.
        CheckpointError: `out` exists.
        WorkError: it can't be written; nothing is left behind.

    Example:
        >>> import numpy
        >>> from embank.tables import load_bundle
        >>> numpy.save("item_id.npy", numpy.eye(3, 4, dtype="float32"))
        >>> done = import_source("item_id.npy", "items", kind="npy")
        >>> done.tables[0].name, done.tables[0].ids, done.tables[0].error
        ('item_id', 3, 0.0)
        >>> load_bundle("items").nbytes()
        48
    """
    vocabularies = TokenSources(vocab)
    feature_map = vocabularies.feature_map
    source = open_source(
        kind, path, name=name, feature_map=feature_map, column=column, id_column=id_column, tensor=tensor
    ).renamed(names or {})
    if config is not None:
        return import_model(
            source,
            out,
            config=config,
            vocabularies=vocabularies,
            order=order,
            tables_only=tables_only,
            reporter=reporter,
        )
    if order is not None or tables_only:
        option = "--tables-only" if tables_only else "--order"
        raise ConfigError(f"{option} is of whole models, which need a configuration; give --config, or leave it out")
    from embank.pipelines.importing.bundles import import_tables

    return import_tables(
        source,
        out,
        vocabularies=vocabularies,
        method=method,
        budget=budget,
        codec=codec,
        pooling=pooling,
        reporter=reporter,
    )
