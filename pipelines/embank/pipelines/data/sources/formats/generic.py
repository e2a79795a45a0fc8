"""Any CSV, TSV or Parquet file, described by a YAML configuration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from embank.pipelines.data.sources.formats.base import Format, Source, TextOptions
from embank.pipelines.data.sources.formats.parquet import ParquetSource
from embank.pipelines.data.sources.formats.partitions import open_folders
from embank.pipelines.data.sources.formats.text import TextLayout, TextSource


def open_csv(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open comma-separated files with a header, or folders of them."""
    return _open(paths, options, ",", suffix=".csv")


def open_tsv(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open tab-separated files with a header, or folders of them."""
    return _open(paths, options, "\t", suffix=".tsv")


def _open(paths: Sequence[Path], options: TextOptions, separator: str, *, suffix: str) -> Source:
    layout = TextLayout(separator=options.separator or separator, quote=options.quote, escape=options.escape)
    return open_folders(paths, (suffix, f"{suffix}.gz"), partial(TextSource, layout=layout))


def open_parquet(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open Parquet files, or folders of them."""
    return open_folders(paths, (".parquet", ".parq", ".pq"), ParquetSource)


CSV = Format(
    name="csv",
    summary="comma-separated with a header, files or folders, described by --config",
    open=open_csv,
    needs_config=True,
)
TSV = Format(
    name="tsv",
    summary="tab-separated with a header, files or folders, described by --config",
    open=open_tsv,
    needs_config=True,
)
PARQUET = Format(
    name="parquet",
    summary="Parquet files or folders of them, described by --config",
    open=open_parquet,
    needs_config=True,
)
