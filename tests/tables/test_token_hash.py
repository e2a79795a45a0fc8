"""Hashing tokens is a contract: the same id everywhere, forever. Columns are checked against the definition in plain
integers."""

import subprocess
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embank.tables.errors import DataError
from embank.tables.ids.hashing import integer_ids, salt64
from embank.tables.ids.token_hash import text_ids, token_id, token_ids, token_ids_expr
from embank.tables.ids.token_space import INTEGER_SALT, MISSING_ID, NUM_TOKEN_IDS

PINNED = {
    "user_17": 4106346469449909920,
    b"\xff\xfe": 2598692867950620531,
    "": 6017775124710473527,
    5: 3078423676072780866,
    "5": 1698979461027129238,
    -1: 7808511447956689915,
}
INTEGERS = [0, 1, -1, 5, 2**31, 2**40 + 7, 2**63 - 1, -(2**63)]


def test_pinned_values() -> None:
    assert {token: token_id(token) for token in PINNED} == PINNED


def test_constants_are_made_from_names() -> None:
    assert salt64("token", "missing") & (2**63 - 1) == MISSING_ID
    assert salt64("token", "integer") & (2**63 - 1) == INTEGER_SALT


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(), st.text(alphabet="\x00ab", max_size=20)), max_size=30))
def test_text_columns(tokens: list[str | None]) -> None:
    expected = [token_id(token) for token in tokens]
    series = pl.Series("x", tokens, dtype=pl.String)
    assert token_ids(series).tolist() == expected
    assert token_ids(tokens).tolist() == expected
    assert pl.DataFrame(series).select(token_ids_expr(pl.col("x"))).to_series().to_list() == expected
    assert token_ids(series[3:7]).tolist() == expected[3:7]
    encoded = [None if token is None else token.encode() for token in tokens]
    assert token_ids(pl.Series(encoded, dtype=pl.Binary)).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.none(), st.binary(max_size=40)), max_size=30))
def test_bytes_that_are_no_text(tokens: list[bytes | None]) -> None:
    assert token_ids(pl.Series(tokens, dtype=pl.Binary)).tolist() == [token_id(token) for token in tokens]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30))
def test_integers_in_polars_numpy_and_torch(values: list[int]) -> None:
    expected = [token_id(value) for value in [*INTEGERS, *values]]
    column = np.array([*INTEGERS, *values])
    assert token_ids(column).tolist() == token_ids(pl.Series(column)).tolist() == expected
    assert integer_ids(torch.from_numpy(column)).tolist() == expected
    lazy = pl.LazyFrame({"x": column}).select(token_ids_expr(pl.col("x")))
    assert lazy.collect().to_series().to_list() == expected


def test_integers_of_every_width_and_beyond_two_to_the_63() -> None:
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        assert token_ids(np.array([5], dtype=dtype))[0] == token_id(5)
        assert integer_ids(torch.tensor([5], dtype=torch.uint8))[0] == token_id(5)
    assert token_ids(np.array([-5], dtype=np.int8))[0] == token_id(-5) == token_id(2**64 - 5)
    large = np.array([2**63, 2**64 - 1], dtype=np.uint64)
    assert token_ids(large).tolist() == [token_id(-(2**63)), token_id(-1)]
    assert token_ids(pl.Series([1, None, -7])).tolist() == [token_id(1), MISSING_ID, token_id(-7)]


def test_what_tokens_mean() -> None:
    assert token_id("é") == token_id(b"\xc3\xa9")
    different = [
        None,
        "",
        b"\x00",
        b"\x00\x00",
        "5",
        5,
        0,
        b"\x00" * 8,
        b"\x00" * 9,
        "ab",
        "ba",
        "a" * 8 + "b" * 8,
        "b" * 8 + "a" * 8,
    ]
    assert len({token_id(token) for token in different}) == len(different)
    assert all(0 <= token_id(token) < NUM_TOKEN_IDS for token in different)


def test_a_megabyte() -> None:
    long = "0123456789é" * 90_000
    near = long[:-1] + "e"
    assert len(long.encode()) > 1_000_000
    assert token_ids(pl.Series(["x", long, near])).tolist() == [token_id("x"), token_id(long), token_id(near)]
    assert token_id(long) != token_id(near)


def test_lists_of_tokens_become_lists_of_ids() -> None:
    frame = pl.DataFrame({"x": [["a", "b"], [], None, ["c", None]]})
    ids = frame.select(pl.col("x").list.eval(token_ids_expr(pl.element()))).to_series().to_list()
    assert ids == [[token_id("a"), token_id("b")], [], None, [token_id("c"), MISSING_ID]]


def test_categories_and_columns_of_nothing_but_null() -> None:
    assert token_ids(pl.Series(["b", "a"], dtype=pl.Categorical)).tolist() == [token_id("b"), token_id("a")]
    assert token_ids(pl.Series([None, None])).tolist() == [MISSING_ID] * 2
    assert token_ids(pl.Series([], dtype=pl.String)).shape == (0,)


def test_refusals() -> None:
    with pytest.raises(
        DataError, match=r"column 'x' has type Float64, which is no token; convert it to text, bytes or integers"
    ):
        token_ids(pl.Series("x", [1.5]))
    with pytest.raises(DataError, match=r"1\.5 \(float\) is no token; give text, bytes, an integer or None"):
        token_id(1.5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"True \(bool\) is no token"):
        token_id(True)
    with pytest.raises(DataError, match=r"is no Unicode text \(surrogates not allowed\); give it as bytes"):
        token_id("\udcff")
    with pytest.raises(DataError, match="has type Int128, which is no token; convert it"):
        token_ids(pl.Series("x", [1], dtype=pl.Int128))


@pytest.mark.parametrize("one", ["abc", b"abc", bytearray(b"abc"), None, 5, np.array("abc"), np.array(5)], ids=repr)
def test_a_single_token_is_no_column(one: Any) -> None:
    """A text has as many characters as a column has tokens."""
    with pytest.raises(DataError, match="is no list of tokens; give a list, or use token_id for a single token"):
        token_ids(one)


def test_a_set_is_no_column() -> None:
    with pytest.raises(DataError, match="the tokens are a set, which has no order; give a list"):
        token_ids({"a", "b"})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="'abc' is no list of tokens"):
        text_ids("abc")


def test_ids_are_spread_evenly_and_no_two_of_many_agree() -> None:
    ids = token_ids(pl.Series([f"item_{number}" for number in range(300_000)]))
    assert np.unique(ids).size == 300_000, "expected collisions: 5e-9"
    for bits in (ids % 1000, ids >> 53):
        counts = np.bincount(bits)
        expected = 300_000 / counts.size
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < counts.size - 1 + 5 * (2 * counts.size) ** 0.5


@pytest.mark.slow
def test_another_process_gives_the_same_ids() -> None:
    code = (
        "import polars as pl; from embank.tables.ids.token_hash import *; "
        "print(token_ids(pl.Series(['a', '', None, 'a long token of many words'])).tolist())"
    )
    expected = token_ids(pl.Series(["a", "", None, "a long token of many words"])).tolist()
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert run.stdout.strip() == str(expected)
