"""The shape of Criteo's Kaggle log: fields, published cardinalities, missing rates, sizes of numbers; and scaled-down
sizes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from embank.tables.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FieldShape:
    """A categorical field: its published number of distinct values (a missing one included) and its missing rate."""

    name: str
    cardinality: int
    missing: float


@dataclass(frozen=True, kw_only=True)
class NumberShape:
    """A numeric column: missing rate, lowest value, mean and standard deviation of ln(1 + x - lowest)."""

    name: str
    missing: float
    lowest: int
    mean: float
    std: float


# Cardinalities of Criteo's Kaggle data as published (33,762,577 in all). Rates, means and deviations are rounded from a
# sample.
_CARDINALITIES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
_MISSING = (
    0,
    0,
    0.04,
    0.04,
    0,
    0.14,
    0,
    0,
    0,
    0,
    0,
    0.04,
    0,
    0,
    0,
    0.04,
    0,
    0,
    0.42,
    0.42,
    0.04,
    0.82,
    0,
    0.04,
    0.42,
    0.42,
)
CRITEO_FIELDS = tuple(
    FieldShape(name=f"C{index + 1}", cardinality=cardinality, missing=missing)
    for index, (cardinality, missing) in enumerate(zip(_CARDINALITIES, _MISSING, strict=True))
)
_NUMBERS = (
    (0.45, 0, 0.85, 1.00), (0.0, -1, 2.13, 2.15), (0.19, 0, 2.33, 1.30), (0.19, 0, 1.77, 0.97), (0.05, 0, 7.15, 2.94),
    (0.25, 0, 3.55, 1.80), (0.05, 0, 1.54, 1.37), (0.001, 0, 2.07, 1.17), (0.05, 0, 3.60, 1.68), (0.45, 0, 0.40, 0.40),
    (0.05, 0, 0.85, 0.75), (0.77, 0, 0.30, 0.61), (0.19, 0, 1.89, 1.06),
)  # fmt: skip
CRITEO_NUMBERS = tuple(
    NumberShape(name=f"I{index + 1}", missing=missing, lowest=lowest, mean=mean, std=std)
    for index, (missing, lowest, mean, std) in enumerate(_NUMBERS)
)

_WHOLE = 20_000


def table_sizes(total: int) -> tuple[int, ...]:
    """Sizes of the 26 tables that together have exactly `total` rows.

    Fields of up to 20,000 values keep their published size, larger ones shrink in proportion, to 20,000 at least. If
    that is too much, all fields are cut off at one common size instead.

    Raises:
        ConfigError: `total` is below 3 rows per table.
    """
    cards = np.array([field.cardinality for field in CRITEO_FIELDS], dtype=np.float64)
    least = 3 * len(cards)
    if total < least:
        raise ConfigError(f"the total table size is {total}; {len(cards)} tables need at least {least} rows.")
    small = cards <= _WHOLE
    if total >= np.minimum(cards, _WHOLE).sum():
        sizes = _solve(lambda scale: np.where(small, cards, np.maximum(_WHOLE, cards * scale)), total)
    else:
        sizes = _solve(lambda cap: np.maximum(np.minimum(cards, cap), 3), total)
    largest = int(np.argmax(cards))
    sizes[largest] += total - sum(sizes)
    return tuple(sizes)


def _solve(sizes_at: Any, total: int) -> list[int]:
    """Sizes, rounded down, at the largest parameter for which they sum to at most `total` (by bisection)."""
    low, high = 0.0, max(float(total), 1.0)
    for _ in range(100):
        middle = (low + high) / 2
        if np.floor(sizes_at(middle)).sum() <= total:
            low = middle
        else:
            high = middle
    return [int(size) for size in np.floor(sizes_at(low))]
