"""How the vocabularies of two bundles differ: tokens that came, that went, and that have another id."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from embank.pipelines.data.preprocessing.rules import PREPROCESS, TOKENS, Preprocessing
from embank.tables.errors import CheckpointError
from embank.tables.ids.vocabulary_index import VocabularyIndex

CHANGED_TOKENS = "tokens.parquet"
"""In a delta's folder: feature, hash, token, old_id and new_id of each token that came (no old id) or went (no new
one)."""

_PIECE = 2**20
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class VocabularyChange:
    """What becomes of the vocabulary of a feature.

    Args:
        name: the feature.
        num_tokens: that the new one has.
        num_added: tokens that the old one doesn't have.
        num_evicted: tokens of the old one that the new one doesn't have.
        num_moved: tokens of both that have another id.
    """

    name: str
    num_tokens: int
    num_added: int
    num_evicted: int
    num_moved: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "VocabularyChange":
        """The inverse of `asdict`.

        Raises:
            TypeError: keys are missing or unknown, or values of another type.
        """
        change = cls(**values)
        counts = (change.num_tokens, change.num_added, change.num_evicted, change.num_moved)
        if type(change.name) is not str or not all(type(count) is int for count in counts):
            raise TypeError(f"the change of a vocabulary is {dict(values)}")
        return change


class VocabularyChanges:
    """The changes from one bundle's vocabularies to another's; none where a bundle has no vocabularies.

    Args:
        old, new: folders of bundles.

    Raises:
        CheckpointError: what they say of raw rows is damaged.
    """

    def __init__(self, old: Path, new: Path) -> None:
        has_both = all((folder / PREPROCESS).is_file() for folder in (old, new))
        self._rules = (Preprocessing.load(old), Preprocessing.load(new)) if has_both else None
        self._frames: list[pl.DataFrame] = []
        self.changes = list(self._compared()) if self._rules else []

    def write(self, path: Path) -> None:
        """Writes the tokens that came and went, see `CHANGED_TOKENS`."""
        pl.concat(self._frames).write_parquet(path)

    @property
    def has_tokens(self) -> bool:
        """Whether any came or went."""
        return any(change.num_added or change.num_evicted for change in self.changes)

    def _compared(self) -> Iterator[VocabularyChange]:
        assert self._rules is not None
        old, new = (rules.index for rules in self._rules)
        for name in new.facts:
            new_hashes, new_ids = _of(new, name)
            old_hashes, old_ids = _of(old, name) if name in old.facts else (new_hashes[:0], new_ids[:0])
            added, moved = _looked_for(new_hashes, new_ids, old_hashes, old_ids)
            evicted, _ = _looked_for(old_hashes, old_ids, new_hashes, new_ids)
            if added.size or evicted.size:
                nothing: list[int | None] = [None]
                self._frames += [
                    self._named(1, name, new_hashes[added], old_id=nothing * added.size, new_id=new_ids[added]),
                    self._named(0, name, old_hashes[evicted], old_id=old_ids[evicted], new_id=nothing * evicted.size),
                ]
            yield VocabularyChange(
                name=name,
                num_tokens=new_hashes.size,
                num_added=added.size,
                num_evicted=evicted.size,
                num_moved=moved,
            )

    def _named(self, which: int, name: str, hashes: Numbers, *, old_id: Any, new_id: Any) -> pl.DataFrame:
        """Tokens of one feature, by name where the bundle has names.

        Args:
            which: 0 for tokens of the old bundle, 1 for those of the new one.
            name: the feature.
            hashes: of the tokens.
            old_id, new_id: their ids, or nothing.
        """
        assert self._rules is not None
        frame = pl.DataFrame(
            {
                "feature": pl.repeat(name, hashes.size, dtype=pl.String, eager=True),
                "hash": pl.Series(hashes, dtype=pl.Int64),
                "old_id": pl.Series(old_id, dtype=pl.Int64),
                "new_id": pl.Series(new_id, dtype=pl.Int64),
            }
        )
        folder, key = self._rules[which].tokens, ("old_id", "new_id")[which]
        if folder is None or not (folder / f"{name}.parquet").is_file():
            return frame.with_columns(pl.lit(None, dtype=pl.String).alias("token"))
        tokens = pl.scan_parquet(folder / f"{name}.parquet", glob=False).select("token").with_row_index(key)
        tokens = tokens.with_columns(pl.col(key).cast(pl.Int64))
        try:
            return frame.lazy().join(tokens, on=key, how="left").select(*frame.columns, "token").collect()
        except pl.exceptions.PolarsError as error:
            raise CheckpointError(
                f"'{folder / TOKENS}' has no readable tokens of '{name}' ({error}). Export the bundle again"
            ) from error


def _of(index: VocabularyIndex, name: str) -> tuple[Numbers, Numbers]:
    """Sorted hashes and ids of one feature's tokens."""
    start = sum(facts.num_tokens for facts in list(index.facts.values())[: index.number[name]])
    end = start + index.facts[name].num_tokens
    return index.hashes[start:end], index.ids[start:end]


def _looked_for(hashes: Numbers, ids: Numbers, among_hashes: Numbers, among_ids: Numbers) -> tuple[Numbers, int]:
    """Positions of hashes that are not among others, and how many that are have another id there."""
    missing, moved = [], 0
    for start in range(0, hashes.size, _PIECE):
        piece = np.asarray(hashes[start : start + _PIECE])
        place = np.searchsorted(among_hashes, piece)
        place = np.minimum(place, max(0, among_hashes.size - 1))
        found = among_hashes[place] == piece if among_hashes.size else np.zeros(piece.size, np.bool_)
        missing.append(start + np.flatnonzero(~found))
        if among_hashes.size:
            moved += int(np.count_nonzero(found & (among_ids[place] != ids[start : start + _PIECE])))
    return (np.concatenate(missing) if missing else np.empty(0, np.int64)), moved
