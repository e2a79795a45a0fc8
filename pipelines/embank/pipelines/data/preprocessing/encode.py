"""Chunks of raw rows to ids and numbers, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from embank.pipelines.data.prepare.blocks import Bags, IntArray
from embank.pipelines.data.prepare.nulls import with_nulls
from embank.pipelines.data.prepare.numbers import read_transformed
from embank.pipelines.data.prepare.numeric_fields import finished
from embank.pipelines.data.prepare.token_kinds import TokenKinds
from embank.pipelines.data.prepare.tokens import (
    TokenIndex,
    as_bags,
    as_tokens,
    hashed_bags,
    hashed_tokens,
    refuse_bracketed,
)
from embank.pipelines.data.preprocessing.encoded import Encoded, counted
from embank.pipelines.data.preprocessing.frames import chunk_of_values
from embank.pipelines.data.preprocessing.rules import Preprocessing
from embank.pipelines.data.sources.formats.base import Chunk
from embank.tables.ids.token_hash import token_ids
from embank.tables.ids.vocabulary import UNKNOWN_ID

MOST_REMEMBERED = 2**18
"""Different tokens of a feature whose ids are remembered from chunk to chunk, at most."""


class RowEncoder:
    """Encodes chunks of a stream, in order, in bounded memory; not for several threads at once.

    Args:
        rules: of the training data.
        remembers: keep the ids of tokens from chunk to chunk: for streams. Without it each chunk is looked up on its
            own, which is faster for one of some hundred rows.
    """

    def __init__(self, rules: Preprocessing, *, remembers: bool = True) -> None:
        self._rules = rules
        self._kinds = TokenKinds(rules.config.features)
        self._known = {name: _Known(rules, name) for name in rules.index.facts} if remembers else None
        self._is_first = remembers  # of a log: of a few rows nobody can tell whether brackets belong to their text

    def encode(self, chunk: Chunk) -> Encoded:
        """Encode one chunk, which has the raw columns of the rules.

        Raises:
            DataError: a cell that can't be used, with its place.
        """
        rules = self._rules
        if rules.format.derive is not None and set(rules.columns) <= set(chunk.frame.columns):
            chunk = rules.format.derive(chunk, rules.features)
        chunk = with_nulls(chunk, rules.config.null_values, numbers=rules.config.numeric, hashed=rules.config.hashed)
        self._kinds.check(chunk)
        if self._is_first:
            for name, separator in rules.config.multivalued.items():
                refuse_bracketed(chunk, name, separator)
            self._is_first = False
        unknown: dict[str, IntArray] = {}
        ids, bags = self._with_vocabulary(chunk, unknown)
        self._hashed(chunk, ids, bags)
        return Encoded(
            ids={field.name: ids[field.name] for field in rules.schema.categorical if not field.multivalued},
            bags={field.name: bags[field.name] for field in rules.schema.categorical if field.multivalued},
            dense=self._dense(chunk),
            unknown_rows=unknown,
        )

    def ids_of(self, feature: str, values: Sequence[Any]) -> IntArray:
        """Ids int64 [N] of single values of a categorical feature, members of bags too.

        Raises:
            DataError: a value is no token.
        """
        rules = self._rules
        chunk = with_nulls(chunk_of_values(feature, values, nulls=rules.config.null_values), rules.config.null_values)
        if feature in rules.config.hashed:
            return hashed_tokens(chunk, feature)
        tokens = chunk.frame.select(as_tokens(chunk, feature)).to_series()
        ids_N = rules.index.find(feature, token_ids(tokens))
        ids_N[tokens.is_null().to_numpy()] = rules.index.missing_id(feature)
        return ids_N

    def _with_vocabulary(
        self, chunk: Chunk, unknown: dict[str, IntArray]
    ) -> tuple[dict[str, IntArray], dict[str, Bags]]:
        return _looked_up(self._rules, chunk, unknown) if self._known is None else self._remembered(chunk, unknown)

    def _remembered(self, chunk: Chunk, unknown: dict[str, IntArray]) -> tuple[dict[str, IntArray], dict[str, Bags]]:
        config, known = self._rules.config, self._known
        assert known is not None
        single = [known[n].index.codes(as_tokens(chunk, n)).alias(n) for n in config.categorical if n in known]
        jagged = [
            known[name].index.bag_codes(as_bags(chunk, name, separator, nulls=config.null_values)).alias(name)
            for name, separator in config.multivalued.items()
            if name in known
        ]
        if not known:
            return {}, {}
        coded = chunk.frame.select(*single, *jagged)
        ids: dict[str, IntArray] = {}
        bags: dict[str, Bags] = {}
        for name, one in known.items():
            if name in config.multivalued:
                lengths_R, codes_L = _flat(coded[name])
                ids_L, is_unknown_L = one.ids(codes_L.to_numpy())
                bags[name] = Bags(values=ids_L, offsets=_offsets(lengths_R))
                if is_unknown_L.any():
                    unknown[name] = counted(is_unknown_L, bags[name].offsets)
            else:
                ids[name], is_unknown_R = one.ids(coded[name].to_numpy())
                if is_unknown_R.any():
                    unknown[name] = is_unknown_R.astype(np.int64)
            if one.is_full:
                known[name] = _Known(self._rules, name)
        return ids, bags

    def _hashed(self, chunk: Chunk, ids: dict[str, IntArray], bags: dict[str, Bags]) -> None:
        config = self._rules.config
        for name in config.hashed:
            if name in config.multivalued:
                array = hashed_bags(chunk, name, config.multivalued[name], nulls=config.null_values)
                offsets = array.offsets.to_numpy().astype(np.int64)
                bags[name] = Bags(values=np.array(array.flatten()), offsets=offsets - offsets[0])
            else:
                ids[name] = hashed_tokens(chunk, name)

    def _dense(self, chunk: Chunk) -> npt.NDArray[np.float32]:
        config, fields = self._rules.config, {field.name: field for field in self._rules.schema.numeric}
        dense_RI = np.empty((chunk.frame.height, len(fields)), dtype=np.float32)
        column = 0
        for name, numeric in config.numeric.items():
            values_R = read_transformed(chunk, name, numeric.transform)
            dense_RI[:, column] = finished(values_R, fields[name], where=chunk.where)
            column += 1
            if name in config.indicators:
                dense_RI[:, column] = np.isnan(values_R)
                column += 1
        return dense_RI


class _Known:
    """The ids of the tokens of a feature that a stream has had, by their codes."""

    def __init__(self, rules: Preprocessing, name: str) -> None:
        self.index = TokenIndex()
        self._name, self._find = name, rules.index
        self._ids = np.array([rules.index.missing_id(name)], dtype=np.int64)

    @property
    def is_full(self) -> bool:
        return len(self._ids) > MOST_REMEMBERED

    def ids(self, codes_N: npt.NDArray[np.int32]) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Ids of codes, and which of them are unknown."""
        if codes_N.size and int(codes_N.max()) >= len(self._ids):
            new = self.index.tokens().slice(len(self._ids) - 1)
            self._ids = np.concatenate([self._ids, self._find.find(self._name, token_ids(new))])
        ids_N: IntArray = self._ids[codes_N]
        return ids_N, (ids_N == UNKNOWN_ID) & (codes_N != 0)


def _looked_up(
    rules: Preprocessing, chunk: Chunk, unknown: dict[str, IntArray]
) -> tuple[dict[str, IntArray], dict[str, Bags]]:
    """Ids of the features with a vocabulary, all tokens in one lookup."""
    config, index, num_rows = rules.config, rules.index, chunk.frame.height
    single = [name for name in config.categorical if name in index.facts]
    jagged = [name for name in config.multivalued if name in index.facts]
    frame = chunk.frame.select(
        *(as_tokens(chunk, name).alias(name) for name in single),
        *(as_bags(chunk, name, config.multivalued[name], nulls=config.null_values).alias(name) for name in jagged),
    )
    flat = {name: _flat(frame[name]) for name in jagged}
    tokens = [*(frame[name] for name in single), *(members for _, members in flat.values())]
    if not tokens:
        return {}, {}
    counts = [len(one) for one in tokens]
    joined = pl.concat([one.alias("token") for one in tokens])
    features_N = np.repeat([index.number[name] for name in [*single, *jagged]], counts)
    ids_N = index.find_each(features_N, token_ids(joined))
    is_missing_N = joined.is_null().to_numpy()
    if is_missing_N.any():
        missing = np.array([index.missing_id(name) for name in index.facts], dtype=np.int64)
        ids_N[is_missing_N] = missing[features_N[is_missing_N]]
    unknown_N = (ids_N == UNKNOWN_ID) & ~is_missing_N
    parts = dict(zip([*single, *jagged], np.split(ids_N, np.cumsum(counts)[:-1]), strict=True))
    assert all(len(parts[name]) == num_rows for name in single)
    offsets = {name: _offsets(flat[name][0]) for name in jagged}
    if unknown_N.any():
        for name, part in zip(parts, np.split(unknown_N, np.cumsum(counts)[:-1]), strict=True):
            if part.any():
                unknown[name] = counted(part, offsets[name]) if name in offsets else part.astype(np.int64)
    bags = {name: Bags(values=parts[name], offsets=offsets[name]) for name in jagged}
    return {name: parts[name] for name in single}, bags


def _flat(lists: pl.Series) -> tuple[npt.NDArray[np.int64], pl.Series]:
    """Lengths of the bags, and their members one after the other."""
    lengths = lists.list.len().to_numpy().astype(np.int64)
    return lengths, lists.filter(lists.list.len() > 0).explode()


def _offsets(lengths_R: npt.NDArray[np.int64]) -> IntArray:
    offsets = np.zeros(len(lengths_R) + 1, dtype=np.int64)
    np.cumsum(lengths_R, out=offsets[1:])
    return offsets
