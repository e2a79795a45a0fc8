"""Vocabularies as they are served: from tokens to ids in a few arrays that are mapped from a file.

A token is looked up by its hash (`embank.tables.ids.token_hash`), so the tokens themselves need not be there. Of one
vocabulary the index holds

    hashes   int64 [V]       hashes of its tokens, sorted
    ids      int32 [V]       the id of each
    starts   int32 [2^b + 1] where the hashes that begin with the same b bits begin: a bucket holds about 2 to 4

Unknown tokens have the id 0. That an unknown token has the hash of one that is known has probability V / 2^63.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from embank.tables.errors import CheckpointError, DataError
from embank.tables.ids.token_hash import token_ids
from embank.tables.ids.vocabulary import UNKNOWN_ID, Vocabulary
from embank.tables.wording import shown

_HASH_BITS = 63
_BUCKET_SIZE = 2
"""Hashes that a bucket holds at least, on average."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """What an index of one vocabulary says besides its arrays.

    Args:
        name: the feature.
        num_ids: of the vocabulary, the unknown and the missing value included.
        num_tokens: V.
        bits: b.
        steps: halvings that find a hash in the largest bucket.
        missing_id: of a missing value; None where it did not occur in training, so that it is unknown.
    """

    name: str
    num_ids: int
    num_tokens: int
    bits: int
    steps: int
    missing_id: int | None


class VocabularyIndex:
    """The vocabularies of several features in one index.

    Args:
        facts: of each feature, in the order in which their arrays stand.
        hashes, ids, starts: the arrays of all features, one after the other; may be mapped.

    Raises:
        CheckpointError: the arrays are not as long as the facts say.

    Example:
        >>> import polars
        >>> genres = Vocabulary("genre", polars.Series([None, "Drama", "War"]), [0, 7, 3])
        >>> index = VocabularyIndex.of([genres])
        >>> index.find("genre", token_ids(["War", "Western", "Drama"])).tolist()
        [2, 0, 1]
    """

    def __init__(self, facts: Sequence[IndexFacts], *, hashes: Array, ids: Array, starts: Array) -> None:
        self.facts = {one.name: one for one in facts}
        self.hashes, self.ids, self.starts = hashes, ids, starts
        self.number = {name: number for number, name in enumerate(self.facts)}
        tokens = [0, *np.cumsum([one.num_tokens for one in facts]).tolist()]
        buckets = [0, *np.cumsum([2**one.bits + 1 for one in facts]).tolist()]
        if (len(hashes), len(ids), len(starts)) != (tokens[-1], tokens[-1], buckets[-1]):
            raise CheckpointError(
                f"its vocabularies have {len(hashes)} hashes, {len(ids)} ids and {len(starts)} buckets, not "
                f"{tokens[-1]}, {tokens[-1]} and {buckets[-1]}"
            )
        self._base_F = np.array(tokens[:-1], dtype=np.int64)
        self._first_F = np.array(buckets[:-1], dtype=np.int64)
        self._shift_F = np.array([_HASH_BITS - one.bits for one in facts], dtype=np.int64)
        self._steps = max((one.steps for one in facts), default=0)

    @classmethod
    def of(cls, vocabularies: Iterable[Vocabulary]) -> Self:
        """The index of some vocabularies, of which one at a time is looked at.

        Raises:
            DataError: two tokens of a vocabulary have one hash; names them.
        """
        built = [_built(vocabulary) for vocabulary in vocabularies]
        return cls(
            [facts for facts, _ in built],
            hashes=np.concatenate([arrays[0] for _, arrays in built] or [np.empty(0, np.int64)]),
            ids=np.concatenate([arrays[1] for _, arrays in built] or [np.empty(0, np.int32)]),
            starts=np.concatenate([arrays[2] for _, arrays in built] or [np.empty(0, np.int32)]),
        )

    def find(self, name: str, hashes_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Ids int64 [N] of the tokens of a feature, of which the hashes are given; 0 where they are unknown."""
        return self.find_each(self.number[name], hashes_N, steps=self.facts[name].steps)

    def find_each(
        self, features_N: npt.NDArray[np.int64] | int, hashes_N: npt.NDArray[np.int64], *, steps: int | None = None
    ) -> npt.NDArray[np.int64]:
        """Ids int64 [N] of tokens of several features, by the number that each has in `number`.

        Raises:
            CheckpointError: the arrays were damaged unnoticed.
        """
        try:
            return self._found(features_N, hashes_N, self._steps if steps is None else steps)
        except IndexError as error:  # numpy looks where `starts` says, and that is read only now
            raise CheckpointError(
                f"buckets of the vocabularies begin where no hashes are ({error}): their index is damaged. Copy the "
                "bundle again or export it again"
            ) from error

    def _found(
        self, features_N: npt.NDArray[np.int64] | int, hashes_N: npt.NDArray[np.int64], steps: int
    ) -> npt.NDArray[np.int64]:
        bucket_N = (hashes_N >> self._shift_F[features_N]) + self._first_F[features_N]
        base_N = self._base_F[features_N]
        low_N = self.starts[bucket_N] + base_N
        end_N = self.starts[bucket_N + 1] + base_N
        last = len(self.hashes) - 1
        if last < 0:
            return np.full(len(hashes_N), UNKNOWN_ID, dtype=np.int64)
        high_N = end_N
        for _ in range(steps):
            middle_N = (low_N + high_N) >> 1
            less_N = self.hashes[np.minimum(middle_N, last)] < hashes_N
            less_N &= middle_N < high_N
            low_N = np.where(less_N, middle_N + 1, low_N)
            high_N = np.where(less_N, high_N, middle_N)
        place_N = np.minimum(low_N, last)
        found_N = (low_N < end_N) & (self.hashes[place_N] == hashes_N)
        ids_N: npt.NDArray[np.int64] = np.where(found_N, self.ids[place_N], UNKNOWN_ID).astype(np.int64)
        return ids_N

    def missing_id(self, name: str) -> int:
        """The id of a missing value of a feature."""
        missing = self.facts[name].missing_id
        return UNKNOWN_ID if missing is None else missing

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return int(self.hashes.nbytes + self.ids.nbytes + self.starts.nbytes)

    def arrays(self) -> dict[str, Array]:
        """The arrays by name."""
        return {"hashes": self.hashes, "ids": self.ids, "starts": self.starts}

    def to_json(self) -> list[dict[str, Any]]:
        """The facts, ready for `json.dumps`."""
        return [asdict(one) for one in self.facts.values()]

    @classmethod
    def from_json(cls, values: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array]) -> Self:
        """The inverse of `to_json` and `arrays`.

        Raises:
            CheckpointError: the arrays are not those of the facts, or point outside themselves.
            KeyError, TypeError: keys are missing or unknown.
        """
        facts = [IndexFacts(**one) for one in values]
        for one in facts:
            _refuse_damaged(one)
        for name, dtype in (("hashes", np.int64), ("ids", np.int32), ("starts", np.int32)):
            if arrays[name].dtype != dtype or arrays[name].ndim != 1:
                raise CheckpointError(f"'{name}' of its vocabularies is {arrays[name].dtype}, not {np.dtype(dtype)}")
        return cls(facts, hashes=arrays["hashes"], ids=arrays["ids"], starts=arrays["starts"])


def _refuse_damaged(facts: IndexFacts) -> None:
    numbers = (facts.num_ids, facts.num_tokens, facts.bits, facts.steps, facts.missing_id or 0)
    are_counts = all(type(number) is int and number >= 0 for number in numbers)
    if not are_counts or facts.bits > 31 or facts.steps > 31 or (facts.missing_id or 0) >= max(1, facts.num_ids):
        raise CheckpointError(f"what is said of the vocabulary of '{facts.name}' is damaged: {facts}")


def _built(vocabulary: Vocabulary) -> tuple[IndexFacts, tuple[Array, Array, Array]]:
    is_token = vocabulary.tokens.is_not_null()
    hashes_V = token_ids(vocabulary.tokens.filter(is_token))
    order_V = np.argsort(hashes_V, kind="stable")
    ids_V = np.flatnonzero(is_token.to_numpy())[order_V].astype(np.int32)
    hashes_V = hashes_V[order_V]
    _refuse_collision(vocabulary, hashes_V, ids_V)
    bits = max(0, (len(hashes_V) // _BUCKET_SIZE).bit_length() - 1)
    bounds = np.arange(2**bits, dtype=np.int64) << (_HASH_BITS - bits) if bits else np.zeros(1, dtype=np.int64)
    starts = np.append(np.searchsorted(hashes_V, bounds), len(hashes_V)).astype(np.int32)
    largest = int(np.diff(starts).max(initial=0))
    facts = IndexFacts(
        name=vocabulary.name,
        num_ids=len(vocabulary),
        num_tokens=len(hashes_V),
        bits=bits,
        steps=largest.bit_length(),
        missing_id=vocabulary.missing_id,
    )
    return facts, (hashes_V, ids_V, starts)


def _refuse_collision(vocabulary: Vocabulary, hashes_V: Array, ids_V: Array) -> None:
    same = np.flatnonzero(hashes_V[1:] == hashes_V[:-1])
    if same.size:
        first, second = vocabulary.decode(ids_V[[int(same[0]), int(same[0]) + 1]])
        raise DataError(
            f"tokens {shown(first)} and {shown(second)} of feature '{vocabulary.name}' have the same hash of 63 bits, "
            "so that they can't be told apart when rows are scored. List the feature under hashed, or rename one of "
            "the tokens, and prepare the data again."
        )
