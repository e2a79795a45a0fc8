"""The raw formats by name."""

from __future__ import annotations

from embank.pipelines.data.sources.formats import avazu, criteo, generic, kdd12, movielens
from embank.pipelines.data.sources.formats.base import Format
from embank.tables.errors import ConfigError
from embank.tables.wording import did_you_mean, listing

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


def find_format(name: str) -> Format:
    """The format called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMATS:
        raise ConfigError(f"there is no format {name!r}.{did_you_mean(name, FORMATS)} Known: {listing(FORMATS)}.")
    return FORMATS[name]
