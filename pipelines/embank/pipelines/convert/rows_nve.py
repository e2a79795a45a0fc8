"""Target `nve`: tables as nv-embedding-cache loads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embank.pipelines.convert.cases import Original
from embank.pipelines.convert.targets import Options
from embank.tables.serving.export.decoded import listed_tables
from embank.tables.serving.export.nve import write_nve


def write(folder: Path, original: Original, options: Options) -> Mapping[str, Any]:
    """See `Target.write`."""
    tables = listed_tables(original.collection, target="nve")
    return {"tables": write_nve(folder, tables, dtype=options.dtype, written=options.written)}
