"""The planted model behind synthetic logs: who appears how often, and what makes a click.

A row's cells are independent. Field f has `num_tokens` values with Zipf frequencies (exponent alpha) and a missing
rate; numeric column j is log-logistic. The log odds of a click are

    intercept + s_id * sum_f e_f(id) + s_pair * sum_(f,g) a_f(id) b_g(id) + s_number * sum_j w_j z_j

where e, a and b are nearly normal (mean 0, variance 1) functions of a hash of (seed, field, rank), w likewise of
(seed, column), and z is ln(1 + x), standardised and clipped at 3; a missing value has an effect like any other. So an
id's effect depends on nothing but seed, field and rank: neither the number of rows nor the table sizes change it. The
intercept is set on a fixed sample so that the click rate is as asked.

Rows come in units of UNIT_ROWS, each with a random generator of its own: any unit can be drawn alone, and a log of
fewer rows is a prefix of a longer one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embank.pipelines.data.synth.fields import CRITEO_FIELDS, CRITEO_NUMBERS, NumberShape
from embank.pipelines.data.synth.zipf import Floats, Ranks, Zipf
from embank.tables.errors import ConfigError
from embank.tables.ids.mixing import GAMMA, bits_of, finish_words

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
        self.seed, self.alpha, self.num_tokens = seed, alpha, tuple(num_tokens)
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
        return _normal(ranks_N, self._id_keys[field]) * math.sqrt(_ID_VARIANCE / len(CRITEO_FIELDS))

    def log_odds(self, ranks: Sequence[Ranks], numbers: Sequence[Ints]) -> Floats:
        """[N] log odds of a click."""
        total_N = np.full(len(ranks[0]), self.intercept)
        for field, ranks_N in enumerate(ranks):
            total_N += self.effects(field, ranks_N)
        pair_scale = math.sqrt(_PAIR_VARIANCE / len(self._pairs))
        for left, right, left_key, right_key in self._pairs:
            total_N += pair_scale * _normal(ranks[left], left_key) * _normal(ranks[right], right_key)
        number_scale = math.sqrt(_NUMBER_VARIANCE / len(numbers))
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
        return np.random.Generator(np.random.PCG64([self.seed, stream, unit, 1]))

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
_LOW_16 = np.uint64(0xFFFF)


def _key(seed: int, *names: str) -> np.uint64:
    return np.uint64(bits_of("/".join([str(seed), *names]).encode()))


def _normal(ranks_N: Ranks, key: np.uint64) -> Floats:
    """A nearly normal number (mean 0, variance 1, within 3.5) per rank: the sum of the four 16-bit words of a hash."""
    hash_N = finish_words(ranks_N.astype(np.int64).view(np.uint64) * np.uint64(GAMMA) + key)
    total_N = hash_N & _LOW_16
    for shift in (16, 32):
        total_N += (hash_N >> np.uint64(shift)) & _LOW_16
    total_N += hash_N >> np.uint64(48)
    return (total_N.astype(np.float64) - 2 * 65_535) * (math.sqrt(3) / 65_536)


def _numbers(uniforms_N: Floats, shape: NumberShape) -> Ints:
    """Log-logistic counts with the column's mean and deviation of ln(1 + x), rounded down."""
    missing_N = uniforms_N < shape.missing
    share_N = np.clip((uniforms_N - shape.missing) / (1 - shape.missing), 1e-12, 1 - 1e-12)
    logs_N = shape.mean + shape.std * (math.sqrt(3) / math.pi) * np.log(share_N / (1 - share_N))
    counts_N: Ints = np.clip(np.exp(np.minimum(logs_N, 20.0)) - 1, 0, MAX_NUMBER).astype(np.int32)
    counts_N += np.int32(shape.lowest)
    counts_N[missing_N] = MISSING_NUMBER
    return counts_N
