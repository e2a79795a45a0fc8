"""What `embank prepare` is told: columns, label rule, split rule, minimum counts; read from YAML, unknown keys refused.

Published formats bring a configuration of their own; a user's YAML replaces its keys one by one (`label` is merged key
by key, unless it is another column; everything else is taken whole).
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from embank.pipelines.config.file import read_mapping
from embank.pipelines.config.null_values import as_written
from embank.pipelines.config.problems import first_problem, problem_of, unknown_key
from embank.pipelines.config.reserved import DEFAULT_ROW_GROUP_ROWS, GROUP_COLUMN, LABEL_COLUMN
from embank.tables.errors import ConfigError
from embank.tables.scalars import plain
from embank.tables.validation import problem_in_words
from embank.tables.wording import did_you_mean, shown

Transform = Literal["none", "log1p", "standard", "log_squared"]
_MAX_NAME_BYTES = 200
Missing = Literal["zero", "mean", "indicator"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LabelConfig(_Model):
    """Which rows are positive and which negative.

    Without rules the column must hold 0 and 1, true and false, or yes and no. With one rule the other rows are of the
    other class; with both, rows that match neither are dropped. A rule is an operator and a number, such as ">= 4", or
    == or != and a word.
    """

    column: str
    positive: str | None = None
    negative: str | None = None


class NumericConfig(_Model):
    """A numeric feature.

    Args:
        transform: what is done to its numbers.
        missing: what stands where a number is missing, after the transform: 0.0, the mean of the training part, or the
            mean and another column, `NAME_missing`, that is 1 there and else 0.
    """

    transform: Transform = "none"
    missing: Missing = "mean"


Ratios = Annotated[list[float], Field(min_length=3, max_length=3)]


class _RatioConfig(_Model):
    ratios: Ratios = [0.8, 0.1, 0.1]

    @field_validator("ratios", mode="before")
    @classmethod
    def _check_ratios(cls, ratios: Any) -> Any:
        if not isinstance(ratios, list) or not all(type(ratio) in (int, float) for ratio in ratios):
            raise ValueError("ratios are three numbers, such as [0.8, 0.1, 0.1]")
        if len(ratios) != 3 or min(ratios) <= 0 or not abs(sum(ratios) - 1) <= 1e-6:
            raise ValueError(
                f"ratios are {ratios}; train, valid and test each need a positive share and together 1, "
                "such as [0.8, 0.1, 0.1]"
            )
        return [float(ratio) for ratio in ratios]


class HashSplit(_RatioConfig):
    """By a stable hash of the key columns, or of the row's number when there is no key."""

    by: Literal["hash"]
    key: list[str] = []
    seed: int = 0


class RatioSplit(_RatioConfig):
    """By position: the first rows train, the last rows test."""

    by: Literal["ratio"]


class TimeSplit(_RatioConfig):
    """By time: the earliest rows train, the latest test; rows of one time stay together."""

    by: Literal["time"]
    column: str


class ColumnSplit(_Model):
    """By a column that holds `train`, `valid` or `test`."""

    by: Literal["column"]
    column: str


class OneSplit(_Model):
    """All rows into one split: for rows that are prepared like others (`embank prepare --like ... --split test`)."""

    by: Literal["one"]
    name: Literal["train", "valid", "test"]


SplitConfig = Annotated[HashSplit | RatioSplit | TimeSplit | ColumnSplit | OneSplit, Field(discriminator="by")]


class PrepareConfig(_Model):
    """Everything that decides what a prepared folder holds.

    Args:
        label: column and rule.
        categorical: columns with one token per row.
        multivalued: column to separator; null for list columns of Parquet.
        numeric: column to transform, or to transform and what is done about missing numbers.
        hashed: categorical and multi-valued columns without a vocabulary: ids are hashes of their text, see
            `embank.tables.ids.token_hash`. A column that is named here alone is categorical.
        split: how rows are divided into train, valid and test.
        min_count: tokens rarer than this in the training part become unknown; one number, or per feature (the key
            `default` is for the others).
        group: column whose values group rows for the group AUC.
        separator, quote: of CSV and TSV input, one character each; `quote: null` for files without quoting.
        escape: how a quote inside a quoted cell is written: behind this character (a backslash in files of Spark and
            MySQL), or doubled where it is the quote itself. None: doubled, and what may be another dialect is refused.
            With `quote: null`, the character before separators and line ends that belong to a cell.
        null_values: spellings of a missing value besides the empty cell, in all columns; numbers are compared as such,
            see `embank.pipelines.data.prepare.nulls`. In numeric columns, the spellings there count as well.
        row_group_rows: rows per Parquet row group of the output.
    """

    label: LabelConfig
    categorical: list[str] = []
    multivalued: dict[str, str | None] = {}
    numeric: dict[str, NumericConfig] = {}
    hashed: list[str] = []
    split: SplitConfig = HashSplit(by="hash")
    min_count: int | dict[str, int] = 1
    group: str | None = None
    separator: str | None = None
    quote: str | None = '"'
    escape: str | None = None
    null_values: list[str] = []
    row_group_rows: Annotated[int, Field(ge=1, le=16_777_216)] = DEFAULT_ROW_GROUP_ROWS

    @field_validator("numeric", mode="before")
    @classmethod
    def _numeric_in_short(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {name: {} for name in value} if all(isinstance(name, str) for name in value) else value
        if isinstance(value, dict):
            return {name: {"transform": kind} if isinstance(kind, str) else kind for name, kind in value.items()}
        return value

    @field_validator("label", mode="before")
    @classmethod
    def _label_in_short(cls, value: Any) -> Any:
        return _label(value)

    @field_validator("null_values", mode="before")
    @classmethod
    def _null_in_yaml(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts = [str(item) if type(item) in (int, float) else item for item in value]
        # An unquoted NULL is YAML's own null: whichever way it was written, all of them are meant.
        return [text for item in texts for text in (("NULL", "Null", "null") if item is None else (item,))]

    @model_validator(mode="before")
    @classmethod
    def _hashed_are_features(cls, values: Any) -> Any:
        hashed, single, bags = values.get("hashed"), values.get("categorical", []), values.get("multivalued", {})
        if not isinstance(hashed, list) or not isinstance(single, list) or not isinstance(bags, dict):
            return values  # which is refused as what it is
        more = [name for name in hashed if isinstance(name, str) and name not in single and name not in bags]
        return {**values, "categorical": [*single, *dict.fromkeys(more)]}

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in (_pattern_problem(self), _feature_problem(self), _count_problem(self), _text_problem(self)):
            if problem:
                raise ValueError(problem)
        return self

    @property
    def features(self) -> list[str]:
        """Categorical, then multi-valued features: the order of `Schema.categorical`."""
        return [*self.categorical, *self.multivalued]

    @property
    def with_vocabulary(self) -> list[str]:
        """The features that are not hashed, in their order."""
        return [name for name in self.features if name not in self.hashed]

    @property
    def indicators(self) -> dict[str, str]:
        """Numeric feature to the column that says where it is missing, for those with `missing: indicator`."""
        return {name: f"{name}_missing" for name, numeric in self.numeric.items() if numeric.missing == "indicator"}

    @property
    def columns(self) -> list[str]:
        """Every raw column that is read, once, in order."""
        split = self.split
        names = [self.label.column, *self.features, *self.numeric]
        names += split.key if isinstance(split, HashSplit) else []
        names += [split.column] if isinstance(split, (TimeSplit, ColumnSplit)) else []
        names += [self.group] if self.group is not None else []
        return list(dict.fromkeys(names))

    def min_count_of(self, feature: str) -> int:
        """The minimum training count of a token of `feature`, at least 1; 1 where there is no vocabulary."""
        counts = 1 if feature in self.hashed else self.min_count
        return max(1, counts if isinstance(counts, int) else counts.get(feature, counts.get("default", 1)))


def pattern_problem(column: str) -> str | None:
    """Why a column of this name can't be read: polars takes `*` for all columns, and `^...$` for those that match."""
    if column == "*" or (len(column) > 1 and column.startswith("^") and column.endswith("$")):
        return f"column {column!r} can't be read, as polars takes such a name for a pattern; rename the column"
    return None


def _pattern_problem(config: PrepareConfig) -> str | None:
    return next((problem for column in config.columns if (problem := pattern_problem(column))), None)


def _feature_problem(config: PrepareConfig) -> str | None:
    names = [*config.features, *config.numeric]
    if not names:
        return "there is no feature; list columns under categorical, multivalued, hashed or numeric"
    again = sorted({name for name in config.hashed if config.hashed.count(name) > 1})
    if again:
        return f"column {again[0]!r} is named twice under hashed; name it once"
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        return f"column {twice[0]!r} is named twice among the features; name it once"
    for name, indicator in config.indicators.items():
        if indicator in names:
            return (
                f"numeric.{name}.missing is 'indicator', which makes a feature {indicator!r}, but there is one of "
                "that name; rename the column"
            )
    if config.label.column in names:
        return f"the label column {config.label.column!r} is also a feature, which leaks the answer; remove it there"
    for name in names:
        if len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
            return (
                f"feature {shown(name)} has a name of more than {_MAX_NAME_BYTES} bytes, too long for a file's; "
                "rename the column"
            )
        if name in (LABEL_COLUMN, GROUP_COLUMN):
            return f"a feature can't be called {name!r}, a name that prepared files use themselves; rename the column"
        if name.startswith("__"):
            return f"feature {name!r} starts with two underscores, as names of `prepare`'s own do; rename the column"
        if not name or "/" in name or "\\" in name or "\0" in name or name.startswith("."):
            return f"feature {name!r} can't be a file name (empty, a slash, or a leading dot); rename the column"
        if "@" in name and name in config.features:  # of which tables are made, with keys such as "feature@table"
            return f"feature {name!r} has '@' in its name, which is reserved; rename the column"
    return None


def _count_problem(config: PrepareConfig) -> str | None:
    counts = config.min_count if isinstance(config.min_count, dict) else {"default": config.min_count}
    for name, count in counts.items():
        if count < 1:
            return f"min_count is {count}; a minimum count is 1 or more"
        if name != "default" and name not in config.features:
            hint = did_you_mean(name, [*config.features, "default"])
            return f"min_count names {name!r}, which is no categorical feature.{hint}"
        if name in config.hashed:
            return (
                f"min_count names {name!r}, which is hashed: without a vocabulary its values are not counted. Remove "
                "it from min_count "
                "or from hashed"
            )
    return None


def _text_problem(config: PrepareConfig) -> str | None:
    for key, value in (("separator", config.separator), ("quote", config.quote), ("escape", config.escape)):
        if value is not None and (len(value) != 1 or not value.isascii() or value in "\r\n"):
            return f"{key} is {shown(value)}; it is one ASCII character"
    if config.separator is not None and config.separator == config.quote:
        return f"separator and quote are both {config.quote!r}; they must differ"
    if config.escape is not None and config.escape == (config.separator or ","):
        return f"escape and separator are both {config.escape!r}; they must differ"
    empty = [name for name, separator in config.multivalued.items() if separator == ""]
    return f"multivalued.{empty[0]} has an empty separator; give one, such as '|'" if empty else None


def read_columns(path: str | Path) -> dict[str, Any]:
    """The mapping in a columns file, see `embank.pipelines.config.file.read_mapping`; numbers under `null_values` as
    they are written there."""
    values = read_mapping(path, keys=PrepareConfig.model_fields)
    nulls = values.get("null_values")
    return {**values, "null_values": as_written(path, nulls)} if isinstance(nulls, list) else values


def merge(default: Mapping[str, Any] | None, override: Mapping[str, Any]) -> dict[str, Any]:
    """The user's keys over a format's own, or over those of what is prepared like. `label` is merged key by key; one of
    another column begins without rules, as a rule on ratings says nothing of clicks."""
    merged = {**(default or {}), **override}
    label, own = _label(override.get("label")), _label((default or {}).get("label"))
    if isinstance(own, Mapping) and isinstance(label, Mapping):
        is_other = label.get("column", own.get("column")) != own.get("column")
        merged["label"] = dict(label) if is_other else {**own, **label}
    return merged


def _label(value: Any) -> Any:
    """`label: click` is short for `label: {column: click}`."""
    return {"column": value} if isinstance(value, str) else value


def parse_config(values: Mapping[str, Any], *, origin: str) -> PrepareConfig:
    """Validate plain values.

    Args:
        origin: what to call them in messages, such as a file name.

    Raises:
        ConfigError: with the path of the first offending key and, for a misspelt one, the nearest right key.
    """
    try:
        return PrepareConfig.model_validate(plain(dict(values)))
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error)}") from None


_SPLITS: dict[str, type[BaseModel]] = {
    "hash": HashSplit,
    "ratio": RatioSplit,
    "time": TimeSplit,
    "column": ColumnSplit,
    "one": OneSplit,
}


def _explain(error: ValidationError) -> str:
    found = first_problem(error)
    where = [str(part) for part in found["loc"]]
    if len(where) > 1 and where[0] == "split" and where[1] in _SPLITS:
        del where[1]  # pydantic's name of the union's member, not a key of the user's
    if where[:1] == ["numeric"] and where[-1] == "transform":
        del where[-1]  # `price: log1p` is short for `price: {transform: log1p}`
    if where[-1:] == ["[key]"]:
        return f"{'.'.join(where[:-2])} has the key {shown(found['input'])}: {problem_in_words(found)}."
    path = ".".join(part for part in where if part not in ("int", "dict[str,int]"))
    if found["type"] == "extra_forbidden":
        return unknown_key(path, _known_keys([str(part) for part in found["loc"][:-1]]))
    if found["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"split.by must be one of hash, ratio, time, column, not {_tag(found)}."
    return problem_of(found, path=path)


def _tag(found: Any) -> str:
    value = found["input"]
    return repr(value.get("by")) if isinstance(value, dict) else repr(value)


def _known_keys(path: list[str]) -> list[str]:
    model: type[BaseModel] | None = PrepareConfig
    for part in path:
        if part in _SPLITS:
            model = _SPLITS[part]
        elif model is not None and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields) if model is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((model for arm in get_args(annotation) if (model := _model_in(arm))), None)
    return None
