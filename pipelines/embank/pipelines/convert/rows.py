"""Target `parquet`: tables with the tokens of their ids."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embank.pipelines.convert.cases import Original
from embank.pipelines.convert.targets import Options
from embank.pipelines.data.preprocessing.rules import TOKENS
from embank.pipelines.vectors.store import FACTS, load_vectors
from embank.tables.ids.vocabulary import TOKEN
from embank.tables.serving.export.decoded import listed_tables
from embank.tables.serving.export.parquet import write_parquet
from embank.tables.specs import TableSpec


def write(folder: Path, original: Original, options: Options) -> Mapping[str, Any]:
    """See `Target.write`."""
    tables = listed_tables(original.collection, target="parquet")
    bundle = original.bundle

    def tokens(spec: TableSpec, size: int) -> Iterator[Sequence[str | None]]:
        if FACTS in bundle.facts:  # of `embank compress`: keys of its only table
            return _keys(load_vectors(bundle.path).keys, size)
        return _tokens(bundle.path / TOKENS, spec, size)

    return {"tables": write_parquet(folder, tables, tokens=tokens if options.tokens else None, written=options.written)}


def _keys(keys: pl.Series | None, size: int) -> Iterator[Sequence[str | None]]:
    if keys is not None:
        for start in range(0, len(keys), size):
            yield keys[start : start + size].cast(pl.String).to_arrow()


def _tokens(home: Path, spec: TableSpec, size: int) -> Iterator[Sequence[str | None]]:
    """Tokens of a table's ids, those of its feature, which has a vocabulary; None of unknown and missing values."""
    files = [home / f"{feature}.parquet" for feature in spec.feature_names]
    found = [file for file in files if file.is_file()]
    if len(files) != 1 or not found:  # ids of a table that several features read have no one token
        return
    with pq.ParquetFile(found[0]) as file:
        if file.metadata.num_rows != spec.num_embeddings:
            return
        for batch in file.iter_batches(batch_size=size, columns=["token", "kind"]):
            yield pc.if_else(pc.equal(batch["kind"], TOKEN), batch["token"], None)
