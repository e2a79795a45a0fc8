"""The one form of all result files: `benchmarks/results/NAME.json` holds a `Results`.

    run = records.begin()                                    # before anything is measured or written
    run.records.append(records.record("step", "ms", case={"tier": "disk"}, better="lower", **records.figures(times)))
    records.save("tiers", run, title="...", about="...", out=args.out)

A file has one run, or several where parts of a benchmark were measured at different times; a run has its command,
machine, commit and date, and a record for each published figure. A fact that nobody noted is null. `benchmarks/page.py`
renders all files as `benchmarks/results/README.md`; what only a reader of the JSON needs stands in `detail`.
"""

import json
import math
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import machine
from pydantic import BaseModel, ConfigDict, Field, model_validator

RESULTS = Path(__file__).resolve().with_name("results")
UNTOLD = {"--out", "--page"}
"""Options that a command is told without: where the files went says nothing about the figures."""
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}

Number = Annotated[float, Field(allow_inf_nan=False)]
Case = dict[str, str | int | float | bool | None]
Statistic = Literal["median", "mean", "best", "once", "exact"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Peer(_Part):
    """A record against the same figure of something else.

    Args:
        name: of the peer, as it is called in the benchmark.
        kind: "ratio" is the record's figure / the peer's, "difference" the one minus the other.
        value, low, high: taken round by round where both took turns; median and spread, as the record's.
    """

    name: str
    kind: Literal["ratio", "difference"] = "ratio"
    value: Number
    low: Number | None = None
    high: Number | None = None

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        _check_order(self.value, self.low, self.high, what=f"peer {self.name!r}")
        return self


class Work(_Part):
    """What something can't do without, and the rate at which this machine does nothing but that.

    Args:
        counts: in words, what is counted and what is not.
        amount: of a metric in time: bytes or operations of the timed call. Of one per second: of one sample, row or
            token. Of one in bytes: the bytes that must move.
        unit: of the amount: "bytes", "FLOP", "reads".
        rate: amount per second, measured; None for a metric in bytes.
        rate_of: what was measured as the rate.
    """

    counts: str
    amount: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    unit: Literal["bytes", "FLOP", "reads"]
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    rate_of: str | None = None


class Floor(Work):
    """A figure's distance from what its work costs at least.

    Args:
        least: the best value that the metric could have, in its unit: amount / rate as a time, rate / amount as items
            per second, the amount itself in bytes.
        times: how many times worse the figure is than that.
    """

    least: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    times: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Record(_Part):
    """One published figure.

    Args:
        case: the settings that tell it from the benchmark's other records of that metric.
        metric: what is measured.
        unit: "ms", "us", "s", "samples/s", "rows/s", "bytes", "AUC", "" for a plain quotient, ...
        better: whether lower or higher figures are better; None where that is no question.
        value: the statistic over the rounds.
        statistic: "best" of several rounds: the shortest time, the largest rate; "once" was measured a single time,
            "exact" is counted, the same on every machine.
        low, high: the spread, if there is one.
        spread: what it is: "range" from the smallest to the largest round, "quartiles", "deviation" or "error": one
            sample standard deviation, or one standard error, to both sides of the mean.
        rounds: how many values the statistic is of; None if that was not noted.
        peers: the same figure of others, by ratio or difference.
        floors: distances from what can't be avoided.
        detail: anything that has no place above.
    """

    case: Case = {}
    metric: str
    unit: str
    better: Literal["lower", "higher"] | None = None
    value: Number
    statistic: Statistic = "median"
    low: Number | None = None
    high: Number | None = None
    spread: Literal["range", "quartiles", "deviation", "error"] | None = None
    rounds: Annotated[int, Field(ge=1)] | None = None
    peers: list[Peer] = []
    floors: list[Floor] = []
    detail: Any = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        what = f"metric {self.metric!r} of {self.case}"
        _check_order(self.value, self.low, self.high, what=what)
        if (self.spread is None) != (self.low is None):
            raise ValueError(f"{what}: a spread needs its kind, low and high, all or none of them")
        for floor in self.floors:
            least, times = _distance(floor, value=self.value, unit=self.unit)
            if not (math.isclose(least, floor.least, rel_tol=1e-6) and math.isclose(times, floor.times, rel_tol=1e-6)):
                raise ValueError(
                    f"{what}: its floor is {least:g}, {times:g} times; not {floor.least:g}, {floor.times:g}"
                )
        return self


class Machine(_Part):
    """What `machine.describe` says; `device` is a GPU's name, loads are averages of a minute."""

    cpu: str | None
    cores: int | None
    instruction_set: list[str] | None
    memory_gib: Number | None
    system: str | None
    python: str | None
    packages: dict[str, str | None] = {}
    device: str | None = None
    load_at_start: Number | None = None
    load_at_end: Number | None = None


class Run(_Part):
    """What one command measured.

    Args:
        command: from the repository's root.
        commit: of the working copy; ends with "-dirty" where files differed from it.
        date: in UTC.
        settings: of all its records.
        detail: raw rounds, curves, lists: what a record does not hold.
    """

    command: str | None
    commit: str | None
    date: datetime | None
    machine: Machine
    settings: dict[str, Any] = {}
    records: list[Record] = []
    detail: Any = None


class Results(_Part):
    """A file.

    Args:
        benchmark: its name, that of the file.
        script: that writes it, from the repository's root.
        title, about: what is measured, for the page.
        picture: a file beside it that shows the figures.
    """

    benchmark: str
    script: str
    title: str
    about: str
    picture: str | None = None
    runs: Annotated[list[Run], Field(min_length=1)]


def _check_order(value: float, low: float | None, high: float | None, *, what: str) -> None:
    if (low is None) != (high is None):
        raise ValueError(f"{what}: low is {low}, high is {high}; give both or none")
    if low is not None and high is not None and not low <= value <= high:
        raise ValueError(f"{what}: {value:g} is not between {low:g} and {high:g}")


def _distance(work: Work, *, value: float, unit: str) -> tuple[float, float]:
    """The least that a metric can be, and how many times worse a value is."""
    if unit == "bytes":
        return work.amount, value / work.amount
    if work.rate is None:
        raise ValueError(f"the floor of a figure in {unit} needs a rate")
    if unit in SECONDS:
        least = work.amount / work.rate / SECONDS[unit]
        return least, value / least
    if not unit.endswith("/s"):
        raise ValueError(f"{unit!r} has no floor; a time, a rate per second or bytes have one")
    most = work.rate / work.amount
    return most, most / value


def figures(values: Sequence[float], *, statistic: Statistic = "median", scale: float = 1.0) -> dict[str, Any]:
    """`value`, spread and `rounds` of a record, from its rounds."""
    scaled = [scale * value for value in values]
    if statistic == "mean":
        deviation = statistics.stdev(scaled) if len(scaled) > 1 else None
        return deviating(statistics.mean(scaled), deviation, rounds=len(scaled))
    value = min(scaled) if statistic == "best" else statistics.median(scaled)
    return ranged({"median": value, "min": min(scaled), "max": max(scaled)}, rounds=len(scaled), statistic=statistic)


def ranged(
    spread: Mapping[str, float], *, rounds: int | None, scale: float = 1.0, statistic: Statistic = "median"
) -> dict[str, Any]:
    """The same from "median", "min" and "max"."""
    value, low, high = (scale * spread[key] for key in ("median", "min", "max"))
    return {"value": value, "low": low, "high": high, "spread": "range", "rounds": rounds, "statistic": statistic}


def deviating(mean: float, deviation: float | None, *, rounds: int | None) -> dict[str, Any]:
    """The same from a mean and a sample standard deviation."""
    if deviation is None:
        return {"value": mean, "rounds": rounds, "statistic": "mean"}
    ends = {"low": mean - deviation, "high": mean + deviation, "spread": "deviation"}
    return {"value": mean, **ends, "rounds": rounds, "statistic": "mean"}


def record(metric: str, unit: str, *, works: Sequence[Work | None] = (), **fields: Any) -> Record:
    """A record whose floors are those of some work; None stands for work whose rate nobody measured."""
    floors = []
    for work in filter(None, works):
        least, times = _distance(work, value=fields["value"], unit=unit)
        floors.append(Floor(**work.model_dump(), least=least, times=times))
    return Record(metric=metric, unit=unit, floors=floors, **fields)


def peer(name: str, values: Mapping[str, float] | Sequence[float] | float, **fields: Any) -> Peer:
    """A peer from rounds, from their "median", "min" and "max", or from a single quotient or difference."""
    if isinstance(values, (int, float)):
        return Peer(name=name, value=values, **fields)
    spread = values if isinstance(values, Mapping) else figures(values)
    low, high = (spread.get(key, spread.get(other)) for key, other in (("low", "min"), ("high", "max")))
    return Peer(name=name, value=spread["value" if "value" in spread else "median"], low=low, high=high, **fields)


def script() -> str:
    """The script that runs, from the repository's root."""
    path = Path(sys.argv[0]).resolve()
    return path.relative_to(machine.ROOT).as_posix() if path.is_relative_to(machine.ROOT) else path.name


def command() -> str:
    """What is run now, without where its files go."""
    words, told = iter(sys.argv[1:]), []
    for word in words:
        if word in UNTOLD:
            next(words, None)
        elif word.split("=")[0] not in UNTOLD:
            told.append(word)
    return shlex.join(["python", script(), *told])


def begin(*, device: str | None = None, settings: Mapping[str, Any] | None = None) -> Run:
    """A run without records yet: call it before the first result is written, so that the commit is a clean one's."""
    plain = json.loads(json.dumps(settings or {}, default=str))
    here = Machine(**machine.describe(device=device))
    now = datetime.now(UTC).replace(microsecond=0)
    return Run(command=command(), commit=machine.commit(), date=now, machine=here, settings=plain)


def settings_of(args: Any) -> dict[str, Any]:
    """The options of a command, without where its files go."""
    return {key: value for key, value in vars(args).items() if f"--{key}" not in UNTOLD}


def load(path: Path) -> Results:
    """A file.

    Raises:
        ValueError: it is not of this form; with its name and what is wrong.
    """
    try:
        return Results.model_validate_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"'{path}' is no result file: {error}") from error


def save(
    name: str,
    run: Run,
    *,
    title: str,
    about: str,
    picture: str | None = None,
    out: Path = RESULTS,
    keep: Callable[[Run], Run | None] | None = None,
) -> Path:
    """Writes OUT/NAME.json, whole or not at all.

    Args:
        name: of the benchmark.
        run: what was measured now.
        title, about, picture: see `Results`.
        out: the folder, made if it is missing.
        keep: what of an earlier run of the file stays; all go by default.
    """
    path = out / f"{name}.json"
    earlier = load(path).runs if keep is not None and path.exists() else []
    kept = [found for old in earlier if keep is not None and (found := keep(old)) is not None]
    run.machine.load_at_end = os.getloadavg()[0]
    told = {"title": title, "about": about, "picture": picture}
    results = Results(benchmark=name, script=script(), runs=[*kept, run], **told)
    results = Results.model_validate(results.model_dump())  # records may have been changed since they were made
    write(results, out=out)
    return path


def write(results: Results, *, out: Path = RESULTS) -> None:
    """Writes a file as it is."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{results.benchmark}.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(results.model_dump(mode="json", exclude_defaults=True), indent=1)
    temporary.write_text(text + "\n")
    temporary.replace(path)


def argument(parser: Any, *, default: Path = RESULTS) -> None:
    """The option --out of a benchmark."""
    parser.add_argument("--out", type=Path, default=default, help="the folder of the result file")
