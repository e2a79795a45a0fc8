"""Which tokens the rows of a source stand for: by itself, a file of tokens, a vocabulary of FuxiCTR or ours."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from embank.pipelines.data.preprocessing.rules import INDEX, PREPROCESS, Preprocessing
from embank.pipelines.data.schema import SCHEMA_FILE, VOCAB_FOLDER, Schema
from embank.pipelines.importing.sources import FIRST_ORDER
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.open import data_of
from embank.tables.errors import ConfigError, DataError
from embank.tables.ids.vocabulary import Vocabulary
from embank.tables.serving.bundle import is_bundle
from embank.tables.storage.refusals import cause_of
from embank.tables.wording import nearest_or_all, shown

PAD, OOV = "__PAD__", "__OOV__"
FEATURE_MAP = "feature_map.json"
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RowTokens:
    """What the rows of a source's table stand for.

    Args:
        tokens: String series [K], each once.
        rows_K: their rows.
        unknown_row: the row of unknown values; None where there is none.
        missing_row: that of missing values.
        num_rows: that the table must have; None where it may have any.
        what: for messages.
        names: a token a row, null where it stands for none; None where rows are not in order.
        is_list: whether a file beside the source says them, rather than it or a vocabulary of ours.
    """

    tokens: pl.Series
    rows_K: Rows
    names: pl.Series | None = None
    unknown_row: int | None = None
    missing_row: int | None = None
    num_rows: int | None = None
    what: str
    is_list: bool = False

    @classmethod
    def of_keys(cls, keys: pl.Series, *, what: str) -> RowTokens:
        """Of a token a row; null stands for unknown values in row 0, and for missing ones in another."""
        null_rows = np.flatnonzero(keys.is_null().to_numpy())
        rows_K = np.flatnonzero(keys.is_not_null().to_numpy()).astype(np.int64)
        return cls(
            tokens=keys.drop_nulls().cast(pl.String),
            rows_K=rows_K,
            unknown_row=0 if 0 in null_rows else None,
            missing_row=next((int(row) for row in null_rows if row), None),
            num_rows=len(keys),
            what=what,
            names=keys.cast(pl.String),
        )

    @classmethod
    def of_listed(cls, tokens: pl.Series, *, what: str) -> RowTokens:
        """Of a list of tokens in which __OOV__ is the row of unknown values, and __PAD__ stands for none."""
        by_token = {special: np.flatnonzero((tokens == special).to_numpy()).tolist() for special in (OOV, PAD)}
        unknown = next(iter(by_token[OOV]), None)
        is_plain = ((tokens != OOV) & (tokens != PAD)).to_numpy()
        return cls(
            tokens=tokens.filter(pl.Series(is_plain)),
            rows_K=np.flatnonzero(is_plain).astype(np.int64),
            unknown_row=unknown,
            missing_row=unknown,
            num_rows=len(tokens),
            what=what,
            is_list=True,
            names=tokens.set(pl.Series(~is_plain), None),
        )

    @classmethod
    def of_vocabulary(cls, vocabulary: Vocabulary, *, what: str) -> RowTokens:
        """Of a vocabulary of ours, whose ids are the rows."""
        return cls.of_keys(vocabulary.tokens, what=what)


class TokenSources:
    """What `--vocab` has named: one for all tables, or some by table.

    Args:
        options: PATH or TABLE=PATH, as they were given.

    Raises:
        ConfigError: a path that is no vocabulary, two for one table.
        DataError: a vocabulary is damaged.
    """

    def __init__(self, options: Sequence[str]) -> None:
        self.by_table: dict[str | None, Path] = {}
        for option in options:
            name, path = _split(option)
            if name in self.by_table:
                which = "all tables" if name is None else f"table '{name}'"
                raise ConfigError(f"--vocab names two vocabularies of {which}; give one")
            if not path.exists():
                raise DataError(
                    f"there is no '{path}', which --vocab names; give a prepared folder, a run, a bundle, a file of "
                    "tokens or FuxiCTR's feature_vocab.json"
                )
            self.by_table[name] = path

    @property
    def feature_map(self) -> Path | None:
        """FuxiCTR's feature_map.json, which lies beside its vocabularies."""
        for path in self.by_table.values():
            if path.suffix == ".json" and path.with_name(FEATURE_MAP).is_file():
                return path.with_name(FEATURE_MAP)
        return None

    def refuse_unknown(self, tables: Mapping[str, object]) -> None:
        """Raises ConfigError for a vocabulary of a table that the source has not."""
        for name in self.by_table:
            if name is not None and name not in {table.removeprefix(FIRST_ORDER) for table in tables}:
                raise ConfigError(
                    f"--vocab {name}=...: there is no such table; {nearest_or_all(name, tables, label='there are')}"
                )

    def path_of(self, table: str) -> Path | None:
        """What was named for a table, by its own name or its feature's; None where nothing was."""
        own = self.by_table.get(table.removeprefix(FIRST_ORDER))
        return own or self.by_table.get(None)

    def is_ours(self, table: str) -> bool:
        """Whether a table's vocabulary is one of a prepared folder, a run or a bundle."""
        path = self.path_of(table)
        return path is not None and path.is_dir()

    def vocabulary(self, table: str) -> Vocabulary | None:
        """A vocabulary of ours for a table; None where the folder has none of that name."""
        path = self.path_of(table)
        return None if path is None or not path.is_dir() else _of_folder(path, table.removeprefix(FIRST_ORDER))

    def tokens(self, table: str) -> RowTokens | None:
        """The tokens of a table's rows; None where nothing was named for it.

        Raises:
            ConfigError, DataError: it has none for the table, or is damaged.
        """
        path, feature = self.path_of(table), table.removeprefix(FIRST_ORDER)
        if path is None:
            return None
        if path.is_dir():
            vocabulary = _of_folder(path, feature)
            if vocabulary is None:
                raise ConfigError(
                    f"'{path}' has no vocabulary of '{feature}'; name the table by --table FEATURE={feature}, or give "
                    f"--vocab {feature}=PATH"
                )
            return RowTokens.of_vocabulary(vocabulary, what=f"the vocabulary of '{feature}' in '{path}'")
        if path.suffix == ".json":
            return _of_json(path, feature)
        return RowTokens.of_listed(_of_file(path), what=f"'{path}'")


def _split(option: str) -> tuple[str | None, Path]:
    name, sign, path = option.partition("=")
    return (name, Path(path)) if sign and not Path(option).exists() else (None, Path(option))


def _of_folder(path: Path, feature: str) -> Vocabulary | None:
    """The vocabulary of a feature in a prepared folder, a run or a bundle."""
    run = RunFolder(path)
    if is_bundle(path) or (run.is_run and is_bundle(run.bundle)):
        bundle = path if is_bundle(path) else run.bundle
        if (bundle / PREPROCESS).is_file():
            rules = Preprocessing.load(bundle)
            return rules.vocabulary(feature) if feature in rules.index.facts else None
        if not run.is_run:
            raise ConfigError(f"the bundle '{path}' has no {INDEX}, and so no vocabularies; give the prepared folder")
    if run.is_run:
        from embank.pipelines.config.run import parse_config

        path = data_of(parse_config(run.read_config()), None)
    if not (path / SCHEMA_FILE).is_file():
        raise ConfigError(
            f"--vocab '{path}' is no prepared folder, run or bundle; give one, a file of tokens, or FuxiCTR's "
            "feature_vocab.json"
        )
    fields = {field.name: field for field in Schema.load(path).categorical}
    if feature not in fields or not fields[feature].has_vocabulary:
        return None
    return Vocabulary.load(path / VOCAB_FOLDER / f"{feature}.parquet", name=feature)


def _of_json(path: Path, feature: str) -> RowTokens:
    """A vocabulary of FuxiCTR: tokens to rows, or features to those. A list is a token a row."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        cause = cause_of(error) if isinstance(error, OSError) else error
        raise DataError(f"'{path}' can't be read as JSON ({cause}); write it again") from error
    if isinstance(values, list):
        tokens = pl.Series("key", [str(value) for value in values], dtype=pl.String)
        return RowTokens.of_listed(_each_once(tokens, path, "entry"), what=f"'{path}'")
    if isinstance(values, dict) and values and all(isinstance(value, dict) for value in values.values()):
        if feature not in values:
            raise DataError(
                f"'{path}' has no vocabulary of '{feature}': name the table by --table FEATURE={feature}; "
                f"{nearest_or_all(feature, values, label='there are')}"
            )
        values = values[feature]
    what = f"the vocabulary of '{feature}' in '{path}'"
    if not isinstance(values, dict) or not all(isinstance(row, int) and row >= 0 for row in values.values()):
        raise DataError(f"{what} is no mapping from tokens to rows; give FuxiCTR's feature_vocab.json")
    rows: dict[int, str] = {}
    for token, row in values.items():
        if rows.setdefault(row, token) != token:
            raise DataError(f"{what}: tokens {shown(rows[row])} and {shown(token)} both have row {row:,}; mend it")
    plain = {token: row for token, row in values.items() if token not in (PAD, OOV)}
    return RowTokens(
        tokens=pl.Series("key", list(plain), dtype=pl.String),
        rows_K=np.fromiter(plain.values(), dtype=np.int64, count=len(plain)),
        unknown_row=values.get(OOV),
        missing_row=values.get("", values.get(OOV)),
        num_rows=max(values.values(), default=-1) + 1,
        what=what,
        is_list=True,
    )


def _of_file(path: Path) -> pl.Series:
    """A token a line, or a Parquet file with one column of text."""
    if path.suffix == ".parquet":
        try:
            frame = pl.read_parquet(path, glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"'{path}' can't be read as Parquet ({error}); write it again") from error
        texts = [name for name in frame.columns if frame[name].dtype == pl.String]
        if len(texts) != 1:
            raise DataError(f"'{path}' has {len(texts)} columns of text; a file of tokens has one")
        if frame[texts[0]].null_count():
            raise DataError(f"'{path}', column '{texts[0]}': a token is null; write __OOV__ for the unknown value")
        return _each_once(frame[texts[0]].alias("key"), path, "row")
    tokens = []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"'{path}' can't be read: {cause_of(error)}") from error
    for number, line in enumerate(content.removeprefix(BOM_UTF8).split(b"\n"), start=1):
        try:
            tokens.append(line.decode("utf-8").removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"'{path}', line {number:,}: {shown(line)} is not UTF-8 (byte {error.start}). Write the file again in "
                "UTF-8, a token a line"
            ) from error
    if tokens and not tokens[-1]:
        tokens.pop()
    return _each_once(pl.Series("key", tokens, dtype=pl.String), path, "line")


def _each_once(tokens: pl.Series, path: Path, unit: str) -> pl.Series:
    refuse_empty(tokens, what=f"'{path}', {unit}", first=1)
    if tokens.n_unique() < len(tokens):
        row = int(np.flatnonzero((~tokens.is_first_distinct()).to_numpy())[0])
        first = int(np.flatnonzero((tokens == tokens[row]).to_numpy())[0])
        where = f"{unit}s".replace("entrys", "entries")
        raise DataError(
            f"'{path}', {where} {first + 1:,} and {row + 1:,}: both have the token {shown(tokens[row])}. Each stands "
            "for one row; leave one out, with its row"
        )
    return tokens


def refuse_empty(tokens: pl.Series, *, what: str, first: int) -> None:
    """Raises DataError for a token without a character.

    Args:
        tokens: String series.
        what: the words before the number of a token.
        first: the number of the first one.
    """
    empty = np.flatnonzero((tokens == "").fill_null(value=False).to_numpy())
    if empty.size:
        row = int(empty[0])
        raise DataError(f"{what} {first + row:,}: the token is empty. Name it, or leave it out with its row", row=row)
