"""`prepare --like`: which configuration and which input, and what is told of it afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from embank.pipelines.config.columns import PrepareConfig, TimeSplit, merge, parse_config
from embank.pipelines.data.prepare.reference import Reference
from embank.pipelines.data.schema import FORMAT_VERSION, LIKE_FILE, SPLIT_NAMES, Schema, Split
from embank.pipelines.data.sources.formats.base import Chunk, Source, TextOptions, check_column
from embank.pipelines.data.sources.formats.derived import DerivedSource
from embank.pipelines.data.sources.formats.registry import find_format
from embank.tables.errors import CheckpointError, ConfigError, DataError
from embank.tables.storage.json_text import read_json
from embank.tables.wording import listing

MAY_DIFFER = ("label", "split", "separator", "quote", "escape")
"""Keys of a configuration that ids don't depend on: what a click is, which rows go where, how a file is written."""
ORIGIN = "__origin__"
"""Key under which a configuration says which file it is from."""
_SUFFIXES = {".parquet": "parquet", ".parq": "parquet", ".pq": "parquet"}


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What `like.json` says of a folder that was prepared like another.

    Args:
        path: the run, bundle or prepared folder that it was prepared like, as it was given.
        kind: which of these it was.
        fingerprint: of its vocabularies, and so of the folder's.
        format: of the raw input.
        time: the column of times whose values are in `times`; None where there is none.
        has_dates: whether these are of days, and not bare numbers.
        has_tokens: whether the vocabularies themselves were at hand. Without them the folder has no `vocab`, and only
            bundles can be evaluated on it.
        splits: split to its rows and features: values, unknown ones (None where none can be) and missing ones.
    """

    path: str
    kind: str
    fingerprint: str
    format: str
    has_tokens: bool
    time: str | None
    has_dates: bool
    splits: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Of a prepared folder; None if it was not prepared like another.

        Raises:
            DataError: it is damaged.
        """
        if not (folder / LIKE_FILE).is_file():
            return None
        try:
            return cls(**read_json(folder / LIKE_FILE))
        except (CheckpointError, TypeError) as error:
            raise DataError(f"'{folder / LIKE_FILE}' is damaged ({error}). Prepare the data again.") from error

    def save(self, folder: Path) -> None:
        """Write `like.json`."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (folder / LIKE_FILE).write_text(text + "\n", encoding="utf-8")

    def share(self, split: str, feature: str, what: str) -> float | None:
        """Share of a split's values that are unknown (`what="unknown"`), or of its rows where one is missing; None
        where nothing was counted."""
        of = self.splits.get(split)
        count = None if of is None else of["features"][feature][what]
        if of is None or count is None:
            return None
        return float(count / max(1, of["features"][feature]["values"] if what == "unknown" else of["rows"]))

    @property
    def features(self) -> list[str]:
        """The features that were counted, in their order."""
        return list(next(iter(self.splits.values()))["features"])


@dataclass(frozen=True)
class LikeInput:
    """An opened input.

    Args:
        source: the files.
        wanted: columns that are read; without labels, not theirs.
        format: of the files.
        time: a column of times that is read too, if it is not among them.
    """

    source: Source
    wanted: list[str]
    format: str
    time: str | None

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        return [*self.wanted, *([] if self.time is None or self.time in self.wanted else [self.time])]


def like_config(reference: Reference, config: Mapping[str, Any] | None, *, split: str | None) -> PrepareConfig:
    """The configuration of the reference, with another label, split or dialect where these are given.

    A label of another column has the rules that are given with it and none of the reference's.

    Args:
        reference: what is prepared like.
        config: keys that differ.
        split: the one that all rows go to.

    Raises:
        ConfigError: a key that would change ids, or a split that is given twice.
    """
    values = dict(config or {})
    origin = values.pop(ORIGIN, "the configuration")
    if other := [key for key in values if key not in MAY_DIFFER]:
        raise ConfigError(
            f"{origin} has {listing(map(repr, other))}, which would change ids or features: with --like these are "
            f"those of '{reference.path}'. Only {', '.join(MAY_DIFFER)} may be given"
        )
    if split is not None:
        if "split" in values:
            raise ConfigError(f"the split is given twice, by --split {split} and in {origin}. Remove one of them")
        if split not in SPLIT_NAMES:
            raise ConfigError(f"--split is {split!r}; it is one of {', '.join(SPLIT_NAMES)}")
        values["split"] = {"by": "one", "name": split}
    label = values.get("label")
    column = label.get("column") if isinstance(label, Mapping) else label
    features = [*reference.rules.config.features, *reference.rules.config.numeric]
    if isinstance(column, str) and column in features:
        raise ConfigError(
            f"{origin}: the label column {column!r} is a feature of '{reference.path}', which leaks the answer; take "
            "another column, or prepare and train without that feature"
        )
    return parse_config(merge(reference.rules.config.model_dump(), values), origin=origin)


def like_source(
    reference: Reference, config: PrepareConfig, paths: Sequence[Path], *, format: str | None, labelled: bool
) -> LikeInput:
    """The raw input, with the columns of a configuration.

    Args:
        reference: what is prepared like.
        config: from `like_config`.
        paths: files, or what the format takes else.
        format: of the files; by default that of the reference, or Parquet by the files' names.
        labelled: whether the rows have labels.

    Raises:
        ConfigError, DataError: what the format refuses, or a missing column, with the nearest one.
    """
    rules = reference.rules
    suffixes = [path.suffix.lower() for path in paths]
    name = format or next((_SUFFIXES[suffix] for suffix in suffixes if suffix in _SUFFIXES), rules.schema.source)
    entry = find_format(name)
    options = TextOptions()
    if entry.needs_config:
        options = TextOptions(separator=config.separator, quote=config.quote, escape=config.escape)
    source = entry.open(paths, options) if labelled else (entry.open_rows or entry.open)(paths, options)
    wanted = [name for name in config.columns if labelled or name != config.label.column]
    derive, needs = rules.format.derive, rules.format.needs
    if derive is None or needs is None or (labelled and entry is rules.format):
        _check(source, wanted, config, reference)
        return LikeInput(source, wanted, name, time_of(reference, config, source.columns))

    def derived(chunk: Chunk, columns: Sequence[str]) -> Iterator[Chunk]:
        yield derive(chunk, columns)

    _check(source, needs(wanted), config, reference)
    time = time_of(reference, config, source.columns, needs=needs)
    given = [*wanted, *([] if time is None or time in wanted else [time])]
    whole = DerivedSource(source, columns=given, needs=needs, derive=derived, default={})
    return LikeInput(whole, wanted, name, time)


def time_of(
    reference: Reference,
    config: PrepareConfig,
    columns: Sequence[str],
    *,
    needs: Callable[[Sequence[str]], Sequence[str]] | None = None,
) -> str | None:
    """The column of times to take along: that of the split by time, or of the reference's where the input has it."""
    if isinstance(config.split, TimeSplit):
        return config.split.column
    split = reference.rules.config.split
    if not isinstance(split, TimeSplit):
        return None
    raw = [split.column] if needs is None else needs([split.column])
    return split.column if set(raw) <= set(columns) else None


def _check(source: Source, columns: Sequence[str], config: PrepareConfig, reference: Reference) -> None:
    check = partial(check_column, source, whose=f"'{reference.path}' was made of")
    for column in columns:
        if column == config.label.column and column not in source.columns:
            try:
                check(column)
            except DataError as error:
                raise DataError(f"{error} If the rows have no labels, say --unlabelled.", field=column) from None
        check(column)


def like_schema(reference: Reference, config: PrepareConfig, *, splits: tuple[Split, ...], labelled: bool) -> Schema:
    """The schema of the new folder: that of the reference, with other splits."""
    return replace(
        reference.rules.schema,
        format_version=FORMAT_VERSION,
        label=config.label.column if labelled else None,
        splits=splits,
        row_group_rows=config.row_group_rows,
    )
