"""Raw formats that `prepare` reads: one file each, all on the interface of `base`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embank.pipelines.data.formats import avazu, criteo, generic, kdd12, movielens
from embank.pipelines.data.formats.base import Format, Source, TextOptions
from embank.pipelines.data.suggest import did_you_mean, listing
from embank.tables.errors import ConfigError

FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        criteo.FORMAT,
        avazu.FORMAT,
        kdd12.FORMAT,
        movielens.FORMAT,
        generic.CSV,
        generic.TSV,
        generic.PARQUET,
    )
}


def open_source(format: str, paths: Sequence[Path], options: TextOptions) -> Source:
    """Open raw files.

    Raises:
        ConfigError: there is no such format.
        DataError: the files are missing or are not of this format.
    """
    if format not in FORMATS:
        raise ConfigError(f"there is no format {format!r}.{did_you_mean(format, FORMATS)} Known: {listing(FORMATS)}.")
    return FORMATS[format].open(paths, options)
