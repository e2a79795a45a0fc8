"""Bundles: tables in their inference form as files, with or without a network.

A bundle is a folder that is written once and never changed:

    manifest.json          versions; of each table its name, shape, features, method, and what it is served as: spine,
                           codecs, their plain attributes; the output's keys; what the tables were trained as (options,
                           budget, number of ids); the caller's facts
    tables.safetensors     the tensors of all packed tables, each once, however many tables share it
    network.safetensors    parameters and buffers of the network, if there is one
    checksums.json         SHA-256 and bytes of each file

It is loaded without the data that the tables were trained on, and without their training configuration. Tensors are
mapped from the file, not read into memory: pages come in when rows are looked up, and processes share them.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from embank.tables.collections.identity import identity_of
from embank.tables.collections.pooled import TableCollection
from embank.tables.collections.state import without_tables
from embank.tables.errors import CheckpointError, ConfigError, WorkError
from embank.tables.ids.hashing import HASH_VERSION
from embank.tables.ids.token_hash import refuse_other_token_hash
from embank.tables.serving.packed import PackedCollection, pack_collection
from embank.tables.serving.stored import StoredTensor, TensorFile
from embank.tables.serving.table import PackedTable, tried
from embank.tables.serving.version_1 import restored_v1
from embank.tables.specs import Pooling, TableSpec, token_hash_version_of
from embank.tables.storage.atomic import publish, temporary_beside
from embank.tables.storage.checkpoint import refuse_no_tables, refuse_non_finite
from embank.tables.storage.checksums import verify_checksums, write_checksums
from embank.tables.storage.json_text import read_json
from embank.tables.storage.refusals import cause_of
from embank.tables.storage.resources import refuse_exhausted
from embank.tables.version import embank_version

FORMAT, FORMAT_VERSION = "embank bundle", 2
MANIFEST, TABLES, NETWORK = "manifest.json", "tables.safetensors", "network.safetensors"
_CURE = "Copy the bundle again or export it again"


@dataclass(frozen=True, kw_only=True)
class TableEntry:
    """One table in the manifest.

    Args:
        name, num_embeddings, embedding_dim, feature_names, pooling: as in `TableSpec`.
        method: name of the method, whose module has the spine.
        served: what `PackedTable.manifest` gave.
        tensors: buffers of the packed table by name.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: Sequence[str]
    pooling: Pooling
    method: str
    served: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TableEntry":
        """The inverse of `asdict`."""
        tensors = {name: StoredTensor(**stored) for name, stored in values["tensors"].items()}
        if "packed" in values:  # version 1
            served = {"packed": values["packed"], "facts": values["facts"]}
            values = {name: value for name, value in values.items() if name not in served} | {"served": served}
        return cls(**{**values, "tensors": tensors})

    def spec(self) -> TableSpec:
        """The table as the model sees it."""
        return TableSpec(
            name=self.name,
            num_embeddings=self.num_embeddings,
            embedding_dim=self.embedding_dim,
            feature_names=self.feature_names,
            pooling=self.pooling,
            method=self.method,
        )


def save_bundle(
    folder: str | Path,
    tables: TableCollection,
    *,
    network: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
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

    Raises:
        CheckpointError: the folder exists.
        ConfigError: a table is not in its last stage, rows are sharded, the facts are no JSON, the network holds
            something else than tensors or the rows of other tables, or a method's module does not name its spine.
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
    network = None if network is None else without_tables(network, tables)
    refuse_non_finite(tables)
    collection = pack_collection(tables)
    stored = TensorFile()
    entries = [_entry(spec, pack, stored) for spec, pack in collection.packed_tables()]
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "hash_version": HASH_VERSION,
        "token_hash_version": token_hash_version_of(collection.specs),
        "embank_version": embank_version(),
        "keys": collection.keys,
        "trained_as": identity_of(tables),
        "tables": [asdict(entry) for entry in entries],
        "facts": dict(facts or {}),
    }
    dense = TensorFile()
    if network is not None:
        manifest["network"] = {name: asdict(dense.add(name, tensor)) for name, tensor in network.items()}
    try:
        text = json.dumps(manifest, indent=1)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the facts of bundle '{folder}' can't be saved as JSON: {error}; give plain values"
        ) from error
    with _written(folder) as temporary:
        stored.write(temporary / TABLES)
        if network is not None:
            dense.write(temporary / NETWORK)
        (temporary / MANIFEST).write_text(text)
        write_checksums(temporary)


def copy_bundle(source: "Bundle", folder: str | Path) -> None:
    """Writes a bundle once more, elsewhere.

    Raises:
        CheckpointError: the folder exists.
        WorkError: it can't be written; nothing is left behind.
    """
    with _written(Path(folder)) as temporary:
        shutil.copytree(source.path, temporary, dirs_exist_ok=True)


@contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """A temporary folder that gets its name when the block ends well, and vanishes when it does not."""
    folder = folder.absolute()
    if folder.exists():
        raise CheckpointError(
            f"'{folder}' exists already, and a bundle is never written over anything; choose another folder"
        )
    temporary = temporary_beside(folder)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        publish(temporary, folder)
    except (OSError, SafetensorError) as error:
        refuse_exhausted(error, doing=f"writing the bundle '{folder}'")
        raise WorkError(
            f"the bundle '{folder}' can't be written: {cause_of(error)}. Nothing was left behind; make room or choose "
            "another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _entry(spec: TableSpec, pack: PackedTable, stored: TensorFile) -> TableEntry:
    return TableEntry(
        name=spec.name,
        num_embeddings=spec.num_embeddings,
        embedding_dim=spec.embedding_dim,
        feature_names=list(spec.feature_names),
        pooling=spec.pooling,
        method=spec.method,
        served=pack.manifest(),
        tensors={name: stored.add(f"{spec.name}.{name}", tensor) for name, tensor in pack.state_dict().items()},
    )


def load_bundle(path: str | Path, *, verify: bool = True) -> PackedCollection:
    """The tables of a bundle, ready to look up: a drop-in for `torchrec.EmbeddingBagCollection` at inference.

    Args:
        path: what `save_bundle`, a training run or `embank export` wrote.
        verify: False skips the SHA-256 of the files, which reads all of them (their sizes are checked in any case); for
            tables that are larger than what is looked up.

    Raises:
        CheckpointError: no bundle, or one that is damaged, of another version, or needs a method that is not installed.

    Example:
        >>> from torchrec import KeyedJaggedTensor
        >>> spec = TableSpec(name="item", num_embeddings=10, embedding_dim=2, feature_names=["item"])
        >>> tables = TableCollection([spec])
        >>> save_bundle("bundle", tables)
        >>> kjt = KeyedJaggedTensor(keys=["item"], values=torch.tensor([7, 8]), lengths=torch.tensor([2]))
        >>> torch.equal(load_bundle("bundle")(kjt)["item"], tables(kjt)["item"])
        True
    """
    return Bundle(path, verify=verify).tables()


def is_bundle(path: str | Path) -> bool:
    """Whether a folder holds a bundle, whole or not."""
    return (Path(path) / MANIFEST).is_file()


class Bundle:
    """A bundle on disk, its versions and files checked.

    Args:
        path: the folder.
        verify: see `load_bundle`.

    Attributes:
        entries: the tables.
        facts: what the writer added.
        embank_version: of the writer.
        has_network: whether there is a network besides the tables.
        nbytes: bytes of all files.

    Raises:
        CheckpointError: no bundle, or one that is damaged or of another version.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=10, embedding_dim=2, feature_names=["item"])
        >>> tables = TableCollection([spec])
        >>> save_bundle("bundle", tables)
        >>> bundle = Bundle("bundle")
        >>> [(entry.name, entry.method) for entry in bundle.entries], bundle.has_network
        ([('item', 'full')], False)
    """

    def __init__(self, path: str | Path, *, verify: bool = True) -> None:
        self.path = Path(path)
        self._refuse_other_folders()
        manifest = read_json(self.path / MANIFEST)
        self.embank_version = str(manifest.get("embank_version", "unknown"))
        self._refuse_other_versions(manifest)
        checksums = verify_checksums(self.path, kind="bundle", cure=_CURE, read=verify)
        try:
            self.keys: list[str] = list(manifest["keys"])
            self.entries = [TableEntry.from_json(values) for values in manifest["tables"]]
            self.facts: dict[str, Any] = dict(manifest["facts"])
            network = manifest.get("network")
            self._network = network and {name: StoredTensor(**stored) for name, stored in network.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"'{self.path / MANIFEST}' is damaged ({error!r}). {_CURE}") from error
        self.has_network = network is not None
        for required in (MANIFEST, TABLES, *([NETWORK] if self.has_network else [])):
            if required not in checksums:
                raise CheckpointError(f"bundle '{self.path}' lacks '{required}' in its checksums. {_CURE}")
        self.nbytes = folder_nbytes(self.path)

    def _refuse_other_folders(self) -> None:
        if is_bundle(self.path):
            return
        inside = f"; the run's bundle is '{self.path / 'bundle'}'" if is_bundle(self.path / "bundle") else ""
        raise CheckpointError(
            f"'{self.path}' holds no bundle: it has no "
            f"{MANIFEST}{inside or '. Give a folder that embank export or save_bundle wrote'}"
        )

    def _refuse_other_versions(self, manifest: Mapping[str, Any]) -> None:
        if manifest.get("format") != FORMAT:
            raise CheckpointError(
                f"'{self.path / MANIFEST}' is not a bundle's: its format is {manifest.get('format')!r}, not "
                f"{FORMAT!r}. Give a folder that embank export or save_bundle wrote"
            )
        if manifest.get("format_version") not in (1, FORMAT_VERSION):
            raise CheckpointError(
                f"bundle '{self.path}' has format version {manifest.get('format_version')}; embank {embank_version()} "
                f"reads versions 1 and {FORMAT_VERSION}. Load it with the embank that wrote it "
                f"({self.embank_version}), or export it again with this one"
            )
        if manifest.get("hash_version") != HASH_VERSION:
            raise CheckpointError(
                f"bundle '{self.path}' was addressed by hash version {manifest.get('hash_version')}; embank "
                f"{embank_version()} has version {HASH_VERSION}, which gives ids other rows. Load it with the embank "
                f"that wrote it ({self.embank_version}), or train again"
            )
        version = manifest.get("token_hash_version")
        refuse_other_token_hash(version, what=f"bundle '{self.path}'", error=CheckpointError)

    def tables(self) -> PackedCollection:
        """The tables, mapped from their file.

        Raises:
            CheckpointError: a method is not installed, or its packed form is not the one that was saved.
        """
        wanted = {stored.key for entry in self.entries for stored in entry.tensors.values()}
        tensors = self._read(TABLES, wanted)
        packs = [self._pack(entry, tensors) for entry in self.entries]
        collection = PackedCollection([entry.spec() for entry in self.entries], packs)
        if collection.keys != self.keys:
            raise CheckpointError(
                f"bundle '{self.path}' has the keys {self.keys}, its tables give {collection.keys}. {_CURE}"
            )
        return collection.eval()

    def network(self) -> dict[str, Tensor]:
        """Parameters and buffers of the network by name, mapped from their file.

        Raises:
            ConfigError: there is none.
        """
        if self._network is None:
            raise ConfigError(f"bundle '{self.path}' has tables but no network; give the bundle of a training run")
        tensors = self._read(NETWORK, {stored.key for stored in self._network.values()})
        return {name: self._shaped(tensors, stored) for name, stored in self._network.items()}

    def _shaped(self, tensors: Mapping[str, Tensor], stored: StoredTensor) -> Tensor:
        try:
            return tensors[stored.key].view(tuple(stored.shape))
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"'{self.path / MANIFEST}' is damaged: '{stored.key}' has {tensors[stored.key].numel():,} numbers, not "
                f"shape {stored.shape}. {_CURE}"
            ) from error

    def _pack(self, entry: TableEntry, tensors: Mapping[str, Tensor]) -> PackedTable:
        own = {name: self._shaped(tensors, stored) for name, stored in entry.tensors.items()}
        try:
            table = self._restored(entry, own)
            return tried(table, entry.spec())
        except ConfigError as error:
            raise CheckpointError(
                f"table '{entry.name}' of bundle '{self.path}' can't be loaded: {error}. Install the package that has "
                "the method"
            ) from error
        except CheckpointError as error:
            raise CheckpointError(f"table '{entry.name}' of bundle '{self.path}': {error}") from error

    def _restored(self, entry: TableEntry, tensors: Mapping[str, Tensor]) -> PackedTable:
        try:
            if "packed" in entry.served:
                return restored_v1(entry.spec(), entry.served["packed"], entry.served["facts"], tensors)
            return PackedTable.restore(entry.method, entry.served, tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"what it says of its parts is damaged ({error!r}). {_CURE}") from error

    def _read(self, file: str, keys: set[str]) -> dict[str, Tensor]:
        try:
            with safe_open(self.path / file, framework="pt") as opened:
                return {key: opened.get_tensor(key) for key in keys}
        except (OSError, SafetensorError) as error:
            refuse_exhausted(error, doing=f"reading '{self.path / file}'")
            raise CheckpointError(f"'{self.path / file}' can't be read: {cause_of(error)}. {_CURE}") from error


def folder_nbytes(path: str | Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
