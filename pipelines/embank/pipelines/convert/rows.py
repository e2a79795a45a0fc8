"""Target `parquet`: tables with the tokens of their ids."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from embank.pipelines.convert.cases import Original
from embank.pipelines.convert.targets import Options
from embank.pipelines.data.preprocessing.rules import TOKENS
from embank.tables.ids.vocabulary import TOKEN
from embank.tables.serving.export.decoded import listed_tables
from embank.tables.serving.export.parquet import write_parquet
from embank.tables.specs import TableSpec


def write(folder: Path, original: Original, options: Options) -> Mapping[str, Any]:
    """See `Target.write`."""
    tables = listed_tables(original.collection, target="parquet")
    home = original.bundle.path / TOKENS
    tokens = (lambda spec, size: _tokens(home, spec, size)) if options.tokens else None
    return {"tables": write_parquet(folder, tables, tokens=tokens, written=options.written)}


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
