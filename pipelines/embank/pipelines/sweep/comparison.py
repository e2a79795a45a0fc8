"""Methods against baselines at equal bytes: seed by seed, and between two sizes of a baseline by interpolation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, log, nan
from statistics import mean, stdev
from typing import Any

from embank.pipelines.sweep.latency import Latency
from embank.pipelines.sweep.plan import Case, split_method

BASELINES = ("hash", "frequency_cut", "uniform_dim")
"""What every method has to beat at the same size: sharing rows blindly, keeping the frequent ids only, and shorter
rows."""

EQUAL = log(1.05)
"""Sizes that differ by less are taken for equal: whole rows rarely use a budget to the byte."""


@dataclass(frozen=True, kw_only=True)
class CaseResults:
    """What the runs of a case have come to.

    Args:
        case: model, method and budget.
        point: of the grid, chosen on validation; "" without a grid.
        by_seed: contents of the result.json files of that point.
        failures: by run of that point (of any, if none could be chosen), its error message.
        failed_points: the same for other points of the grid.
        floor: the smallest budget of a method that can't reach this one; None if it can, or has none.
        refusal: why it can't.
        latency: of one run's packed tables.
        codec: that the tables are served under; None where the sweep has no codecs.
        uncoded: with a codec, the results of the same runs without, by seed.
        refused: with a codec, why it can't hold the rows of a run, by run.
    """

    case: Case
    point: str
    by_seed: Mapping[int, Mapping[str, Any]]
    failures: Mapping[str, str]
    failed_points: Mapping[str, str]
    floor: float | None = None
    refusal: str | None = None
    latency: Latency | None = None
    codec: str | None = None
    uncoded: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_coded(self) -> bool:
        """Whether it is another form of runs that have a line of their own."""
        return bool(self.uncoded)

    @property
    def is_whole(self) -> bool:
        """Whether every run has figures or was refused."""
        return not self.failures

    @property
    def nbytes(self) -> float:
        """Serving bytes, the mean over seeds."""
        return float(mean(run["serving_bytes"] for run in self.by_seed.values()))

    @property
    def validation(self) -> float:
        """The mean over seeds of what validation says."""
        return mean(map(validation, self.by_seed.values()))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A method's test AUC minus a baseline's.

    Args:
        baseline: its name.
        mean, sd: over the seeds that both have; sd is the sample deviation, None for one seed, mean None where no AUC
            is defined.
        bytes_ratio: the baseline's bytes / the method's: 1 where they are equal or interpolated, else those of its
            nearest size.
        validation: of the baseline at that size.
    """

    baseline: str
    mean: float | None
    sd: float | None
    bytes_ratio: float
    validation: float


def validation(result: Mapping[str, Any]) -> float:
    """What a run reached on validation, larger is better: AUC, or the negative log loss where that was monitored."""
    monitor = result.get("monitor") or ("auc" if "valid_auc" in result else "logloss")  # earlier versions don't say
    value = float(result[f"valid_{monitor}"])
    return -value if monitor == "logloss" else value


def base_name(method: str) -> str:
    """A method without its options."""
    return split_method(method)[0]


def differences(entry: CaseResults, results: Sequence[CaseResults]) -> dict[str, Difference]:
    """What a case with runs gains over each other baseline of its model that has runs, by name.

    Baselines are those without codec; under a codec a baseline is compared to itself without.
    """
    found = {}
    for name in BASELINES:
        own = [e for e in results if e.by_seed and e.case.model == entry.case.model and not e.is_coded]
        sizes = [e for e in own if base_name(e.case.method) == name]
        if sizes and (entry.is_coded or base_name(entry.case.method) != name):
            found[name] = _difference(entry, sizes, baseline=name)
    return found


def changes(entry: CaseResults) -> tuple[list[float], list[float]]:
    """What a codec changes of test AUC (where it is defined) and of validation, run by run."""
    runs = [(coded, entry.uncoded[seed]) for seed, coded in entry.by_seed.items() if seed in entry.uncoded]
    tested = [_auc(coded) - _auc(plain) for coded, plain in runs]
    judged = [validation(coded) - validation(plain) for coded, plain in runs]
    return [gain for gain in tested if not isnan(gain)], judged


def best(found: Mapping[str, Difference]) -> Difference | None:
    """The baseline with the best validation: of those at equal bytes, else of those whose bytes are nearest."""
    distances = {name: abs(log(difference.bytes_ratio)) for name, difference in found.items()}
    nearest = min(distances.values(), default=0.0)
    near = [difference for name, difference in found.items() if distances[name] <= (nearest + EQUAL if nearest else 0)]
    return max(near, key=lambda difference: difference.validation, default=None)


def _difference(entry: CaseResults, sizes: Sequence[CaseResults], *, baseline: str) -> Difference:
    weights, ratio = _at_bytes(sizes, entry.nbytes)
    gains = []
    for seed, run in entry.by_seed.items():
        others = [_auc(other.by_seed.get(seed)) * weight for other, weight in weights]
        gains.append(_auc(run) - sum(others))
    gains = [gain for gain in gains if not isnan(gain)]
    return Difference(
        baseline=baseline,
        mean=mean(gains) if gains else None,
        sd=stdev(gains) if len(gains) > 1 else None,
        bytes_ratio=ratio,
        validation=sum(other.validation * weight for other, weight in weights),
    )


def _auc(result: Mapping[str, Any] | None) -> float:
    """Of the test split; NaN where it is undefined or there is no run."""
    return nan if result is None or result["auc"] is None else float(result["auc"])


def _at_bytes(sizes: Sequence[CaseResults], nbytes: float) -> tuple[list[tuple[CaseResults, float]], float]:
    """Sizes of a baseline with weights that sum to 1, and the bytes that they stand for / `nbytes`.

    The nearest size if it is as large, else a line over the logarithm of bytes between the next smaller and the next
    larger one; outside of all sizes the nearest one, with its own bytes.
    """
    distance = {id(size): log(size.nbytes / nbytes) for size in sizes}
    nearest = min(sizes, key=lambda size: abs(distance[id(size)]))
    if abs(distance[id(nearest)]) <= EQUAL:
        return [(nearest, 1.0)], 1.0
    smaller = max((size for size in sizes if size.nbytes < nbytes), key=lambda size: size.nbytes, default=None)
    larger = min((size for size in sizes if size.nbytes > nbytes), key=lambda size: size.nbytes, default=None)
    if smaller is None or larger is None:
        return [(nearest, 1.0)], nearest.nbytes / nbytes
    below, above = -distance[id(smaller)], distance[id(larger)]
    return [(smaller, above / (below + above)), (larger, below / (below + above))], 1.0
