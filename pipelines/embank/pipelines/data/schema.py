"""The schema of a prepared folder: which features it holds, how large their vocabularies are, how many rows each split
has.

A prepared folder is what `embank prepare` writes and what the loader reads:

    DIR/schema.json               this schema
    DIR/config.yaml               the resolved configuration that made it
    DIR/vocab/FEATURE.parquet     row i is id i: token, kind (unknown | missing | token), count in the training part; no
                                  file for a feature without a vocabulary
    DIR/{train,valid,test}/part-00000.parquet ...
    DIR/like.json                 of a folder that was prepared like another: which, and what was unknown
    DIR/times/SPLIT/part-*.parquet    of such a folder, where its data was split by time: the time of each row
    DIR/checksums.json            SHA-256 and bytes of every other file

Part files hold `label` (int8), one int32 column per categorical feature, one list<int32> column per multi-valued
feature (int64 both without a vocabulary), one float32 column per numeric feature (normalised), and `group` (int64) when
a group key is configured; nothing is null. A row whose group key is missing has the group `NO_GROUP`.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from embank.tables.errors import CheckpointError, DataError
from embank.tables.ids.mixing import GAMMA
from embank.tables.ids.token_space import NUM_TOKEN_IDS, refuse_other_token_hash
from embank.tables.storage.checksums import CHECKSUMS, file_digest
from embank.tables.storage.json_text import read_json
from embank.tables.storage.refusals import cause_of
from embank.tables.wording import shown

FORMAT_VERSION = 2
UNCHECKED_VERSION = 1
"""Written before there were checksums; read all the same."""
NO_GROUP = GAMMA - 2**64
"""The group of the rows whose group key is missing, `key_hash.MISSING_HASH` as int64: group AUC leaves them out and
counts them."""
IS_MISSING = "is_missing"
SPLIT_NAMES = ("train", "valid", "test")
SCHEMA_FILE = "schema.json"
CONFIG_FILE = "config.yaml"
LIKE_FILE = "like.json"
TIMES_FOLDER, TIME_COLUMN = "times", "time"
VOCAB_FOLDER = "vocab"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What the training part had of a feature, for comparison with rows that come later. No part of the fingerprint.

    Args:
        missing: share of its rows without a value, those with an empty bag included.
        unknown: share of its values that are unknown; None of numbers and without a vocabulary.
        unknown_valid: the same of the validation part, whose values the vocabulary was not made of.
        shares: of the most frequent ids 0, 1, 2, ... (0 is the unknown value) in all values, or of each bin of numbers.
        edges: of a numeric feature, what parts its bins: bin i has the numbers from `edges[i - 1]` to below `edges[i]`,
            as they are written (transformed, and filled where they are missing).
    """

    missing: float
    unknown: float | None = None
    unknown_valid: float | None = None
    shares: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Profile:
        """The inverse of `asdict`.

        Raises:
            TypeError: keys are missing or unknown, or values are no numbers.
        """
        rest = {**values, "shares": tuple(map(float, values["shares"])), "edges": tuple(map(float, values["edges"]))}
        return cls(**rest)


@dataclass(frozen=True, kw_only=True)
class CategoricalField:
    """A feature of ids: one per row, or a bag of 0..many when `multivalued`.

    Ids run from 0 to `num_embeddings - 1`; 0 is the unknown value, the others are ranked by training frequency. Without
    a vocabulary they are hashes of tokens (`embank.tables.ids.token_hash`), and `num_embeddings` is `NUM_TOKEN_IDS`,
    2**63.

    Args:
        num_values: without a vocabulary, different values in the training part, see
            `embank.pipelines.data.prepare.distinct`: exact up to 16,383, above that estimated with a standard deviation
            of 0.8%. None where there is a vocabulary.
        training: what the training part had; None in folders of earlier versions.
    """

    name: str
    num_embeddings: int
    multivalued: bool
    min_count: int
    num_values: int | None = None
    training: Profile | None = None

    @property
    def has_vocabulary(self) -> bool:
        """Whether ids are places in a vocabulary."""
        return self.num_embeddings < NUM_TOKEN_IDS


@dataclass(frozen=True, kw_only=True)
class NumericField:
    """A numeric feature, already transformed: everything that is needed to do the same to other rows.

    Args:
        transform: as configured, or `IS_MISSING` for a column that is 1 where the feature before it is missing and else
            0.
        mean, std: of the training part, for `standard` only.
        missing: zero, mean or indicator, as configured.
        fill: what is written, after the transform, where the number is missing.
        training: what the training part had; None in folders of earlier versions, and of an `IS_MISSING` column.
    """

    name: str
    transform: str
    mean: float | None
    std: float | None
    missing: str = "zero"
    fill: float = 0.0
    training: Profile | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """Size of one split: rows, and rows with label 1."""

    name: str
    num_rows: int
    num_positive: int


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What a prepared folder holds.

    Args:
        format_version: layout of the folder; a reader refuses another one.
        source: name of the raw format (`criteo`, `csv`, ...).
        label: name of the raw column the label was made from; None where the rows have no labels (all are -1).
        categorical: categorical features, multi-valued ones included, in the order of the configuration.
        numeric: numeric features, in the order of the configuration.
        group: name of the raw column behind `group`, or None.
        splits: train, valid, test.
        row_group_rows: rows per Parquet row group (the last one of a file may be shorter).
        fingerprint: sha256 over the field list and the vocabularies; equal fingerprints mean equal ids.
        token_hash_version: of the hash that made the ids of features without a vocabulary; None where there are none.
    """

    format_version: int = FORMAT_VERSION
    source: str
    label: str | None
    categorical: tuple[CategoricalField, ...]
    numeric: tuple[NumericField, ...]
    group: str | None
    splits: tuple[Split, ...]
    row_group_rows: int
    fingerprint: str
    token_hash_version: int | None = None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the categorical features, in order."""
        return tuple(field.name for field in self.categorical)

    @property
    def num_values(self) -> dict[str, int]:
        """Different values in training of the features without a vocabulary: what
        `embank.compression.multiplexing.specs.advise` takes."""
        return {field.name: field.num_values for field in self.categorical if field.num_values is not None}

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
            DataError: there is none.
        """
        for split in self.splits:
            if split.name == name:
                return split
        known = ", ".join(split.name for split in self.splits)
        raise DataError(f"there is no split {name!r}; this data has {known}. Use one of these.")

    def to_json(self) -> dict[str, Any]:
        """As plain lists and dicts, ready for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Schema:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError: keys are missing or unknown.
            ValueError: a value has another type than its key.
        """
        values = dict(values)
        values["categorical"] = tuple(CategoricalField(**_read(field)) for field in values["categorical"])
        values["numeric"] = tuple(NumericField(**_read(field)) for field in values["numeric"])
        values["splits"] = tuple(Split(**split) for split in values["splits"])
        return _checked(cls(**values))

    def save(self, path: str | Path) -> None:
        """Write `schema.json` into the folder `path`."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False)
        (Path(path) / SCHEMA_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """Read the schema of the prepared folder `path`.

        Raises:
            DataError: the folder or its schema is missing, broken, or of another version.
        """
        file = Path(path) / SCHEMA_FILE
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(_not_prepared(Path(path))) from None
        except OSError as error:
            raise DataError(
                f"{file} can't be read: {cause_of(error)}. Give the --out folder of `embank prepare`."
            ) from error
        except ValueError as error:
            raise DataError(f"{file} can't be read ({error}). Run `embank prepare` again.") from error
        if not isinstance(values, dict) or "format_version" not in values:
            raise DataError(f"{file} holds no schema. Run `embank prepare` again.")
        version = values["format_version"]
        if version not in (FORMAT_VERSION, UNCHECKED_VERSION):
            raise DataError(
                f"{file} has format version {version}; this embank reads version {FORMAT_VERSION}. "
                "Run `embank prepare` again with this version."
            )
        try:
            schema = cls.from_json(values)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file} is damaged ({error}). Run `embank prepare` again.") from error
        refuse_other_token_hash(schema.token_hash_version, what=f"the data of {file}", error=DataError)
        if version != UNCHECKED_VERSION:
            _refuse_altered(file)
        return schema


def identity_of(field: CategoricalField | NumericField) -> dict[str, Any]:
    """What a fingerprint takes in of a field: all but its profile."""
    values = asdict(field)
    del values["training"]
    return values


def _read(field: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(field, dict):
        raise TypeError(f"a field is {shown(field)}")
    training = field.get("training")
    return field if training is None else {**field, "training": Profile.from_json(training)}


_hints: Callable[[type], dict[str, Any]] = cache(get_type_hints)


def _checked(schema: Schema) -> Schema:
    """The schema, if its values have the types that it says.

    Raises:
        ValueError: names the first that has not.
    """
    parts: list[Schema | CategoricalField | NumericField | Split] = [schema]
    for part in [*parts, *schema.categorical, *schema.numeric, *schema.splits]:
        hints = _hints(type(part))
        for field in fields(part):
            value, hint = getattr(part, field.name), hints[field.name]
            if get_origin(hint) is tuple:
                continue
            allowed = get_args(hint) or (hint,)
            allowed = (*allowed, int) if float in allowed else allowed
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                raise ValueError(f"{field.name} is {shown(value)}")
    return schema


def _refuse_altered(file: Path) -> None:
    """Raises DataError if the folder's checksums say that the schema was another one."""
    listing = file.with_name(CHECKSUMS)
    if not listing.is_file():
        return  # whoever reads the parts refuses the folder
    try:
        expected = read_json(listing).get(file.name)
    except CheckpointError as error:
        raise DataError(f"{error}. Run `embank prepare` again.") from error
    if expected != file_digest(file):
        raise DataError(
            f"{file} has been altered since it was written: its SHA-256 differs. Restore it, or run `embank prepare` "
            "again."
        )


def _not_prepared(path: Path) -> str:
    moved = sorted(path.parent.glob(f"{glob.escape(path.name)}.old-*/{glob.escape(path.name)}/{SCHEMA_FILE}"))
    if moved and not path.exists():
        return (
            f"there is no folder {path}: an `embank prepare --overwrite` was killed while it replaced it. What was "
            "there before is "
            f"whole, in {moved[-1].parent}: move it back to {path}, or prepare the data again."
        )
    if not path.exists():
        return f"there is no folder {path}. Give the --out folder of `embank prepare`."
    return (
        f"{path} holds no {SCHEMA_FILE}, so it is not a prepared folder. Make one with `embank prepare --out {path}`."
    )
