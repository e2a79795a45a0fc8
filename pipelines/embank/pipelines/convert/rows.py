"""Target `parquet`: tables with the tokens of their ids."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embank.pipelines.convert.cases import Original
from embank.pipelines.convert.targets import OWN_FILES, Options
from embank.pipelines.data.preprocessing.rules import TOKENS, token_files
from embank.pipelines.vectors.store import FACTS, load_vectors
from embank.tables.ids.vocabulary import TOKEN
from embank.tables.serving.export.decoded import listed_tables
from embank.tables.serving.export.parquet import write_parquet
from embank.tables.specs import TableSpec


def write(folder: Path, original: Original, options: Options) -> Mapping[str, Any]:
    """See `Target.write`."""
    tables = listed_tables(original.collection, target="parquet")
    bundle = original.bundle
    files = token_files(feature for entry in bundle.entries for feature in entry.feature_names)

    def tokens(spec: TableSpec, size: int) -> Iterator[Sequence[str | None]]:
        if FACTS in bundle.facts:  # of `embank compress`: keys of its only table
            return _keys(load_vectors(bundle.path).keys, size)
        return _tokens(bundle.path / TOKENS, spec, size, files=files)

    told = tokens if options.tokens else None
    return {"tables": write_parquet(folder, tables, tokens=told, written=options.written, taken=OWN_FILES)}


def _keys(keys: pl.Series | None, size: int) -> Iterator[Sequence[str | None]]:
    if keys is not None:
        for start in range(0, len(keys), size):
            yield keys[start : start + size].cast(pl.String).to_arrow()


def _tokens(home: Path, spec: TableSpec, size: int, *, files: Mapping[str, str]) -> Iterator[Sequence[str | None]]:
    """Tokens of a table's ids, those of its feature, which has a vocabulary; None of unknown and missing values."""
    own = [home / files[feature] for feature in spec.feature_names]
    if len(own) != 1 or not own[0].is_file():  # ids of a table that several features read have no one token
        return
    with pq.ParquetFile(own[0]) as file:
        if file.metadata.num_rows != spec.num_embeddings:
            return
        for batch in file.iter_batches(batch_size=size, columns=["token", "kind"]):
            yield pc.if_else(pc.equal(batch["kind"], TOKEN), batch["token"], None)
