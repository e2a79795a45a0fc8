"""Target `safetensors`: tables as tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embank.pipelines.convert.cases import Original
from embank.pipelines.convert.targets import Options
from embank.tables.serving.export.decoded import listed_tables
from embank.tables.serving.export.safetensors import ROWS_FILE, write_safetensors


def write(folder: Path, original: Original, options: Options) -> Mapping[str, Any]:
    """See `Target.write`."""
    tables = listed_tables(original.collection, target="safetensors")
    return {
        "tables": write_safetensors(folder / ROWS_FILE, tables, dtype=options.dtype, written=options.written),
    }
