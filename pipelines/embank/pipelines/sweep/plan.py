"""What a sweep consists of: combinations of models, methods, budgets and seeds, and the configuration of each run."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from itertools import product
from math import log
from typing import Any

from embank.ctr_models.registry import find_model
from embank.pipelines.config.file import set_key
from embank.pipelines.config.run import Config, parse_config
from embank.pipelines.config.tables import COLLECTION_KEYS, TABLE_KEYS, TableConfig, TablesConfig
from embank.pipelines.config.untuned import refuse_untuned
from embank.pipelines.config.values import is_non_finite
from embank.pipelines.runs.coded import UNCODED, refuse_choice
from embank.tables import ConfigError, method_class, registered_methods
from embank.tables.storage.yaml_text import parse_yaml

_MOST_WHOLE = 2.0**53  # from here on a float is whole, whatever was meant
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A line of the leaderboard.

    Args:
        model: its name.
        method: its name, with options as "name:key=value:key=value" if they are not the configuration's.
        budget: None stands for the method's only size, or for the one that its options say.
    """

    model: str
    method: str
    budget: float | None

    @property
    def name(self) -> str:
        """Its folder under `runs/`. A method that has only one size is at budget 1, one whose options say its size at
        "own"."""
        takes_budget = method_class(split_method(self.method)[0]).traits.allocation.takes_budget
        only = "own" if takes_budget else "1"
        return f"{self.model}/{self.method}/{only if self.budget is None else _budget_text(self.budget)}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of a case: a seed, and a point of the grid as "key=value,key=value" ("" without a grid)."""

    case: Case
    seed: int
    point: str

    @property
    def name(self) -> str:
        """Its folder under `runs/`."""
        return "/".join(part for part in (self.case.name, self.point, str(self.seed)) if part)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep.

    Args:
        config: the configuration that all runs share, as plain dicts.
        models: names; another model than the configuration's takes those of its hyper-parameters that it has as well.
        methods: names, or "name:key=value" for other options; another method's other options take their defaults.
        budgets: serving bytes / plain bytes; a method that can't be made smaller is trained once. None is the size that
            the method's options say, or that of the plain table.
        seeds: runs of each combination; the first one also runs the whole grid.
        grid: by key, the values to choose from on validation.
        grid_budget: a method runs the grid once per model, at the budget next to this one that it can reach, and takes
            what was chosen to its other budgets; None runs it at every budget.
        codecs: under which each run is evaluated besides, without training it again; `fp32` is the run itself.
        widen: also run the neighbours of the best point of a grid that are not in it, until none is better.

    Raises:
        ConfigError: an unknown name, a budget outside (0, 1], an empty list, a key that the configuration lacks or that
            the sweep sets itself, or nothing to widen.
    """

    config: Mapping[str, Any]
    models: Sequence[str]
    methods: Sequence[str]
    budgets: Sequence[float | None]
    seeds: Sequence[int]
    grid: Mapping[str, Sequence[Any]]
    grid_budget: float | None = None
    codecs: Sequence[str] = ()
    widen: bool = False

    def __post_init__(self) -> None:
        for model in self.models:
            find_model(model)
        for name, values in {
            "methods": self.methods,
            "budgets": self.budgets,
            "seeds": self.seeds,
            "models": self.models,
        }.items():
            if not values:
                raise ConfigError(f"--{name} is empty; give at least one, separated by commas")
        for option, budget in [
            *(("--budgets", budget) for budget in self.budgets),
            ("--grid-budget", self.grid_budget),
        ]:
            if budget is not None and not 0 < budget <= 1:
                raise ConfigError(
                    f"{option} holds {budget:g}; a budget is serving bytes / bytes of the plain fp32 tables and lies "
                    "in (0, 1]"
                )
        for seed in self.seeds:
            if seed < 0:
                raise ConfigError(f"--seeds holds {seed}; a seed must be 0 or more")
        for codec in self.codecs:
            refuse_choice(codec)
        for option, is_given in (("--widen", self.widen), ("--grid-budget", self.grid_budget is not None)):
            if is_given and not self.grid:
                raise ConfigError(f"{option} says how a --grid is run, and there is none; add one")
        for key, values in self.grid.items():
            refuse_untuned(key, _UNTUNED, where="--grid")
            _refuse_non_finite(key, values)
        each_once = {
            key: list({_text(v): v for v in map(as_whole, values)}.values()) for key, values in self.grid.items()
        }
        object.__setattr__(self, "grid", each_once)
        if self.widen and not any(len(numbers_of(values)) > 1 for values in self.grid.values()):
            raise ConfigError(
                f"--widen goes on beyond the numbers of a --grid, and of {', '.join(self.grid)} no key has two, and "
                "numbers only; give more values, or leave --widen out"
            )
        for case in self.cases():
            for job in self.points(case):
                self._refuse_coded(self.config_of(job), method=case.method)

    def _refuse_coded(self, config: Config, *, method: str) -> None:
        tables = config.tables
        coded = [(f"{path}.codec", table.codec) for path, table in _by_path(tables) if table.codec != UNCODED]
        through = config.train.straight_through
        coded += [] if through is None else [("train.straight_through", through)]
        if self.codecs and coded:
            path, codec = coded[0]
            raise ConfigError(
                f"'{path}' is {codec} with method '{method}', and --codecs codes the rows of runs in fp32; leave "
                f"one of them out, for example by --set {path}={UNCODED if path.endswith('codec') else 'null'}. With "
                "the key, a budget counts coded bytes: that is another sweep"
            )

    def cases(self) -> list[Case]:
        """The lines of the leaderboard, in order."""
        budgets: Mapping[str, Sequence[float | None]] = {
            method: self.budgets if method_class(split_method(method)[0]).traits.allocation.takes_budget else [None]
            for method in self.methods
        }
        return [
            Case(model=model, method=method, budget=budget)
            for model in self.models
            for method in self.methods
            for budget in budgets[method]
        ]

    def points(self, case: Case) -> list[Job]:
        """The first seed's runs of a case: the whole grid, or one run."""
        return [
            Job(case=case, seed=self.seeds[0], point=point_at(dict(zip(self.grid, chosen, strict=True))))
            for chosen in product(*self.grid.values())
        ]

    def tuned_with(self, case: Case, tunable: Sequence[Case]) -> Case:
        """The case whose grid decides a case's point: itself, or the one of its model and method next to the grid's
        budget.

        Args:
            case: any.
            tunable: cases that can be trained, or whose grids are complete.
        """
        if self.grid_budget is None or case.budget is None:
            return case
        wanted = log(self.grid_budget)
        own = [other for other in tunable if (other.model, other.method) == (case.model, case.method)]
        return min(own, key=lambda other: abs(log(other.budget or 1) - wanted), default=case)

    def config_of(self, job: Job) -> Config:
        """The configuration of a run."""
        raw = deepcopy(dict(self.config))
        raw["model"] = _with_model(raw["model"], job.case.model)
        raw["tables"] = _with_method(raw.get("tables") or {}, job.case.method) | {"budget": job.case.budget}
        raw["train"] = {**(raw.get("train") or {}), "seed": job.seed}
        for key, value in point_of(job.point, self.grid).items():
            set_key(raw, f"{key}={json.dumps(value)}")
        return parse_config(raw)


def _refuse_non_finite(key: str, values: Sequence[Any]) -> None:
    """Raises ConfigError for a grid of infinity or NaN, which no setting can be."""
    for value in values:
        if is_non_finite(value):
            raise ConfigError(f"--grid {key} holds {value}; give finite numbers")


def _budget_text(budget: float) -> str:
    """Short where that says it all; budgets that differ differ in it."""
    short = f"{budget:g}"
    return short if float(short) == budget else repr(budget)


def _by_path(tables: TablesConfig) -> list[tuple[str, TableConfig]]:
    return [("tables", tables.default), *((f"tables.overrides.{name}", t) for name, t in tables.overrides.items())]


def _with_model(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    if name == model["name"]:
        return dict(model)
    known = {field.name for field in fields(find_model(name).Config)}
    return {"name": name, **{key: value for key, value in model.items() if key in known}}


def _with_method(tables: Mapping[str, Any], method: str) -> dict[str, Any]:
    name, options = split_method(method)
    if name == tables.get("method", "full"):
        return {**tables, **options}
    general = {key: value for key, value in tables.items() if key in TABLE_KEYS or key in COLLECTION_KEYS}
    return {**general, "method": name, **options}


def split_method(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of "name:key=value:key=value"; values are YAML.

    Raises:
        ConfigError: an option that is not of that form.
    """
    name, *parts = text.split(":")
    options = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not (key and equals and value) or "/" in value:
            raise ConfigError(
                f"--methods holds '{text}', whose '{part}' is not of the form key=value (without '/'), as in "
                "unified:lookups=4"
            )
        options[key] = parse_yaml(value, origin=f"--methods '{text}': the value of {key}")
    return name, options


_UNTUNED = {
    "train.seed": "give seeds with --seeds",
    "tables.method": "give methods with --methods",
    "tables.budget": "give budgets with --budgets",
    "model.name": "give models with --models",
    "data.path": "other data is another sweep",
    "train.monitor": "points are compared by one metric; give it with --set",
}
"""Keys that the sweep sets itself, or compares points by."""


def as_whole(value: Any) -> Any:
    """A value, or where it is a whole number written as 1.0 that number: one value has one folder."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < _MOST_WHOLE
    return int(value) if is_whole else value


def numbers_of(values: Iterable[Any]) -> list[float]:
    """Values in ascending order, each once; [] if they are not numbers all."""
    given = list(values)
    found = [value for value in given if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return sorted(set(found)) if len(found) == len(given) else []


def _text(value: Any) -> str:
    """A value of the grid as part of a folder's name."""
    return value if isinstance(value, str) else json.dumps(value, separators=(";", ":"))


def point_at(values: Mapping[str, Any]) -> str:
    """The point of a grid that stands for values by key."""
    return ",".join(f"{key}={_text(value)}" for key, value in values.items())


def point_of(point: str, grid: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The values that a point stands for, by key: those of a grid, or numbers beyond them; {} for other keys."""
    texts = dict(part.partition("=")[::2] for part in point.split(",") if part)
    if texts.keys() != grid.keys():
        return {}
    known = {(key, _text(value)): value for key, values in grid.items() for value in values}
    return {key: known[key, text] if (key, text) in known else json.loads(text) for key, text in texts.items()}


def method_names(text: str) -> list[str]:
    """Methods from "a,b:key=value,c" or "all".

    Raises:
        ConfigError: an unknown one, with the nearest right one, or options that are not of the form.
    """
    methods = registered_methods() if text.strip() == "all" else parts(text, option="--methods")
    for method in methods:
        method_class(split_method(method)[0])
    return methods


def codec_names(text: str) -> list[str]:
    """Codecs from "fp32,int8".

    Raises:
        ConfigError: there is none.
    """
    codecs = parts(text, option="--codecs")
    if not codecs:
        raise ConfigError(f"--codecs is '{text}'; give names separated by commas, for example fp32,int8,int4")
    return codecs


def numbers(text: str, *, option: str, kind: type[int] | type[float]) -> list[Any]:
    """Numbers from "1,2,3".

    Raises:
        ConfigError: something else; names the option.
    """
    found = parts(text, option=option)
    try:
        return list(dict.fromkeys(kind(part) for part in found))
    except ValueError as error:
        raise ConfigError(f"{option} is '{text}'; give numbers separated by commas, for example 0.5,0.1") from error


def grid_axes(options: Sequence[str]) -> dict[str, list[Any]]:
    """By key, the values of "train.table_lr=0.02,0.05"; each value is YAML.

    Raises:
        ConfigError: not of that form, a key that is given twice, or a value that can't be part of a folder's name.
    """
    axes: dict[str, list[Any]] = {}
    for option in options:
        key, equals, text = option.partition("=")
        try:
            values = parse_yaml(f"[{text}]", origin=f"--grid '{option}'")
        except ConfigError:
            values = None
        if not equals or not key.strip() or not values:
            raise ConfigError(
                f"--grid '{option}' is not of the form KEY=VALUE,VALUE, for example train.table_lr=0.02,0.05"
            )
        if any("/" in _text(value) or "," in _text(value) for value in values):
            raise ConfigError(
                f"--grid '{option}' holds a '/' or a ',' in a value, which a run's folder can't be named after"
            )
        if key.strip() in axes:
            raise ConfigError(f"--grid has the key {key.strip()} twice; give all of its values at once")
        axes[key.strip()] = [_with_exponent(value) for value in values]
    return axes


def _with_exponent(value: Any) -> Any:
    """A value of YAML, in which 1e-3 without a point is a text, as the number that it is meant to be."""
    is_number = isinstance(value, str) and _EXPONENT.fullmatch(value)
    return float(value) if is_number else value


def parts(text: str, *, option: str) -> list[str]:
    """Names from "a,b,c", each once; none where there are none.

    Raises:
        ConfigError: nothing before, between or after commas; names the option.
    """
    found = [part.strip() for part in text.split(",")]
    if not any(found):
        return []
    if not all(found):
        raise ConfigError(f"{option} is '{text}', which has a comma with nothing beside it; write a,b,c")
    return list(dict.fromkeys(found))
