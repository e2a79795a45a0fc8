"""Target `torchrec`: the tables as a quantised `EmbeddingBagCollection` in TorchScript."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embank.pipelines.convert.cases import Original
from embank.pipelines.convert.targets import Options
from embank.tables.serving.export.torchrec import write_torchrec

MODEL = "tables.pt"


def write(folder: Path, original: Original, options: Options) -> Mapping[str, Any]:
    """See `Target.write`."""
    return write_torchrec(folder / MODEL, original.collection, dtype=options.dtype)
