"""Deltas on disk: what leads from one bundle to another.

A delta is a folder that is written once and never changed:

    manifest.json       versions; checksums of the bundle it starts `from` and of the one it leads `to`, that one's
                        checksums.json as a text, and how each of its files is made; what changed, in numbers
    rows.safetensors    of each tensor whose rows changed their numbers (`numbers:FILE:TENSOR`) and rows
                        (`rows:FILE:TENSOR`, appended ones behind them); other tensors as they are (`whole:FILE:TENSOR`)
    files/FILE          other files that changed
    checksums.json      SHA-256 and bytes of each file

A bundle's checksum is the SHA-256 of its checksums.json, which has those of all its files.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embank.tables.errors import CheckpointError
from embank.tables.serving.bundle import version_of
from embank.tables.serving.deltas.recipe import CURE, MANIFEST, ROWS, made_files
from embank.tables.serving.deltas.sources import Source
from embank.tables.storage.checksums import CHECKSUMS, refuse_bad_listing, verify_checksums
from embank.tables.storage.json_text import parse_json, read_json
from embank.tables.version import embank_version
from embank.tables.wording import listing

FORMAT, FORMAT_VERSION = "embank delta", 1


@dataclass(frozen=True, kw_only=True)
class TableChange:
    """What a delta does to one table.

    Args:
        name: of the table.
        num_rows: rows that the new bundle stores for it, in its longest tensor.
        num_changed: how many of them are replaced, in the tensor where most are.
        num_appended: how many the old bundle doesn't have.
        nbytes: bytes of them in the delta. Rows that tables share count for each.
    """

    name: str
    num_rows: int
    num_changed: int
    num_appended: int
    nbytes: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TableChange":
        """The inverse of `asdict`.

        Raises:
            TypeError: keys are missing or unknown, or values of another type.
        """
        change = cls(**values)
        counts = (change.num_rows, change.num_changed, change.num_appended, change.nbytes)
        if type(change.name) is not str or not all(type(count) is int for count in counts):
            raise TypeError(f"the change of a table is {dict(values)}")
        return change


class Delta:
    """A delta on disk, its version and files checked.

    Args:
        path: the folder.

    Attributes:
        start, end: checksums of the bundles that it leads from and to.
        keys: keys of the tables' output, which both bundles have.
        listing: SHA-256 and bytes of each file of the bundle that it leads to.
        checksums: the same as the text of its checksums.json.
        tables: what changes in each table.
        facts: what the writer added.
        nbytes, bundle_nbytes: bytes of the delta, of the bundle that it leads to.

    Raises:
        CheckpointError: no delta, or one that is damaged or of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            raise CheckpointError(
                f"'{self.path}' holds no delta: it has no {MANIFEST}. Give a folder that embank delta wrote"
            )
        manifest = read_json(self.path / MANIFEST, cure=CURE)
        self._refuse_other_versions(manifest)
        files = verify_checksums(self.path, kind="delta", cure=CURE)
        if MANIFEST not in files or ROWS not in files:
            raise CheckpointError(f"delta '{self.path}' lacks '{ROWS}' or '{MANIFEST}' in its checksums. {CURE}")
        try:
            self.start, self.end = str(manifest["from"]), str(manifest["to"])
            self.keys = [str(key) for key in manifest["keys"]]
            self.checksums = str(manifest["checksums"])
            self.tables = [TableChange.from_json(values) for values in manifest["tables"]]
            self.facts: dict[str, Any] = dict(manifest["facts"])
            self.tolerance = float(manifest["tolerance"])
            self._files: dict[str, Mapping[str, Any]] = {name: dict(how) for name, how in manifest["files"].items()}
            if hashlib.sha256(self.checksums.encode()).hexdigest() != self.end:
                raise ValueError("the checksums of the bundle that it leads to are not those of its name")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"'{self.path / MANIFEST}' is damaged ({error!r}). {CURE}") from error
        what = f"what '{self.path / MANIFEST}' says of the bundle that it leads to"
        self.listing = parse_json(self.checksums, what=what, end=f". {CURE}")
        refuse_bad_listing(self.listing, what=what, cure=CURE)
        if set(self.listing) != set(self._files):
            raise CheckpointError(f"'{self.path / MANIFEST}' is damaged: it lists other files than it makes. {CURE}")
        self.nbytes = sum(entry["nbytes"] for entry in files.values()) + (self.path / CHECKSUMS).stat().st_size
        self.bundle_nbytes = sum(entry["nbytes"] for entry in self.listing.values()) + len(self.checksums.encode())

    def _refuse_other_versions(self, manifest: Mapping[str, Any]) -> None:
        if manifest.get("format") != FORMAT:
            raise CheckpointError(
                f"'{self.path / MANIFEST}' is not a delta's: its format is {manifest.get('format')!r}, not {FORMAT!r}. "
                "Give a folder that embank delta wrote"
            )
        if manifest.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"delta '{self.path}' has format version {manifest.get('format_version')!r}; embank {embank_version()} "
                f"reads version {FORMAT_VERSION}. Apply it with the embank that wrote it "
                f"({manifest.get('embank_version')!r}), or make it again with this one"
            )

    def over(self, files: Mapping[str, Source]) -> dict[str, Source]:
        """The files that it leads to.

        Args:
            files: those that it starts from.

        Raises:
            CheckpointError: it is damaged, or made for others.
        """
        return made_files(self.path, self._files, files)


class GapError(CheckpointError):
    """A delta does not lead on from a bundle."""


def refuse_gaps(start: str, deltas: Sequence[Delta], *, bundle: Path, keys: Sequence[str]) -> None:
    """Refuses deltas that don't lead on from a bundle, one after the other.

    Args:
        start: the bundle's checksum.
        deltas: in the order in which they are applied.
        bundle, keys: the bundle, the keys of its output.

    Raises:
        GapError: one is missing, repeated, out of order, or of another model.
    """
    at, what = start, f"bundle '{bundle}'"
    for number, delta in enumerate(deltas):
        if list(delta.keys) != list(keys):
            raise GapError(
                f"delta '{delta.path}' is of another model: its tables give {listing(delta.keys)}, those of '{bundle}' "
                f"{listing(keys)}. Give a delta that was made from this bundle"
            )
        if delta.start != at:
            raise GapError(_gap(at, what, number, deltas))
        at, what = delta.end, f"delta '{delta.path}'"


def _gap(at: str, what: str, number: int, deltas: Sequence[Delta]) -> str:
    """Why a delta does not follow.

    Args:
        at: the checksum that was reached.
        what: by what.
        number: of the delta among `deltas`.
    """
    delta = deltas[number]
    here, wanted = version_of(at), version_of(delta.start)
    facts = (
        f"delta '{delta.path}' leads from version {wanted} to {version_of(delta.end)}, and {what} "
        f"{'is' if number == 0 else 'leads to'} version {here}"
    )
    held = next((later for later in reversed(deltas[number:]) if later.end == at), None)
    if held is not None and number == 0:
        rest = deltas[deltas.index(held) + 1 :]
        cure = f"give only what follows, from '{rest[0].path}' on" if rest else "there is nothing left to apply"
        upto = "it" if held is delta else f"it and all up to '{held.path}'"
        return f"{facts}: the bundle already has {upto}; {cure}"
    if any(earlier.end == delta.end for earlier in deltas[:number]):
        return f"{facts}: it is given twice; leave the second one out"
    following = next((later for later in deltas[number + 1 :] if later.start == at), None)
    if following is not None:
        cure = "give deltas in the order they were made"
        return f"{facts}: the order is wrong, '{following.path}' comes before it; {cure}"
    return f"{facts}: what leads from {here} to {wanted} is missing before it; give that first"
