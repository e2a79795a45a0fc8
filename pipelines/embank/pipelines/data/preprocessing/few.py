"""A few raw rows to ids and numbers: the same as `RowEncoder` gives, without frames, for requests of a row or some.

Only what is plain goes this way: text without white space at its ends, whole numbers, numbers. `FewRows.encode` says of
everything else that it is not plain, and `RowEncoder` reads it or refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embank.pipelines.data.prepare.blocks import Bags, IntArray
from embank.pipelines.data.prepare.nulls import EXACT, NullValues
from embank.pipelines.data.prepare.numbers import FLOAT32_MAX
from embank.pipelines.data.preprocessing.encoded import Encoded, counted
from embank.pipelines.data.preprocessing.rules import Preprocessing
from embank.pipelines.data.schema import IS_MISSING
from embank.tables.ids.token_hash import text_ids
from embank.tables.ids.token_space import MISSING_ID
from embank.tables.ids.vocabulary import UNKNOWN_ID

MOST_ROWS = 512
"""From here on frames are as fast."""
_WIDEST = 2**63


class _NotPlainError(Exception):
    """A value that is read another way."""


class FewRows:
    """Encodes lists of a few mappings; safe to use from several threads.

    Args:
        rules: of the training data.
    """

    def __init__(self, rules: Preprocessing) -> None:
        self._rules = rules
        config, index = rules.config, rules.index
        self.is_able = rules.format.derive is None  # derived columns go through frames
        self._single = [name for name in config.categorical if name in index.facts]
        self._single_hashed = [name for name in config.categorical if name not in index.facts]
        self._bags = list(config.multivalued.items())
        self._numbers = np.array([index.number[name] for name in self._single], dtype=np.int64)
        self._missing = np.array([index.missing_id(name) for name in self._single], dtype=np.int64)
        self._nulls = NullValues.of(config.null_values)
        self._dense = _Dense(rules)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> Encoded | None:
        """The rows, encoded; None if one has a value that is not plain, or lacks a column."""
        try:
            return self._encoded(rows)
        except (_NotPlainError, KeyError):
            return None

    def _encoded(self, rows: Sequence[Mapping[str, Any]]) -> Encoded:
        index, num_rows = self._rules.index, len(rows)
        unknown: dict[str, IntArray] = {}
        cells = [self._token(row[name]) for name in self._single for row in rows]
        texts = [cell for cell in cells if cell is not None]
        ids_FR = np.repeat(self._missing, num_rows)
        if texts:
            features_N = np.repeat(self._numbers, num_rows)
            if len(texts) == len(cells):
                ids_FR = index.find_each(features_N, text_ids(texts))
                is_unknown = ids_FR == UNKNOWN_ID
            else:
                there = np.array([cell is not None for cell in cells])
                ids_FR[there] = index.find_each(features_N[there], text_ids(texts))
                is_unknown = there & (ids_FR == UNKNOWN_ID)
            if is_unknown.any():
                for name, counts_R in zip(self._single, is_unknown.reshape(-1, num_rows), strict=True):
                    if counts_R.any():
                        unknown[name] = counts_R.astype(np.int64)
        table = ids_FR.reshape(len(self._single), num_rows)
        ids = {name: table[number] for number, name in enumerate(self._single)}
        for name in self._single_hashed:
            ids[name] = self._hashed([self._token(row[name]) for row in rows])
        bags = {name: self._bag(name, separator, rows, unknown) for name, separator in self._bags}
        return Encoded(ids=ids, bags=bags, dense=self._dense.of(rows, self._nulls), unknown_rows=unknown)

    def _token(self, cell: Any) -> str | None:
        kind = type(cell)
        if kind is str:
            if not cell or cell in self._nulls.texts:
                return None
            if not cell.isascii() or cell[0] <= " " or cell[-1] <= " ":
                raise _NotPlainError
            return str(cell)
        if cell is None:
            return None
        if kind is int and -_WIDEST <= cell < _WIDEST:
            text = str(cell)
            return None if text in self._nulls.texts or cell in self._nulls.exact else text
        raise _NotPlainError

    @staticmethod
    def _hashed(texts: list[str | None]) -> Any:
        there = [text for text in texts if text is not None]
        if len(there) == len(texts):
            return text_ids(there)
        ids_R = np.full(len(texts), MISSING_ID, dtype=np.int64)
        if there:
            ids_R[[text is not None for text in texts]] = text_ids(there)
        return ids_R

    def _bag(
        self, name: str, separator: str | None, rows: Sequence[Mapping[str, Any]], unknown: dict[str, IntArray]
    ) -> Bags:
        members: list[str] = []
        offsets = [0]
        for row in rows:
            cell = row[name]
            if type(cell) is str and separator is not None:
                is_empty = self._token(cell) is None
                cell = [] if is_empty else [part.strip(" ") for part in cell.split(separator)]
            elif cell is None:
                cell = []
            elif type(cell) not in (list, tuple) or any(type(member) is not str for member in cell):
                raise _NotPlainError
            members += [text for member in cell if (text := self._token(member)) is not None]
            offsets.append(len(members))
        bags = Bags(values=text_ids(members), offsets=np.array(offsets, dtype=np.int64))
        if name not in self._rules.index.facts:
            return bags
        values = self._rules.index.find(name, bags.values)
        if (values == UNKNOWN_ID).any():
            unknown[name] = counted(values == UNKNOWN_ID, bags.offsets)
        return replace(bags, values=values)


class _Dense:
    """Numbers of a few rows, as `read_transformed` and `finished` make them."""

    def __init__(self, rules: Preprocessing) -> None:
        config, fields = rules.config, {field.name: field for field in rules.schema.numeric}
        self._names = list(config.numeric)
        of_kind = {
            kind: np.array(
                [n for n, one in enumerate(config.numeric.values()) if one.transform == kind], dtype=np.int64
            )
            for kind in ("log1p", "log_squared", "standard")
        }
        self._log1p, self._log_squared, self._standard = of_kind.values()
        chosen = [fields[name] for name in self._names]
        self._mean = np.array([chosen[n].mean for n in self._standard.tolist()], dtype=np.float64)
        self._std = np.array([chosen[n].std for n in self._standard.tolist()], dtype=np.float64)
        self._fill = np.array([field.fill for field in chosen], dtype=np.float32)
        self._places = np.array(
            [n for n, field in enumerate(rules.schema.numeric) if field.transform != IS_MISSING], dtype=np.int64
        )
        self._indicated = np.array(
            [n for n, name in enumerate(self._names) if name in config.indicators], dtype=np.int64
        )
        self._width = len(rules.schema.numeric)

    def of(self, rows: Sequence[Mapping[str, Any]], nulls: NullValues) -> Any:
        values_RI = np.array([[_number(row[name], nulls) for name in self._names] for row in rows])
        values_RI = values_RI.reshape(len(rows), len(self._names))
        missing_RI = np.isnan(values_RI)
        if self._log1p.size:
            values_RI[:, self._log1p] = np.log1p(np.maximum(values_RI[:, self._log1p], 0.0))
        if self._log_squared.size:
            x = values_RI[:, self._log_squared]
            values_RI[:, self._log_squared] = np.where(x > 2, np.floor(np.log(np.maximum(x, 2.0)) ** 2), x)
        _refuse_large(values_RI)
        if self._standard.size:
            with np.errstate(over="ignore"):
                values_RI[:, self._standard] = (values_RI[:, self._standard] - self._mean) / self._std
            _refuse_large(values_RI)
        dense_RI = np.where(missing_RI, self._fill, values_RI.astype(np.float32))
        if self._width == len(self._names):
            return dense_RI
        wide_RI = np.empty((len(rows), self._width), dtype=np.float32)
        wide_RI[:, self._places] = dense_RI
        wide_RI[:, self._places[self._indicated] + 1] = missing_RI[:, self._indicated]
        return wide_RI


def _refuse_large(values_RI: npt.NDArray[np.float64]) -> None:
    """Values beyond 32 bits are read the other way, which says where they are."""
    if (np.abs(values_RI) > FLOAT32_MAX).any():
        raise _NotPlainError


def _number(cell: Any, nulls: NullValues) -> float:
    kind = type(cell)
    if kind is float or (kind is int and -EXACT < cell < EXACT):
        if cell in (nulls.floats if kind is float else nulls.exact):
            return float("nan")
        if cell - cell == 0:  # neither infinite nor nan
            return float(cell)
    elif cell is None:
        return float("nan")
    raise _NotPlainError
