"""A source whose columns are computed from another's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from embank.pipelines.data.sources.formats.base import Chunk, Source


class DerivedSource:
    """Reads `base` and turns each chunk into chunks of other columns.

    Args:
        columns: what it gives.
        needs: columns of `base` that the function wants, given the wanted columns.
        derive: chunk and wanted columns to chunks (more than one where rows multiply).
        beside: files that are read besides.
    """

    suffixes: Sequence[str] = ()

    def __init__(
        self,
        base: Source,
        *,
        columns: Sequence[str],
        needs: Callable[[Sequence[str]], Sequence[str]],
        derive: Callable[[Chunk, Sequence[str]], Iterator[Chunk]],
        default: Mapping[str, Any],
        beside: Sequence[Path] = (),
    ) -> None:
        self.name = base.name
        self.files = [*base.files, *beside]
        self.total_bytes = base.total_bytes
        self.columns = tuple(columns)
        self.twice: Collection[str] = ()
        self.default = default
        self._base, self._needs, self._derive = base, needs, derive

    def types(self, column: str) -> Mapping[Path, pa.DataType]:
        """Nothing: a column is computed in the same way of all files."""
        return {}

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield the named columns."""
        for chunk in self._base.chunks(self._needs(columns)):
            yield from self._derive(chunk, columns)
