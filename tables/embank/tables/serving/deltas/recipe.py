"""How the files of a bundle are made of those of another one: what a delta's manifest says of each.

A file is the `same`, taken `whole` from the delta, or put together from `tensors`: of these each is the same, whole, or
has `rows` from the delta.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embank.tables.errors import CheckpointError
from embank.tables.serving.deltas.rows import FileRows, PatchedRows, Rows
from embank.tables.serving.deltas.sources import FileSource, Source, TensorsSource
from embank.tables.storage.tensor_layout import TensorPlace, tensor_places
from embank.tables.wording import listing

MANIFEST, ROWS, FILES = "manifest.json", "rows.safetensors", "files"
CURE = "Copy the delta again or make it again"


def made_files(delta: Path, recipe: Mapping[str, Mapping[str, Any]], files: Mapping[str, Source]) -> dict[str, Source]:
    """The files that a delta leads to.

    Args:
        delta: its folder.
        recipe: how each file is made.
        files: those that it starts from.

    Raises:
        CheckpointError: the delta is damaged, or made for other files.
    """
    stored = FileSource(delta / ROWS, cure=CURE)
    try:
        return {name: _File(delta, name, stored).made(how, files) for name, how in recipe.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"'{delta / MANIFEST}' is damaged ({error!r}). {CURE}") from error


class _File:
    """One file that is made.

    Args:
        delta: the delta's folder.
        name: of the file.
        stored: the delta's rows.
    """

    def __init__(self, delta: Path, name: str, stored: FileSource) -> None:
        self._delta, self._name, self._stored = delta, name, stored

    def made(self, how: Mapping[str, Any], files: Mapping[str, Source]) -> Source:
        """Its content."""
        if how["how"] == "whole":
            file = self._delta / FILES / self._name
            if not file.is_file():
                raise CheckpointError(f"delta '{self._delta}' lacks '{FILES}/{self._name}'. {CURE}")
            return FileSource(file, cure=CURE)
        if self._name not in files:
            raise CheckpointError(
                f"delta '{self._delta}' changes '{self._name}', and the bundle has {listing(files)}. {CURE}"
            )
        base = files[self._name]
        if how["how"] == "same":
            return base
        if how["how"] != "tensors":
            raise ValueError(f"file '{self._name}' is made {how['how']!r}")
        header, made = how["header"], how["tensors"]
        places = tensor_places(header, what=f"'{self._delta / MANIFEST}'", cure=CURE)
        return TensorsSource(header, {key: self._tensor(base, key, place, made[key]) for key, place in places.items()})

    def _tensor(self, base: Source, key: str, place: TensorPlace, made: str) -> Rows:
        if made == "whole":
            return self._same(self._row_file("whole", key), place, key)
        if made not in ("same", "rows"):
            raise ValueError(f"tensor '{key}' is made {made!r}")
        rows = base.tensor(key)
        if rows is None:
            raise CheckpointError(f"delta '{self._delta}' changes tensor '{key}', which the bundle lacks. {CURE}")
        if made == "same":
            return self._same(rows, place, key)
        numbers, values = self._row_file("numbers", key), self._row_file("rows", key)
        return PatchedRows(rows, place, numbers, values, origin=str(self._delta))

    def _row_file(self, kind: str, key: str) -> FileRows:
        return self._stored.tensors[f"{kind}:{self._name}:{key}"]

    def _same(self, rows: Rows, place: TensorPlace, key: str) -> Rows:
        if (rows.place.dtype, rows.place.shape) != (place.dtype, place.shape):
            raise CheckpointError(
                f"delta '{self._delta}' is damaged: tensor '{key}' is {rows.place.dtype} {list(rows.place.shape)}, not "
                f"{place.dtype} {list(place.shape)}. {CURE}"
            )
        return rows
