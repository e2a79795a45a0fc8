"""The planted model behind synthetic logs: who appears how often, and what makes a click.

A row's cells are independent. Field f has `num_tokens` values with Zipf frequencies (exponent alpha) and a missing rate;
numeric column j is log-logistic. The log odds of a click are

    intercept + s_id * sum_f e_f(id) + s_pair * sum_(f,g) a_f(id) b_g(id) + s_number * sum_j w_j z_j

where e, a and b are nearly normal (mean 0, variance 1) functions of a hash of (seed, field, rank), w likewise of
(seed, column), and z is ln(1 + x), standardised and clipped at 3; a missing value has an effect like any other. So an id's
effect depends on nothing but seed, field and rank: neither the number of rows nor the table sizes change it. The intercept is
set on a fixed sample so that the click rate is as asked.

Rows come in units of UNIT_ROWS, each with a random generator of its own: any unit can be drawn alone, and a log of fewer rows
is a prefix of a longer one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embank.pipelines.data.stable_hash import mix64
from embank.pipelines.data.synth.zipf import Floats, Ranks, Zipf
from embank.tables.errors import ConfigError

Ints = np.ndarray[Any, np.dtype[np.int32]]
Bytes = np.ndarray[Any, np.dtype[np.int8]]

UNIT_ROWS = 16_384
MISSING_RANK = -1
MISSING_NUMBER = int(np.iinfo(np.int32).min)
MAX_NUMBER = 99_999_999
DEFAULT_ALPHA = 1.1  # about 151,000 distinct ids in 60,000 rows at the published sizes; Criteo's log has about 161,000
DEFAULT_CLICK_RATE = 0.25

_CALIBRATION_STREAM, _CALIBRATION_UNITS = 0, 2
# Variances of the log odds: together about 2.2, which puts the best AUC near 0.8, where Criteo's models end.
_ID_VARIANCE, _PAIR_VARIANCE, _NUMBER_VARIANCE = 1.4, 0.4, 0.4
_PAIRS = (("C2", "C5"), ("C6", "C8"), ("C9", "C14"), ("C17", "C23"), ("C20", "C22"), ("C1", "C25"))


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


# Cardinalities of Criteo's Kaggle data as published (33,762,577 in all). Rates, means and deviations are rounded from a sample.
_CARDINALITIES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
_MISSING = (0, 0, 0.04, 0.04, 0, 0.14, 0, 0, 0, 0, 0, 0.04, 0, 0, 0, 0.04, 0, 0, 0.42, 0.42, 0.04, 0.82, 0, 0.04, 0.42, 0.42)
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

    Fields of up to 20,000 values keep their published size, larger ones shrink in proportion, to 20,000 at least. If that is
    too much, all fields are cut off at one common size instead.

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


@dataclass(frozen=True, kw_only=True)
class Unit:
    """N rows.

    Attributes:
        ranks: per field [N] int32, MISSING_RANK where missing.
        numbers: per numeric column [N] int32, MISSING_NUMBER where missing.
        probabilities: [N] the true click probabilities.
        labels: [N] int8.
    """

    ranks: tuple[Ranks, ...]
    numbers: tuple[Ints, ...]
    probabilities: Floats
    labels: Bytes


class PlantedModel:
    """Draws rows and clicks.

    Args:
        num_tokens: values per field, missing not counted.
        seed: at least 0.
        alpha: Zipf exponent of the ids of every field.
        click_rate: expected share of clicks.

    Raises:
        ConfigError: an argument out of range.
    """

    def __init__(
        self,
        *,
        num_tokens: Sequence[int],
        seed: int,
        alpha: float = DEFAULT_ALPHA,
        click_rate: float = DEFAULT_CLICK_RATE,
    ) -> None:
        if seed < 0:
            raise ConfigError(f"seed is {seed}; use 0 or more.")
        if not 0 <= alpha <= 10:
            raise ConfigError(f"alpha is {alpha}; use an exponent from 0 (uniform) to 10.")
        if not 0 < click_rate < 1:
            raise ConfigError(f"click_rate is {click_rate}; use a share between 0 and 1.")
        self._seed = seed
        self._zipfs = [Zipf(count, alpha) for count in num_tokens]
        index = {field.name: number for number, field in enumerate(CRITEO_FIELDS)}
        self._id_keys = [_key(seed, "id", field.name) for field in CRITEO_FIELDS]
        self._pairs = [
            (index[f], index[g], _key(seed, "pair", f, g, f), _key(seed, "pair", f, g, g)) for f, g in _PAIRS
        ]
        self._number_keys = [_key(seed, "number", column.name) for column in CRITEO_NUMBERS]
        self._weights = [float(_normal(np.zeros(1, dtype=np.int32), key)[0]) for key in self._number_keys]
        self.intercept = 0.0
        self.intercept = self._calibrated(click_rate)

    def draw(self, stream: int, unit: int) -> Unit:
        """Unit `unit` of the stream (1, 2, ...): always UNIT_ROWS rows, always the same ones."""
        generator = self._generator(stream, unit)
        ranks = self._ranks(generator)
        numbers = tuple(_numbers(generator.random(UNIT_ROWS), column) for column in CRITEO_NUMBERS)
        probabilities = 1 / (1 + np.exp(-self.log_odds(ranks, numbers)))
        labels = (generator.random(UNIT_ROWS) < probabilities).astype(np.int8)
        return Unit(ranks=ranks, numbers=numbers, probabilities=probabilities, labels=labels)

    def draw_ranks(self, stream: int, unit: int) -> tuple[Ranks, ...]:
        """`draw(stream, unit).ranks` alone, which is quicker."""
        return self._ranks(self._generator(stream, unit))

    def effects(self, field: int, ranks_N: Ranks) -> Floats:
        """[N] additive effects on the log odds of ids of a field (MISSING_RANK for missing)."""
        return _normal(ranks_N, self._id_keys[field]) * np.sqrt(_ID_VARIANCE / len(CRITEO_FIELDS))

    def log_odds(self, ranks: Sequence[Ranks], numbers: Sequence[Ints]) -> Floats:
        """[N] log odds of a click."""
        total_N = np.full(len(ranks[0]), self.intercept)
        for field, ranks_N in enumerate(ranks):
            total_N += self.effects(field, ranks_N)
        pair_scale = np.sqrt(_PAIR_VARIANCE / len(self._pairs))
        for left, right, left_key, right_key in self._pairs:
            total_N += pair_scale * _normal(ranks[left], left_key) * _normal(ranks[right], right_key)
        number_scale = np.sqrt(_NUMBER_VARIANCE / len(numbers))
        for column, (shape, numbers_N) in enumerate(zip(CRITEO_NUMBERS, numbers, strict=True)):
            total_N += number_scale * self._number_effect(column, shape, numbers_N)
        return total_N

    def _number_effect(self, column: int, shape: NumberShape, numbers_N: Ints) -> Floats:
        missing_N = numbers_N == MISSING_NUMBER
        logs_N = np.log(np.where(missing_N, 1, numbers_N - np.int32(shape.lowest - 1)).astype(np.float64))
        effect_N = self._weights[column] * np.clip((logs_N - shape.mean) / shape.std, -3, 3)
        if shape.missing:
            missing = np.full(1, MISSING_RANK, dtype=np.int32)
            effect_N[missing_N] = _normal(missing, self._number_keys[column])[0]
        return effect_N

    def _generator(self, stream: int, unit: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self._seed, stream, unit, 1]))

    def _ranks(self, generator: np.random.Generator) -> tuple[Ranks, ...]:
        """One uniform number per cell: below the missing rate it is missing, the rest is stretched over the ids."""
        columns = []
        for field, zipf in zip(CRITEO_FIELDS, self._zipfs, strict=True):
            uniforms_N = generator.random(UNIT_ROWS)
            if field.missing:
                missing_N = uniforms_N < field.missing
                ranks_N = zipf.ranks(np.maximum(uniforms_N - field.missing, 0) * (1 / (1 - field.missing)) * _BELOW_ONE)
                ranks_N[missing_N] = MISSING_RANK
            else:
                ranks_N = zipf.ranks(uniforms_N)
            columns.append(ranks_N)
        return tuple(columns)

    def _calibrated(self, click_rate: float) -> float:
        """The intercept at which the calibration units have the click rate, by bisection."""
        units = []
        for unit in range(_CALIBRATION_UNITS):
            generator = self._generator(_CALIBRATION_STREAM, unit)
            ranks = self._ranks(generator)
            numbers = [_numbers(generator.random(UNIT_ROWS), column) for column in CRITEO_NUMBERS]
            units.append(self.log_odds(ranks, numbers))
        odds_N = np.concatenate(units)
        low, high = -50.0, 50.0
        for _ in range(50):
            middle = (low + high) / 2
            if float(np.mean(1 / (1 + np.exp(-odds_N - middle)))) < click_rate:
                low = middle
            else:
                high = middle
        return (low + high) / 2


_BELOW_ONE = 1 - 2.0**-52
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_LOW_16 = np.uint64(0xFFFF)


def _key(seed: int, *names: str) -> np.uint64:
    digest = hashlib.blake2b("/".join([str(seed), *names]).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def _normal(ranks_N: Ranks, key: np.uint64) -> Floats:
    """A nearly normal number (mean 0, variance 1, within 3.5) per rank: the sum of the four 16-bit words of a hash."""
    hash_N = mix64(ranks_N.astype(np.int64).view(np.uint64) * _GAMMA + key)
    total_N = hash_N & _LOW_16
    for shift in (16, 32):
        total_N += (hash_N >> np.uint64(shift)) & _LOW_16
    total_N += hash_N >> np.uint64(48)
    return (total_N.astype(np.float64) - 2 * 65_535) * (np.sqrt(3) / 65_536)


def _numbers(uniforms_N: Floats, shape: NumberShape) -> Ints:
    """Log-logistic counts with the column's mean and deviation of ln(1 + x), rounded down."""
    missing_N = uniforms_N < shape.missing
    share_N = np.clip((uniforms_N - shape.missing) / (1 - shape.missing), 1e-12, 1 - 1e-12)
    logs_N = shape.mean + shape.std * (np.sqrt(3) / np.pi) * np.log(share_N / (1 - share_N))
    counts_N = np.clip(np.exp(np.minimum(logs_N, 20.0)) - 1, 0, MAX_NUMBER - 10).astype(np.int32)
    counts_N += np.int32(shape.lowest)
    counts_N[missing_N] = MISSING_NUMBER
    return counts_N
