"""Labels: the 0/1 column, or rules on a number."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from embank.pipelines.data.config import LabelConfig
from embank.pipelines.data.formats.base import Chunk
from embank.pipelines.data.numbers import number_column, to_float64
from embank.tables.errors import ConfigError, DataError

_RULE = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_OPERATORS: dict[str, np.ufunc] = {
    ">=": np.greater_equal,
    "<=": np.less_equal,
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    "<": np.less,
}
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def parse_rule(text: str, *, key: str) -> Callable[[Floats], Mask]:
    """A rule such as ">= 4" as a function of numbers.

    Raises:
        ConfigError: `text` is no rule; `key` is its place in the configuration.
    """
    match = _RULE.fullmatch(text)
    if match is None:
        raise ConfigError(f'{key} is {text!r}; a rule is an operator (>= <= > < == !=) and a number, such as ">= 4".')
    compare, number = _OPERATORS[match[1]], float(match[2])
    return lambda values_N: np.asarray(compare(values_N, number), dtype=np.bool_)


@dataclass(frozen=True)
class LabelRule:
    """Turns the label column into 0, 1, or -1 for rows to drop."""

    column: str
    positive: Callable[[Floats], Mask] | None
    negative: Callable[[Floats], Mask] | None

    @classmethod
    def build(cls, config: LabelConfig) -> LabelRule:
        """From the configuration.

        Raises:
            ConfigError: a rule can't be read.
        """
        positive, negative = (
            None if text is None else parse_rule(text, key=f"label.{key}")
            for key, text in (("positive", config.positive), ("negative", config.negative))
        )
        return cls(config.column, positive, negative)

    def apply(self, chunk: Chunk) -> npt.NDArray[np.int8]:
        """Label of each row, [N] int8.

        Raises:
            DataError: a label is missing, no number, outside {0, 1} without a rule, or matches both rules.
        """
        raw = number_column(chunk, self.column)
        values_N, readable_N = to_float64(raw)
        known_N = readable_N & ~raw.is_null().to_numpy() & ~np.isnan(values_N)
        if self.positive is None and self.negative is None:
            known_N &= (values_N == 0) | (values_N == 1)
            _require(known_N, chunk, raw, 'expected 0 or 1; mend the line, or give a rule such as `positive: ">= 4"`')
            return values_N.astype(np.int8)
        _require(known_N, chunk, raw, "expected a number, which the label rules need; mend or delete the line")
        return self._by_rules(values_N, chunk, raw)

    def _by_rules(self, values_N: Floats, chunk: Chunk, raw: pl.Series) -> npt.NDArray[np.int8]:
        positive_N = self.positive(values_N) if self.positive else None
        negative_N = self.negative(values_N) if self.negative else None
        if positive_N is None:
            assert negative_N is not None
            positive_N = ~negative_N
        if negative_N is None:
            negative_N = ~positive_N
        _require(~(positive_N & negative_N), chunk, raw, "it matches both label rules; make them exclude each other")
        return np.where(positive_N, 1, np.where(negative_N, 0, -1)).astype(np.int8)


def _require(good_N: Mask, chunk: Chunk, raw: pl.Series, what: str) -> None:
    if good_N.all():
        return
    row = int(np.argmin(good_N))
    value = raw[row]
    shown = "is missing" if value is None else f"is {value!r}"
    raise DataError(f"{chunk.where(row)}: label {raw.name!r} {shown}: {what}.")
