"""Any CSV, TSV or Parquet file, described by a YAML configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embank.pipelines.data.formats.base import Format, Source, TextOptions
from embank.pipelines.data.formats.parquet import ParquetSource
from embank.pipelines.data.formats.text import TextLayout, TextSource


def open_csv(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open comma-separated files with a header."""
    return TextSource(paths, _layout(options, ","))


def open_tsv(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open tab-separated files with a header."""
    return TextSource(paths, _layout(options, "\t"))


def _layout(options: TextOptions, separator: str) -> TextLayout:
    return TextLayout(separator=options.separator or separator, quote=options.quote, escape=options.escape)


def open_parquet(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open Parquet files, or folders of them."""
    return ParquetSource(paths)


CSV = Format(
    name="csv", summary="comma-separated with a header, described by --config", open=open_csv, needs_config=True
)
TSV = Format(name="tsv", summary="tab-separated with a header, described by --config", open=open_tsv, needs_config=True)
PARQUET = Format(
    name="parquet",
    summary="Parquet files or folders of them, described by --config",
    open=open_parquet,
    needs_config=True,
)
