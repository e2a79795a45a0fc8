"""From two bundles to what leads from the one to the other."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embank.tables.errors import ConfigError, WorkError
from embank.tables.serving.bundle import TABLES, Bundle, version_of
from embank.tables.serving.deltas.format import FORMAT, FORMAT_VERSION, Delta, TableChange
from embank.tables.serving.deltas.recipe import FILES, MANIFEST, ROWS, made_files
from embank.tables.serving.deltas.rows import FileRows, Masks, bits_differ, moved_beyond
from embank.tables.serving.deltas.sources import FileSource, bundle_sources, digest
from embank.tables.storage.checksums import CHECKSUMS, checksums_text, text_digest, write_checksums
from embank.tables.storage.json_text import read_json
from embank.tables.storage.new_folder import new_folder
from embank.tables.storage.tensor_layout import NBYTES, TensorPlace, header_bytes, make_header
from embank.tables.version import embank_version
from embank.tables.wording import listing as names_of

_TENSORS = ".safetensors"


@dataclass
class _Stored:
    """Tensors on their way into the delta's file of rows: what each is, and how to read it when its turn comes."""

    entries: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)
    contents: list[Callable[[], Iterable[Any]]] = field(default_factory=list)

    def add(self, name: str, dtype: str, shape: tuple[int, ...], content: Callable[[], Iterable[Any]]) -> None:
        """Takes a tensor in."""
        self.entries.append((name, dtype, shape))
        self.contents.append(content)

    def chunks(self) -> Iterator[Any]:
        """The file."""
        yield header_bytes(make_header(self.entries))
        for content in self.contents:
            for block in content():
                yield block.data


@dataclass(frozen=True, kw_only=True)
class _TensorChange:
    """What becomes of one tensor."""

    made: str
    num_rows: int
    num_changed: int = 0
    num_appended: int = 0
    nbytes: int = 0


Facts = Callable[[Path, Path], tuple[Mapping[str, Any], Mapping[str, Callable[[Path], None]]]]
"""For the folders of two bundles: what a delta says of them besides, as JSON, and files by name with what writes them.
"""


def write_delta(
    old: str | Path,
    new: str | Path,
    out: str | Path,
    *,
    tolerance: float = 0.0,
    facts: Facts = lambda old, new: ({}, {}),
) -> Delta:
    """Writes what leads from one bundle to another; at every moment either nothing or all of it is at `out`.

    Rows are compared in the form in which they are served. A stored row of which no number has moved by more than the
    tolerance keeps its old numbers, and the delta then leads to a bundle that is `new` up to these rows. Only rows that
    stand alone are compared with a tolerance: codes, scales, maps and the network are taken to the bit.

    Args:
        old, new: bundles; the tables have the same features.
        out: the delta's folder; must not exist yet.
        tolerance: 0 takes every bit that changed.
        facts: what else the delta tells.

    Raises:
        CheckpointError: no bundle, a damaged one, or `out` exists.
        ConfigError: a wrong tolerance, bundles of different models, or nothing to send.
        WorkError: it can't be written; nothing is left behind.
    """
    if not (tolerance >= 0 and math.isfinite(tolerance)):
        raise ConfigError(f"tolerance is {tolerance}; give a number from 0 on")
    before, after, out = Bundle(old), Bundle(new), Path(out)
    _refuse_other_models(before, after)
    start, goal = ((bundle.path / CHECKSUMS).read_bytes().decode() for bundle in (before, after))
    if start == goal:
        raise ConfigError(f"'{old}' and '{new}' are the same version {version_of(before.checksum)}; nothing to send")
    with new_folder(out, kind="delta", sources=(before.path, after.path)) as temporary:
        plan = _Plan(before, after, tolerance)
        (temporary / FILES).mkdir()
        for name in plan.whole:
            digest(FileSource(after.path / name).chunks(), into=temporary / FILES / name)
        digest(plan.stored.chunks(), into=temporary / ROWS)
        listing = plan.listing(temporary)
        if tolerance == 0 and listing != plan.goal:
            raise WorkError(f"'{old}' or '{new}' was changed while they were compared; make the delta again")
        checksums = goal if tolerance == 0 else checksums_text(listing)
        if checksums == start:
            raise ConfigError(f"no row of '{new}' has moved by more than {tolerance}; nothing to send")
        told, written = facts(before.path, after.path)
        for name, write in written.items():
            write(temporary / name)
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "embank_version": embank_version(),
            "from": before.checksum,
            "to": text_digest(checksums),
            "tolerance": tolerance,
            "keys": after.keys,
            "checksums": checksums,
            "files": plan.files,
            "tables": [asdict(change) for change in plan.tables()],
            "facts": told,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        write_checksums(temporary)
    return Delta(out)


def _refuse_other_models(before: Bundle, after: Bundle) -> None:
    if list(before.keys) != list(after.keys):
        raise ConfigError(
            f"'{before.path}' and '{after.path}' are of different models: their tables give {names_of(before.keys)}, "
            f"and {names_of(after.keys)}. Send the new bundle whole"
        )


def _shape_of(place: TensorPlace, num_rows: int) -> tuple[str, tuple[int, ...]]:
    """dtype and shape of some rows of a tensor."""
    if place.shape and place.row_nbytes * place.shape[0] == place.nbytes:
        return place.dtype, (num_rows, *place.shape[1:])
    return "U8", (num_rows, place.row_nbytes)  # parts of long rows


def _plain_rows(bundle: Bundle) -> set[str]:
    """Keys of the tensors that are all there is of a matrix, wherever they are used: their rows may be compared as
    numbers, one without the other."""
    alone: dict[str, bool] = {}
    for entry in bundle.entries:
        matrices = [name.rpartition(".")[0] for name in entry.tensors]
        for name, stored in entry.tensors.items():
            own = name.rpartition(".")[0]
            is_alone = own.startswith("matrices.") and matrices.count(own) == 1
            alone[stored.key] = alone.get(stored.key, True) and is_alone
    return {key for key, is_alone in alone.items() if is_alone}


class _Plan:
    """What becomes of each file and each tensor.

    Args:
        before, after: the bundles.
        tolerance: see `write_delta`.

    Attributes:
        files: the recipe of each file.
        whole: names of files that are taken as they are.
        stored: the tensors that the delta holds.
        start, goal: what the bundles' checksums.json list.
    """

    def __init__(self, before: Bundle, after: Bundle, tolerance: float) -> None:
        self._before, self._after, self._tolerance = before, after, tolerance
        self._plain = _plain_rows(before) & _plain_rows(after) if tolerance else set()
        self.start, self.goal = (read_json(bundle.path / CHECKSUMS) for bundle in (before, after))
        self.whole: list[str] = []
        self.stored = _Stored()
        self._changes: dict[str, _TensorChange] = {}
        self.files = {name: self._file(name) for name in self.goal}

    def _file(self, name: str) -> dict[str, Any]:
        if self.start.get(name) == self.goal[name]:
            return {"how": "same"}
        if name in self.start and name.endswith(_TENSORS):
            return self._tensors(name)
        self.whole.append(name)
        return {"how": "whole"}

    def _tensors(self, name: str) -> dict[str, Any]:
        old, new = (FileSource(bundle.path / name) for bundle in (self._before, self._after))
        made = {}
        for key, rows in new.tensors.items():
            change = self._tensor(f"{name}:{key}", old.tensors.get(key), rows, key if name == TABLES else None)
            made[key] = change.made
            if name == TABLES:
                self._changes[key] = change
        return {"how": "tensors", "header": new.header, "tensors": made}

    def _tensor(self, full: str, old: FileRows | None, new: FileRows, key: str | None) -> _TensorChange:
        place = new.place
        if old is not None and old.place.has_rows_like(place):
            beyond = moved_beyond(self._tolerance, place.dtype) if key in self._plain else None
            masks = Masks(old, new, beyond or bits_differ)
            if old.place.num_rows == place.num_rows and not masks.num_changed:
                return _TensorChange(made="same", num_rows=place.num_rows)
            taken = masks.num_changed + masks.num_appended
            dtype = "U32" if place.num_rows < 2**32 else "U64"
            nbytes = taken * place.row_nbytes + masks.num_changed * NBYTES[dtype]
            if nbytes < place.nbytes:
                shape = _shape_of(place, taken)
                self.stored.add(f"numbers:{full}", dtype, (masks.num_changed,), lambda: masks.numbers(dtype))
                self.stored.add(f"rows:{full}", *shape, lambda: masks.values(new))
                return _TensorChange(
                    made="rows",
                    num_rows=place.num_rows,
                    num_changed=masks.num_changed,
                    num_appended=masks.num_appended,
                    nbytes=nbytes,
                )
        self.stored.add(f"whole:{full}", place.dtype, place.shape, new.blocks)
        return _TensorChange(made="whole", num_rows=place.num_rows, num_changed=place.num_rows, nbytes=place.nbytes)

    def listing(self, folder: Path) -> dict[str, Any]:
        """What checksums.json will list of the bundle that the delta leads to.

        Args:
            folder: the delta, as far as it is written.
        """
        made = made_files(folder, self.files, bundle_sources(self._before.path, self.start))
        together = {name for name, how in self.files.items() if how["how"] == "tensors"}
        return {name: digest(made[name].chunks()) if name in together else entry for name, entry in self.goal.items()}

    def tables(self) -> list[TableChange]:
        """What becomes of each table."""
        places = {key: rows.place for key, rows in FileSource(self._after.path / TABLES).tensors.items()}
        found = []
        for entry in self._after.entries:
            keys = {stored.key for stored in entry.tensors.values()}
            same = {key: _TensorChange(made="same", num_rows=places[key].num_rows) for key in keys}
            changes = [self._changes.get(key, same[key]) for key in keys]
            found.append(
                TableChange(
                    name=entry.name,
                    num_rows=max((change.num_rows for change in changes), default=0),
                    num_changed=max((change.num_changed for change in changes), default=0),
                    num_appended=max((change.num_appended for change in changes), default=0),
                    nbytes=sum(change.nbytes for change in changes),
                )
            )
        return found
