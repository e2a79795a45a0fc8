"""Labels: a column of two classes as it stands, or rules on a number or a word."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from embank.pipelines.config.columns import LabelConfig
from embank.pipelines.data.prepare.numbers import number_column, to_float64
from embank.pipelines.data.sources.formats.base import Chunk
from embank.tables.errors import ConfigError, DataError
from embank.tables.wording import shortened, shown

_RULE = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_OPERATORS: dict[str, np.ufunc] = {
    ">=": np.greater_equal,
    "<=": np.less_equal,
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    "<": np.less,
}
_PAIRS = (("true", "false"), ("yes", "no"), ("t", "f"), ("y", "n"))
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An operator, and the number or the word that cells are compared with."""

    operator: str
    number: float | None
    word: str

    @classmethod
    def parse(cls, text: str, *, key: str) -> Rule:
        """A rule such as ">= 4" or "== yes".

        Raises:
            ConfigError: `text` is no rule; `key` is its place in the configuration.
        """
        match = _RULE.fullmatch(text)
        if match is None or not match[2]:
            raise ConfigError(
                f'{key} is {text!r}; a rule is an operator (>= <= > < == !=) and a number, such as ">= 4", or == or '
                "!= and a word, "
                'such as "== yes".'
            )
        operator, operand = match[1], match[2]
        number = float(operand) if _NUMBER.fullmatch(operand) else None
        if number is not None and math.isinf(number):
            raise ConfigError(f"{key} is {shown(text)}; the number is too large for any cell. Give a smaller one.")
        if number is None and operator not in ("==", "!="):
            raise ConfigError(f"{key} is {text!r}; {operator} compares numbers. Words are compared with == or !=.")
        return cls(operator=operator, number=number, word=operand)

    def holds(self, values_N: Floats) -> Mask:
        """For which numbers the rule holds."""
        return np.asarray(_OPERATORS[self.operator](values_N, self.number), dtype=np.bool_)

    def holds_for(self, words: pl.Series, *, folded: bool) -> Mask:
        """For which words the rule holds; where `folded`, case doesn't count."""
        same_N = (words.str.to_lowercase() == self.word.lower()) if folded else words == self.word
        return (same_N if self.operator == "==" else ~same_N).to_numpy()


@dataclass
class LabelRule:
    """Turns the label column into 0, 1, or -1 for rows to drop. Without rules, the first row decides which pair of
    words it holds."""

    column: str
    positive: Rule | None
    negative: Rule | None
    _pair: tuple[str, str] | None = None

    @classmethod
    def build(cls, config: LabelConfig) -> LabelRule:
        """From the configuration.

        Raises:
            ConfigError: a rule can't be read, or one is about words and the other about numbers.
        """
        positive, negative = (
            None if text is None else Rule.parse(text, key=f"label.{key}")
            for key, text in (("positive", config.positive), ("negative", config.negative))
        )
        if positive and negative and (positive.number is None) != (negative.number is None):
            raise ConfigError(
                f"label.positive is {config.positive!r} and label.negative {config.negative!r}; one compares words "
                "and the other "
                "numbers. Compare with words in both, or with numbers."
            )
        return cls(config.column, positive, negative)

    def apply(self, chunk: Chunk) -> npt.NDArray[np.int8]:
        """Label of each row, [N] int8.

        Raises:
            DataError: a label is missing, of another kind than the rules, of no known class without a rule, or matches
                both rules.
        """
        rule = self.positive or self.negative
        if rule is None:
            return self._as_it_stands(chunk)
        if rule.number is None:
            return self._by_words(chunk, rule)
        raw = number_column(chunk, self.column)
        values_N, readable_N = to_float64(raw)
        known_N = readable_N & raw.is_not_null().to_numpy() & ~np.isnan(values_N)
        _require(known_N, chunk, raw, "expected a number, which the label rules need; mend or delete the line")
        return self._classes(chunk, raw, lambda rule: rule.holds(values_N))

    def _as_it_stands(self, chunk: Chunk) -> npt.NDArray[np.int8]:
        raw = _text_of_categories(chunk.frame[self.column])
        if raw.dtype != pl.String:
            raw = number_column(chunk, self.column)
        if self._pair is None and len(raw):
            first = str(raw[0]).lower()
            self._pair = next((pair for pair in _PAIRS if first in pair and raw.dtype == pl.String), ("1", "0"))
        values_N = _of_pair(raw, self._pair) if self._pair in _PAIRS else to_float64(raw)[0]
        expected = " or ".join(reversed(self._pair or ("1", "0")))
        known_N = (values_N == 0) | (values_N == 1)
        _require(known_N, chunk, raw, f"expected {expected}; mend the line{{rule}}", words=self._pair in _PAIRS)
        return values_N.astype(np.int8)

    def _by_words(self, chunk: Chunk, rule: Rule) -> npt.NDArray[np.int8]:
        column = chunk.frame[self.column]
        raw = _text_of_categories(column.cast(pl.String) if column.dtype == pl.Boolean else column)
        if raw.dtype != pl.String:
            raise DataError(
                f"{chunk.where(0)}: label {self.column!r} has type {raw.dtype}, but the label rule compares it with "
                "the word "
                f"{rule.word!r}. Compare it with a number."
            )
        _require(
            raw.is_not_null().to_numpy(),
            chunk,
            raw,
            "expected a word, which the label rules need; mend or delete the line",
        )
        return self._classes(chunk, raw, lambda rule: rule.holds_for(raw, folded=column.dtype == pl.Boolean))

    def _classes(self, chunk: Chunk, raw: pl.Series, holds: Callable[[Rule], Mask]) -> npt.NDArray[np.int8]:
        positive_N = holds(self.positive) if self.positive else None
        negative_N = holds(self.negative) if self.negative else None
        if positive_N is None:
            assert negative_N is not None
            positive_N = ~negative_N
        if negative_N is None:
            negative_N = ~positive_N
        _require(~(positive_N & negative_N), chunk, raw, "it matches both label rules; make them exclude each other")
        return np.where(positive_N, 1, np.where(negative_N, 0, -1)).astype(np.int8)


def _of_pair(raw: pl.Series, pair: tuple[str, str]) -> Floats:
    """1 where a cell is the first word of the pair, 0 where it is the second, nan elsewhere; case doesn't count."""
    words = raw.str.to_lowercase()
    positive_N, negative_N = ((words == word).fill_null(False).to_numpy() for word in pair)
    return np.where(positive_N, 1.0, np.where(negative_N, 0.0, np.nan))


def _text_of_categories(column: pl.Series) -> pl.Series:
    return column.cast(pl.String) if column.dtype in (pl.Categorical, pl.Enum) else column


def _require(good_N: Mask, chunk: Chunk, raw: pl.Series, what: str, *, words: bool = False) -> None:
    if good_N.all():
        return
    row = int(np.argmin(good_N))
    value = raw[row]
    fact = "is missing" if value is None else f"is {shown(value)}"
    raise DataError(
        f"{chunk.where(row)}: label {raw.name!r} {fact}: {what.replace('{rule}', _with_a_rule(value, words=words))}."
    )


def _with_a_rule(value: object, *, words: bool) -> str:
    """Which rule would read a value, or that there is none, since a missing label and one of other words fit no rule.

    Args:
        words: whether the rows before it hold words.
    """
    if value is None:
        return " or delete it"
    text = str(value)
    if _NUMBER.fullmatch(text):
        return "" if words else f', or give a rule such as `positive: "{"> 0" if float(text) < 0 else ">= 4"}"`'
    in_a_pair = any(text.lower() in pair for pair in _PAIRS)
    return "" if words or in_a_pair else f', or give a rule such as `positive: "== {shortened(text)}"`'
