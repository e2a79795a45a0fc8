"""The index of vocabularies finds what the vocabularies do."""

import numpy as np
import polars as pl
import pytest

from embank.tables import DataError, Vocabulary
from embank.tables.errors import CheckpointError
from embank.tables.ids import vocabulary_index
from embank.tables.ids.token_hash import text_ids, token_id, token_ids
from embank.tables.ids.vocabulary_index import VocabularyIndex


def vocabulary(name: str, num_tokens: int, *, missing: bool) -> Vocabulary:
    tokens = [None, *(f"{name}-{number}" for number in range(num_tokens))]
    tokens = [*tokens[:2], None, *tokens[2:]] if missing else tokens
    return Vocabulary(name, pl.Series(tokens, dtype=pl.String), np.ones(len(tokens)), missing_id=2 if missing else None)


SIZES = {"none": 0, "one": 1, "two": 2, "some": 37, "many": 40_000}


def test_ids_are_those_of_the_vocabularies() -> None:
    vocabularies = [vocabulary(name, size, missing=size > 1) for name, size in SIZES.items()]
    index = VocabularyIndex.of(vocabularies)
    again = VocabularyIndex.from_json(index.to_json(), index.arrays())
    rng = np.random.default_rng(0)
    for one in vocabularies:
        known = one.tokens.drop_nulls().to_list()
        asked = [*known, "", "unknown", *(f"x{number}" for number in rng.integers(10**9, size=2000))]
        rng.shuffle(asked)
        want = one.encode(asked)
        for index_ in (index, again):
            np.testing.assert_array_equal(index_.find(one.name, token_ids(pl.Series(asked))), want)
        assert index.missing_id(one.name) == (one.missing_id or 0)
    features = rng.integers(len(SIZES), size=500)
    asked = [f"{[*SIZES][feature]}-{rng.integers(40)}" for feature in features]
    want = [int(vocabularies[feature].encode([token])[0]) for feature, token in zip(features, asked, strict=True)]
    assert index.find_each(features, text_ids(asked)).tolist() == want
    assert index.nbytes < 18 * sum(SIZES.values())


def test_texts_have_the_ids_of_tokens() -> None:
    texts = ["", "a", "é", "12345678", "123456789", "\x00", "a\x00", "x" * 5000, "y" * 9000]
    assert text_ids(texts).tolist() == [token_id(text) for text in texts] == token_ids(pl.Series(texts)).tolist()
    assert text_ids([]).tolist() == []
    with pytest.raises(DataError, match="no Unicode"):
        text_ids(["\ud800"])


def test_a_collision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_index, "token_ids", lambda tokens: token_ids(tokens) >> 55)
    with pytest.raises(DataError, match="of feature 'some' have the same hash of 63 bits"):
        VocabularyIndex.of([vocabulary("some", 300, missing=False)])


def test_other_arrays_are_refused() -> None:
    index = VocabularyIndex.of([vocabulary("some", 37, missing=False)])
    arrays = index.arrays()
    with pytest.raises(CheckpointError, match="36 hashes, 37 ids"):
        VocabularyIndex.from_json(index.to_json(), {**arrays, "hashes": arrays["hashes"][1:]})
    with pytest.raises(CheckpointError, match="'ids' of its vocabularies is float32"):
        VocabularyIndex.from_json(index.to_json(), {**arrays, "ids": arrays["ids"].astype(np.float32)})
    with pytest.raises(CheckpointError, match="is damaged"):
        VocabularyIndex.from_json([{**index.to_json()[0], "bits": 99}], arrays)
