"""Ids of tokens without a vocabulary: strings, bytes and integers hash to the same id in any process, on any machine.

A table whose rows are chosen by a hash (`unified`, `hash`) needs no list of its values: give it
`num_embeddings=NUM_TOKEN_IDS` and ids from here. What each token means:

    text and bytes   hashed by their bytes, text as UTF-8: "é" and b"\\xc3\\xa9" are one token; bytes need not be UTF-8;
                     no length limit
    ""               a token like any other (preparing data takes it for missing, a hash does not)
    integers         hashed by their low 64 bits, so the width of their type does not matter, and -1 and 2**64 - 1 are
                     one token
    5 and "5"        two tokens: use one type for a feature
    null             a token of its own, `MISSING_ID`; for zeros instead of a row, give an empty bag

The hash of bytes is a sum over their 8-byte words, each mixed with its position, mixed with the length: every word
counts on its own, so a column is hashed without a loop over tokens or positions. Like any hash without a secret it does
not withstand someone who searches for collisions. Two of n tokens have one id with probability n**2 / 2**64: 5e-6 for
ten million.

`token_id` is the definition, in plain integers; `token_ids` the same for columns,
`embank.tables.ids.hashing.integer_ids` for tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from embank.tables.errors import DataError
from embank.tables.ids.mixing import ALL_BITS, Words, mix, mix_words
from embank.tables.ids.token_space import INTEGER_SALT, MISSING_ID
from embank.tables.scalars import as_whole
from embank.tables.wording import shown

Token = str | bytes | int | None


def token_id(token: Token) -> int:
    """The id of one token, in 0 .. 2**63 - 1.

    Raises:
        DataError: a token of another type, or text that is no Unicode (lone surrogates).

    Example:
        >>> token_id("anna")
        1803761717057146231
        >>> token_id("5") == token_id(5)
        False
        >>> token_id(None) == MISSING_ID
        True
    """
    if token is None:
        return MISSING_ID
    number = None if isinstance(token, (bytes, str)) else as_whole(token)
    if number is not None:
        return mix(number & ALL_BITS ^ INTEGER_SALT) >> 1
    data = token if isinstance(token, bytes) else _encoded(token)
    words = [int.from_bytes(data[start : start + 8], "little") for start in range(0, len(data), 8)]
    # Words are mixed with their position, since a sum has no order, and the total with the length, or texts would be
    # equal that differ in zero bytes at their end. One bit goes: ids are not negative.
    total = sum(mix(word ^ mix(position)) for position, word in enumerate(words))
    return mix(total & ALL_BITS ^ mix(len(data))) >> 1


def token_ids(tokens: pl.Series | npt.NDArray[np.generic] | Sequence[Token]) -> npt.NDArray[np.int64]:
    """Ids int64 [N] of N tokens, each as `token_id` has it.

    Args:
        tokens: a series or array of text, bytes or integers with any nulls, or a sequence of tokens of any types.

    Raises:
        DataError: one token in place of several, tokens without an order, or of another type, such as floats, whose
            spelling is not unique.

    Example:
        >>> token_ids(["anna", "bob", None]).tolist()
        [1803761717057146231, 5133568987489982589, 5643126521301297769]
        >>> token_ids("anna")
        Traceback (most recent call last):
            ...
        embank.tables.errors.DataError: 'anna' is no list of tokens; give a list, or use token_id for a single token
    """
    _refuse_no_column(tokens)
    if not isinstance(tokens, (pl.Series, np.ndarray)):
        return np.array([token_id(token) for token in tokens], dtype=np.int64)
    series = tokens if isinstance(tokens, pl.Series) else pl.Series(tokens)
    if series.dtype.is_integer() and series.dtype not in (pl.Int128, pl.UInt128):
        ids_N = _integer_ids(series.fill_null(0).to_numpy())
    elif series.dtype in (pl.String, pl.Binary):
        ids_N = _bytes_ids(series)
    elif series.dtype in (pl.Categorical, pl.Enum, pl.Null):
        return token_ids(series.cast(pl.String))
    else:
        raise DataError(
            f"column '{series.name}' has type {series.dtype}, which is no token; convert it to text, bytes or integers "
            "of 64 bits"
        )
    if series.null_count():
        ids_N[series.is_null().to_numpy()] = MISSING_ID
    return ids_N


def token_ids_expr(tokens: pl.Expr) -> pl.Expr:
    """The same as a polars expression, Int64; for lists, `pl.col("genres").list.eval(token_ids_expr(pl.element()))`.

    Example:
        >>> import polars
        >>> log = polars.DataFrame({"user": ["anna", None], "genres": [["Drama", "War"], []]})
        >>> genres = polars.col("genres").list.eval(token_ids_expr(polars.element()))
        >>> log.select(token_ids_expr(polars.col("user")), genres).rows()
        [(1803761717057146231, [5170268716604007119, 6412002579416916679]), (5643126521301297769, [])]
    """
    return tokens.map_batches(lambda series: pl.Series(series.name, token_ids(series)), return_dtype=pl.Int64)


def _refuse_no_column(tokens: object) -> None:
    """Refuses what is one token, or has no order."""
    is_scalar = isinstance(tokens, np.ndarray) and not tokens.ndim
    if isinstance(tokens, (str, bytes, bytearray)) or is_scalar or not isinstance(tokens, Iterable):
        raise DataError(f"{shown(tokens)} is no list of tokens; give a list, or use token_id for a single token")
    if isinstance(tokens, (set, frozenset)):
        raise DataError(f"the tokens are a {type(tokens).__name__}, which has no order; give a list")


def _encoded(token: object) -> bytes:
    if not isinstance(token, str):
        raise DataError(f"{token!r} ({type(token).__name__}) is no token; give text, bytes, an integer or None")
    try:
        return token.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{token[:40]!r} is no Unicode text ({error.reason}); give it as bytes") from error


def _ids(words: Words) -> npt.NDArray[np.int64]:
    return (mix_words(words) >> np.uint64(1)).view(np.int64)


def _integer_ids(values_N: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    wide = values_N.astype(np.uint64 if values_N.dtype.kind == "u" else np.int64)
    return _ids(wide.view(np.uint64) ^ np.uint64(INTEGER_SALT))


def text_ids(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Ids int64 [N] of a few texts, each as `token_id` has it: `token_ids` without a series, for a handful of tokens.

    Raises:
        DataError: one text in place of several, or text that is no Unicode (lone surrogates).

    Example:
        >>> text_ids(["anna", "bob"]).tolist()
        [1803761717057146231, 5133568987489982589]
    """
    if isinstance(texts, str):
        _refuse_no_column(texts)
    data = [_encoded(text) for text in texts]
    lengths_N = np.array([len(one) for one in data], dtype=np.int64)
    words = np.frombuffer(b"".join([one + _PADDING[-len(one) & 7] for one in data]), dtype="<u8")
    return _padded_ids(words, lengths_N)


def _bytes_ids(series: pl.Series) -> npt.NDArray[np.int64]:
    """Every string is padded with zeros to whole words in one buffer."""
    array = series.cast(pl.Binary).to_arrow().cast(pa.large_binary())
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    buffer = array.buffers()[2]
    data = np.frombuffer(b"" if buffer is None else buffer, dtype=np.uint8)[offsets[0] : offsets[-1]]
    lengths_N = np.diff(offsets)
    ends_N = np.concatenate([[0], np.cumsum(-(-lengths_N // 8))])
    # Text n starts at word ends_N[n]; its bytes move by the difference between that and where Arrow has them.
    padded = np.zeros(8 * int(ends_N[-1]), dtype=np.uint8)
    padded[np.arange(len(data)) + np.repeat(8 * ends_N[:-1] - (offsets[:-1] - offsets[0]), lengths_N)] = data
    return _padded_ids(padded.view("<u8"), lengths_N)


def _padded_ids(words_W: Words, lengths_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Ids of texts in whole words, one after the other: the words' hashes are added up per text.

    Args:
        words_W: all texts, each padded with zeros to whole words.
        lengths_N: of the texts in bytes, without padding.
    """
    counts_N = -(-lengths_N // 8)
    ends_N = np.zeros(len(counts_N) + 1, dtype=np.int64)
    np.cumsum(counts_N, out=ends_N[1:])
    positions_W = np.arange(len(words_W)) - np.repeat(ends_N[:-1], counts_N)
    mixed_W = mix_words(words_W.astype(np.uint64) ^ _mixed(positions_W))
    with np.errstate(over="ignore"):  # a sum per text is the difference of two running sums, also where these wrap
        sums = np.zeros(len(words_W) + 1, dtype=np.uint64)
        np.cumsum(mixed_W, dtype=np.uint64, out=sums[1:])
        totals_N = sums[ends_N[1:]] - sums[ends_N[:-1]]
    return _ids(totals_N ^ _mixed(lengths_N))


def _mixed(numbers_N: npt.NDArray[np.int64]) -> Words:
    """The mixer of small numbers, which positions and lengths are most of the time."""
    if numbers_N.size and int(numbers_N.max()) < len(_SMALL):
        return _SMALL[numbers_N]
    return mix_words(numbers_N.astype(np.uint64))


_PADDING = [bytes(count) for count in range(8)]
_SMALL = mix_words(np.arange(1024, dtype=np.uint64))
