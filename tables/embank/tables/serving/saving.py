"""Writing bundles: tables in their inference form as files, see `embank.tables.serving.bundle`."""

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from embank.tables.collections.identity import identity_of
from embank.tables.collections.pooled import TableCollection
from embank.tables.collections.state import without_tables
from embank.tables.errors import ConfigError
from embank.tables.ids.hashing import HASH_VERSION
from embank.tables.serving.bundle import FORMAT, FORMAT_VERSION, MANIFEST, NETWORK, TABLES, Bundle, TableEntry
from embank.tables.serving.packed import PackedCollection
from embank.tables.serving.packing import pack_collection
from embank.tables.serving.stored import TensorFile
from embank.tables.serving.table import PackedTable
from embank.tables.specs import TableSpec, token_hash_version_of
from embank.tables.storage.checkpoint import refuse_no_tables, refuse_non_finite
from embank.tables.storage.checksums import CHECKSUMS, is_inside, write_checksums
from embank.tables.storage.new_folder import new_folder
from embank.tables.version import embank_version

_OWN_FILES = (MANIFEST, TABLES, NETWORK, CHECKSUMS)


def save_bundle(
    folder: str | Path,
    tables: TableCollection,
    *,
    network: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
    files: Mapping[str, Callable[[Path], None]] | None = None,
    codec: str | Mapping[str, str] = "fp32",
) -> None:
    """Writes tables in their inference form; at every moment either nothing or all of it is at `folder`.

    Rows are settled first (see `Schedule.settle`), and written from where they are: only those that are padded in
    memory are copied.

    Args:
        folder: must not exist yet.
        tables: in the last stage of their methods.
        network: parameters and buffers of the model that reads the tables, by name. What belongs to the tables is left
            out, so that the `state_dict` of a model that contains them will do.
        facts: what else a reader must know, as JSON.
        files: what else is written into the folder, by its name in it: each function is given the path.
        codec: how matrices are held that the methods do not code themselves: a name for all tables, or by table.

    Raises:
        CheckpointError: the folder exists.
        ConfigError: a table is not in its last stage, rows are sharded, the facts are no JSON, the network holds
            something else than tensors or the rows of other tables, a method's module does not name its spine, or a
            name of `files` leads out of the folder or is one of the bundle's own.
        WorkError: rows are not finite, or the bundle can't be written (full disk, no permission); nothing is left
            behind.

    Example:
        >>> spec = TableSpec(
        ...     name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"], method="hash", budget=0.1
        ... )
        >>> tables = TableCollection([spec])
        >>> save_bundle("bundle", tables)
        >>> served = load_bundle("bundle")
        >>> served.nbytes() == tables.nbytes("serving")
        True
    """
    folder = Path(folder)
    refuse_no_tables(tables, doing="save_bundle")
    _refuse_names(files or {})
    network = None if network is None else without_tables(network, tables)
    refuse_non_finite(tables)
    collection = pack_collection(tables, codec=codec)
    dense = TensorFile()
    more: dict[str, Any] = {"trained_as": identity_of(tables)}
    if network is not None:
        more["network"] = {name: asdict(dense.add(name, tensor)) for name, tensor in network.items()}
    written, text = _described(collection, facts=facts, what=f"bundle '{folder}'", **more)
    with new_folder(folder, kind="bundle") as temporary:
        if network is not None:
            dense.write(temporary / NETWORK)
        _write(temporary, written, text, files=files)


def write_packed(
    folder: Path,
    collection: PackedCollection,
    *,
    facts: Mapping[str, Any] | None = None,
    files: Mapping[str, Callable[[Path], None]] | None = None,
    scratch: Path | None = None,
) -> None:
    """Writes packed tables that no training made into a folder, which is a bundle then: see `new_folder`.

    Args:
        folder: is there, and has no files of these names.
        collection: the tables.
        facts, files: see `save_bundle`.
        scratch: a folder in it that the tables may be mapped from, and that goes once they are written.

    Raises:
        ConfigError: the facts are no JSON, or a name of `files` is none for them.
    """
    _refuse_names(files or {})
    written, text = _described(collection, facts=facts, what=f"bundle '{folder}'", trained_as=None)
    _write(folder, written, text, files=files, scratch=scratch)


def _described(
    collection: PackedCollection, *, facts: Mapping[str, Any] | None, what: str, **more: Any
) -> tuple[TensorFile, str]:
    """The tensors of tables, and the manifest."""
    stored = TensorFile()
    entries = [_entry(spec, pack, stored) for spec, pack in collection.packed_tables()]
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "hash_version": HASH_VERSION,
        "token_hash_version": token_hash_version_of(collection.specs),
        "embank_version": embank_version(),
        "keys": collection.keys,
        "tables": [entry.to_json() for entry in entries],
        "facts": dict(facts or {}),
        **more,
    }
    try:
        return stored, json.dumps(manifest, indent=1)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the facts of {what} can't be saved as JSON: {error}; give plain values") from error


def _write(
    folder: Path,
    stored: TensorFile,
    manifest: str,
    *,
    files: Mapping[str, Callable[[Path], None]] | None,
    scratch: Path | None = None,
) -> None:
    stored.write(folder / TABLES)
    if scratch is not None:
        shutil.rmtree(scratch)
    (folder / MANIFEST).write_text(manifest)
    _write_files(folder, files or {})
    write_checksums(folder)


def copy_bundle(
    source: Bundle,
    folder: str | Path,
    *,
    leave_out: Sequence[str] = (),
    files: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Writes a bundle once more, elsewhere. Checksums of what is copied are those of the bundle, so that a file that is
    damaged there is known as damaged in the copy.

    Args:
        source: the bundle.
        folder: must not exist yet.
        leave_out: folders in it that are not copied.
        files: what is written besides, or in place of what `save_bundle` was given as `files`; see there.

    Raises:
        CheckpointError: the folder exists.
        ConfigError: it would lie inside of the bundle, or a name of `files` leads out of it or is one of its own.
        WorkError: it can't be written; nothing is left behind.
    """
    files = files or {}
    _refuse_names(files)
    left_out = tuple(f"{own}/" for own in leave_out)
    kept = {n: told for n, told in source.listing.items() if n not in files and not n.startswith(left_out)}
    with new_folder(Path(folder), kind="bundle", sources=(source.path,)) as temporary:
        for name in kept:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path / name, temporary / name)
        if len(kept) == len(source.listing) and not files:  # the same bundle, so the same version
            shutil.copyfile(source.path / CHECKSUMS, temporary / CHECKSUMS)
            return
        _write_files(temporary, files)
        write_checksums(temporary, known=kept)


def _write_files(folder: Path, files: Mapping[str, Callable[[Path], None]]) -> None:
    for name, write in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name)


def _refuse_names(files: Collection[str]) -> None:
    """Raises ConfigError for a name that is no file's in a folder, or is one of the bundle's own files."""
    for name in files:
        if not is_inside(name):
            raise ConfigError(f"files has the name {name!r}, which is no file inside of the bundle; give such a one")
        first = name.partition("/")[0]
        if first in _OWN_FILES:
            raise ConfigError(
                f"files has the name '{name}', and '{first}' is a file of the bundle itself (as "
                f"{', '.join(own for own in _OWN_FILES if own != first)} are); choose another name"
            )


def _entry(spec: TableSpec, pack: PackedTable, stored: TensorFile) -> TableEntry:
    return TableEntry(
        name=spec.name,
        num_embeddings=spec.num_embeddings,
        embedding_dim=spec.embedding_dim,
        feature_names=list(spec.feature_names),
        pooling=spec.pooling,
        method=spec.method,
        served=pack.manifest(),
        weighted=spec.weighted,
        tensors={name: stored.add(f"{spec.name}.{name}", tensor) for name, tensor in pack.state_dict().items()},
    )
