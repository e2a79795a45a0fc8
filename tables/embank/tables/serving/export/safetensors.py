"""Tables as decoded rows in one safetensors file, a tensor for each table."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from embank.tables.errors import ConfigError
from embank.tables.serving.export.decoded import table_facts, write_rows
from embank.tables.serving.table import PackedTable
from embank.tables.specs import TableSpec
from embank.tables.storage.tensor_layout import header_bytes, make_header

TYPES = {"fp32": ("F32", torch.float32), "fp16": ("F16", torch.float16)}
ROWS_FILE = "tables.safetensors"


def write_safetensors(
    file: Path,
    tables: Iterable[tuple[TableSpec, PackedTable]],
    *,
    dtype: str = "fp32",
    written: Callable[[int], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Writes the rows of tables, decoded, each table as a tensor [ids, dim] of its name.

    Memory is that of a few chunks, however large a table is.

    Args:
        file: to be written.
        tables: with ids that can be listed.
        dtype: fp32 or fp16.
        written: is told of each number of rows that are written.

    Returns:
        Of each table what a manifest says of it.

    Raises:
        ConfigError: a table is called `__metadata__`.
    """
    tables = list(tables)
    if any(spec.name == "__metadata__" for spec, _ in tables):
        raise ConfigError(
            "table '__metadata__' has the one name that a safetensors file keeps for itself; leave it out by --tables, "
            "or convert to parquet"
        )
    name, kind = TYPES[dtype]
    header = make_header([(spec.name, name, (spec.num_embeddings, spec.embedding_dim)) for spec, _ in tables])
    with file.open("wb") as opened:
        opened.write(header_bytes(header))
        for spec, pack in tables:
            write_rows(opened, spec, pack, dtype=kind, written=written)
    return [{**table_facts(spec), "dtype": dtype} for spec, _ in tables]
