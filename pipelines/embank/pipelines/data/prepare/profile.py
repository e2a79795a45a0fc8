"""What the training part had of each feature, see `embank.pipelines.data.schema.Profile`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embank.pipelines.data.schema import CategoricalField, NumericField, Profile
from embank.tables.ids.vocabulary import UNKNOWN_ID

TOP_IDS = 32
"""Most frequent ids whose shares are kept, the unknown value included."""
NUM_BINS = 10
MOST_NUMBERS = 2**18
"""Numbers of a feature that its bins are made of, at most: every k-th of the training part, so that the share of a bin
is off by .0006 (a standard deviation) in larger parts."""


def shares_of(counts: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """Shares of the first ids, given how often each id occurs."""
    return tuple((counts[:TOP_IDS] / max(1, counts.sum())).tolist())


class TrainingNumbers:
    """Takes every k-th number of the training part, as it is written, whatever the blocks that it comes in.

    Args:
        num_rows: of the training part.
    """

    def __init__(self, num_rows: int) -> None:
        self._step = max(1, -(-num_rows // MOST_NUMBERS))
        self._seen: dict[str, int] = {}
        self._kept: dict[str, list[npt.NDArray[np.float32]]] = {}

    def add(self, name: str, values_N: npt.NDArray[np.float32]) -> None:
        """Takes in the next numbers of a feature."""
        seen = self._seen.get(name, 0)
        self._kept.setdefault(name, []).append(values_N[-seen % self._step :: self._step].copy())
        self._seen[name] = seen + len(values_N)

    def bins(self, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Edges and shares of about `NUM_BINS` bins with as many numbers each; fewer where many numbers are equal."""
        values_N = np.concatenate(self._kept.get(name) or [np.empty(0, dtype=np.float32)])
        if not values_N.size:
            return (), ()
        edges = np.unique(np.quantile(values_N, np.arange(1, NUM_BINS) / NUM_BINS, method="lower"))
        counts = np.bincount(bins_of(values_N, edges), minlength=len(edges) + 1)
        return tuple(edges.astype(np.float64).tolist()), tuple((counts / len(values_N)).tolist())


def bins_of(values_N: npt.NDArray[np.floating], edges: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The bin of each number, [N] int64 in 0 .. len(edges)."""
    return np.searchsorted(np.asarray(edges, dtype=np.float64), values_N.astype(np.float64), side="right")


def with_profiles(
    categorical: tuple[CategoricalField, ...], *, tally: Mapping[str, Any], shares: Mapping[str, tuple[float, ...]]
) -> tuple[CategoricalField, ...]:
    """Fields with what the training part had.

    Args:
        categorical: the fields.
        tally: of all splits, see `Tally.to_json`.
        shares: feature with a vocabulary to the shares of its first ids.
    """
    fields = []
    for field in categorical:
        known = shares.get(field.name)
        profile = Profile(
            missing=_missing(field.name, tally),
            unknown=None if known is None else known[UNKNOWN_ID],
            unknown_valid=None if known is None else _unknown(field.name, tally["valid"]),
            shares=known or (),
        )
        fields.append(replace(field, training=profile))
    return tuple(fields)


def with_bins(
    numeric: tuple[NumericField, ...], *, tally: Mapping[str, Any], numbers: TrainingNumbers
) -> tuple[NumericField, ...]:
    """Fields with what the training part had; indicator columns are as they were."""
    fields = []
    for field in numeric:
        if field.name in tally["train"]["features"]:
            edges, shares = numbers.bins(field.name)
            field = replace(field, training=Profile(missing=_missing(field.name, tally), shares=shares, edges=edges))
        fields.append(field)
    return tuple(fields)


def _missing(name: str, tally: Mapping[str, Any]) -> float:
    train = tally["train"]
    return float(train["features"][name]["missing"] / train["rows"])


def _unknown(name: str, split: Mapping[str, Any]) -> float:
    counted = split["features"][name]
    return float(counted["unknown"] / max(1, counted["values"]))
