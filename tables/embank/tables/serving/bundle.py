"""Bundles: tables in their inference form as files, with or without a network.

A bundle is a folder that is written once and never changed:

    manifest.json          versions; of each table its name, shape, features, method, and what it is served as: spine,
                           codecs, their plain attributes; the output's keys; what the tables were trained as (options,
                           budget, number of ids); the caller's facts
    tables.safetensors     the tensors of all packed tables, each once, however many tables share it
    network.safetensors    parameters and buffers of the network, if there is one
    ...                    what the writer adds: of a training run preprocess.json, vocabulary.safetensors, tokens/
    checksums.json         SHA-256 and bytes of each file

It is loaded without the data that the tables were trained on, and without their training configuration. Tensors are
mapped from the file, not read into memory: pages come in when rows are looked up, and processes share them.

Here bundles are read, without TorchRec and whatever else only training needs; `embank.tables.serving.saving` writes
them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.ids.hashing import HASH_VERSION
from embank.tables.ids.token_space import refuse_other_token_hash
from embank.tables.serving.packed import PackedCollection
from embank.tables.serving.stored import StoredTensor, mapped_tensors
from embank.tables.serving.table import PackedTable, tried
from embank.tables.serving.version_1 import restored_v1
from embank.tables.specs import Pooling, TableSpec
from embank.tables.storage.checksums import CHECKSUMS, file_digest, verify_checksums
from embank.tables.storage.json_text import read_json
from embank.tables.storage.refusals import cause_of
from embank.tables.storage.resources import refuse_exhausted
from embank.tables.version import embank_version
from embank.tables.wording import shown

FORMAT, FORMAT_VERSION = "embank bundle", 2
MANIFEST, TABLES, NETWORK = "manifest.json", "tables.safetensors", "network.safetensors"
Verify = bool | Literal["small"]
"""Of which files the SHA-256 is compared: all, none, or the small ones."""
_CURE = "Copy the bundle again or export it again"


@dataclass(frozen=True, kw_only=True)
class TableEntry:
    """One table in the manifest.

    Args:
        name, num_embeddings, embedding_dim, feature_names, pooling: as in `TableSpec`.
        method: name of the method, whose module has the spine.
        served: what `PackedTable.manifest` gave.
        tensors: buffers of the packed table by name.
        weighted: as in `TableSpec`; written down where it is true.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: Sequence[str]
    pooling: Pooling
    method: str
    served: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    weighted: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TableEntry":
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError: keys are missing or unknown, or values of another type.
        """
        tensors = {name: StoredTensor.from_json(stored) for name, stored in values["tensors"].items()}
        if "packed" in values:  # version 1
            served = {"packed": values["packed"], "facts": values["facts"]}
            values = {name: value for name, value in values.items() if name not in served} | {"served": served}
        entry = cls(**{**values, "tensors": tensors})
        kinds: list[tuple[object, type]] = [(entry.feature_names, list), (entry.served, dict)]
        kinds += [(text, str) for text in (entry.name, entry.method, entry.pooling, *entry.feature_names)]
        kinds += [(number, int) for number in (entry.num_embeddings, entry.embedding_dim)]
        kinds += [(entry.weighted, bool)]
        wrong = [(value, kind) for value, kind in kinds if type(value) is not kind]
        if wrong:
            raise TypeError(f"of a table {shown(wrong[0][0])} is no {wrong[0][1].__name__}")
        return entry

    def to_json(self) -> dict[str, Any]:
        """What the manifest says of the table."""
        values = asdict(self)
        if not self.weighted:
            del values["weighted"]  # an older embank does not know it
        return values

    def spec(self) -> TableSpec:
        """The table as the model sees it."""
        return TableSpec(
            name=self.name,
            num_embeddings=self.num_embeddings,
            embedding_dim=self.embedding_dim,
            feature_names=self.feature_names,
            pooling=self.pooling,
            method=self.method,
            weighted=self.weighted,
        )


def load_bundle(path: str | Path, *, verify: Verify = True) -> PackedCollection:
    """The tables of a bundle, ready to look up: a drop-in for `torchrec.EmbeddingBagCollection` at inference.

    Args:
        path: what `save_bundle`, a training run or `embank export` wrote.
        verify: whether the SHA-256 of the files is compared, which reads all of them: for tables that are larger than
            what is looked up, "small" compares that of all but rows and vocabularies, and False of none. Sizes are
            compared in any case.

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
        files: names of its files within the folder, the checksums' own aside. Others that lie there are none of it.
        listing: of each of them SHA-256 and bytes, as they were written.
        nbytes: bytes of all files.
        checksum: SHA-256 of the file of checksums, which stands for all files: two bundles of one checksum are equal.

    Raises:
        CheckpointError: no bundle, or one that is damaged or of another version.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=10, embedding_dim=2, feature_names=["item"])
        >>> tables = TableCollection([spec])
        >>> save_bundle("bundle", tables)
        >>> bundle = Bundle("bundle")
        >>> [(entry.name, entry.method) for entry in bundle.entries], bundle.has_network
        ([('item', 'full')], False)
        >>> len(bundle.checksum), bundle.checksum.startswith(bundle.version)
        (64, True)
    """

    def __init__(self, path: str | Path, *, verify: Verify = True) -> None:
        self.path = Path(path)
        self._refuse_other_folders()
        manifest = read_json(self.path / MANIFEST, cure=_CURE)
        self.embank_version = str(manifest.get("embank_version", "unknown"))
        self._refuse_other_versions(manifest)
        read = _is_small if verify == "small" else lambda name: bool(verify)
        checksums = verify_checksums(self.path, kind="bundle", cure=_CURE, read=read)
        self.files: list[str] = list(checksums)
        self.listing: dict[str, Any] = checksums
        self.checksum: str = file_digest(self.path / CHECKSUMS)["sha256"]
        try:
            self.keys: list[str] = list(manifest["keys"])
            self.entries = [TableEntry.from_json(values) for values in manifest["tables"]]
            self.facts: dict[str, Any] = dict(manifest["facts"])
            network = manifest.get("network")
            self._network = network and {name: StoredTensor.from_json(stored) for name, stored in network.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"'{self.path / MANIFEST}' is damaged ({error!r}). {_CURE}") from error
        self.has_network = network is not None
        for required in (MANIFEST, TABLES, *([NETWORK] if self.has_network else [])):
            if required not in checksums:
                raise CheckpointError(f"bundle '{self.path}' lacks '{required}' in its checksums. {_CURE}")
        self.nbytes = folder_nbytes(self.path)

    @property
    def version(self) -> str:
        """A short name of what the bundle holds: the first 12 digits of `checksum`."""
        return version_of(self.checksum)

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
        except ConfigError:
            raise  # a method or codec that is not installed; it is a ValueError too
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"what it says of its parts is damaged ({error!r}). {_CURE}") from error

    def _read(self, file: str, keys: set[str]) -> dict[str, Tensor]:
        try:
            with safe_open(self.path / file, framework="pt"):  # checks what the file says of its tensors
                return mapped_tensors(self.path / file, keys)
        except KeyError as error:
            raise CheckpointError(f"'{self.path / file}' can't be read: it has no tensor {error}. {_CURE}") from error
        except (OSError, SafetensorError) as error:
            refuse_exhausted(error, doing=f"reading '{self.path / file}'")
            raise CheckpointError(f"'{self.path / file}' can't be read: {cause_of(error)}. {_CURE}") from error


def _is_small(file: str) -> bool:
    """Of a bundle's files by name: what says how to look up and to score, but neither rows nor vocabularies."""
    return file == NETWORK or file.endswith(".json")


def version_of(checksum: str) -> str:
    """A bundle's version, by its checksum."""
    return checksum[:12]


def folder_nbytes(path: str | Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
