"""How many values of each feature are unknown and how many are missing, split by split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from embank.pipelines.data.schema import SPLIT_NAMES
from embank.tables.ids.token_space import MISSING_ID
from embank.tables.ids.vocabulary import UNKNOWN_ID

Codes = npt.NDArray[np.int8]
Flags = npt.NDArray[np.bool_]


class Tally:
    """Counts values as they are written, block by block.

    Of a multi-valued feature a value is a member of a bag, and a row is missing where its bag is empty. Only features
    with a vocabulary have unknown values; missing ones are no unknown ones.
    """

    def __init__(self) -> None:
        self._counts: dict[str, npt.NDArray[np.int64]] = {}  # [values, unknown, missing] x splits
        self._unknowns: set[str] = set()
        self._bags: set[str] = set()
        self._rows = np.zeros(len(SPLIT_NAMES), dtype=np.int64)

    def add_rows(self, splits_N: Codes) -> None:
        """Takes in the splits of a block's rows."""
        self._rows += _per_split(splits_N)

    def add_ids(
        self, name: str, ids: npt.NDArray[Any], splits_N: Codes, *, lengths_N: npt.NDArray[Any] | None, missing: Flags
    ) -> None:
        """Takes in the ids of a feature with a vocabulary.

        Args:
            ids: [N], or [L] of the members of bags.
            lengths_N: of the bags; None of a single-valued feature.
            missing: which of the ids are missing values (none in bags).
        """
        self._unknowns.add(name)
        unknown = (ids == UNKNOWN_ID) & ~missing
        if lengths_N is None:
            self._add(name, splits_N, unknown=unknown, missing=missing)
            return
        counts = self._of_bags(name, splits_N, lengths_N)
        counts[1] += _per_split(np.repeat(splits_N, lengths_N)[unknown])

    def add_hashed(
        self, name: str, ids: npt.NDArray[Any], splits_N: Codes, *, lengths_N: npt.NDArray[Any] | None
    ) -> None:
        """Takes in the ids of a feature without a vocabulary; arguments as above."""
        if lengths_N is None:
            self._add(name, splits_N, missing=ids == MISSING_ID)
        else:
            self._of_bags(name, splits_N, lengths_N)

    def add_numbers(self, name: str, missing_N: Flags, splits_N: Codes) -> None:
        """Takes in a numeric feature."""
        self._add(name, splits_N, missing=missing_N)

    def _add(self, name: str, splits_N: Codes, *, missing: Flags, unknown: Flags | None = None) -> None:
        """One value a row; `add_rows` counts these."""
        counts = self._of(name)
        for row, flags in ((1, unknown), (2, missing)):
            if flags is not None and flags.any():
                counts[row] += _per_split(splits_N[flags])

    def _of_bags(self, name: str, splits_N: Codes, lengths_N: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        self._bags.add(name)
        counts = self._of(name)
        counts[0] += np.bincount(splits_N, weights=lengths_N, minlength=len(SPLIT_NAMES)).astype(np.int64)
        counts[2] += _per_split(splits_N[lengths_N == 0])
        return counts

    def _of(self, name: str) -> npt.NDArray[np.int64]:
        return self._counts.setdefault(name, np.zeros((3, len(SPLIT_NAMES)), dtype=np.int64))

    def to_json(self) -> dict[str, Any]:
        """Split to its rows and what was counted of each feature; splits without rows are left out."""
        return {
            split: {"rows": int(self._rows[code]), "features": self._features(code)}
            for code, split in enumerate(SPLIT_NAMES)
            if self._rows[code]
        }

    def _features(self, code: int) -> dict[str, Mapping[str, int | None]]:
        return {
            name: {
                "values": int((counts[0] if name in self._bags else self._rows)[code]),
                "unknown": int(counts[1, code]) if name in self._unknowns else None,
                "missing": int(counts[2, code]),
            }
            for name, counts in self._counts.items()
        }


def _per_split(splits: Codes) -> npt.NDArray[np.int64]:
    return np.bincount(splits, minlength=len(SPLIT_NAMES)).astype(np.int64)
