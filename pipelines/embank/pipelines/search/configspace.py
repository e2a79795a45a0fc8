"""Whole configurations as a space: methods, dims, learning rates, models; and a method for each feature."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from embank.ctr_models import MODELS
from embank.pipelines.config.problems import ORIGIN, written_in
from embank.pipelines.config.run import Config, parse_config, to_plain
from embank.pipelines.config.tables import COLLECTION_KEYS, TABLE_KEYS
from embank.pipelines.config.untuned import refuse_untuned
from embank.pipelines.config.values import field_names
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import FIRST_ORDER, id_counts, table_specs
from embank.pipelines.search.codecs import is_sized, refuse_unsized
from embank.pipelines.search.fields import candidate_config, plain_config
from embank.pipelines.search.methodspace import CODECS, FeatureMethodSpace, method_space
from embank.pipelines.search.plan import SearchPlan
from embank.pipelines.search.shapes import read_shapes
from embank.pipelines.search.spacevalues import held, is_nested, is_ordered, nearest, ordered, set_model
from embank.pipelines.search.unifiedspace import FeatureUnifiedSpace, unified_space
from embank.search.spaces import Candidate, Genes, Group, Parameter, Space, Value
from embank.search.spaces.options import OptionChoices, choices_of, common_choices
from embank.tables import BudgetError, ConfigError, TableSpec, method_class, named_codec, registered_methods
from embank.tables.wording import listing

BUDGET, METHOD, DIM, CODEC, MODEL = "budget", "tables.method", "tables.dim", "tables.codec", "model.name"
METHODS = (
    *("uniform_dim", "mde", "frequency_cut", "hash", "compositional", "low_precision", "tt_rec", "dpq", "mgqe"),
    *("hash_embedding", "unified"),
)
"""Methods that a search tries by default: those that train in one stage and do best at some size of some data."""

SEARCHED = "searched"
"""In place of a method: plain tables of the shapes that the profile of a supernet finds for the budget."""

_SHAPED = "full"
"""The method of those tables."""

_UNTUNED = {
    BUDGET: "give budgets with --budget",
    "tables.budget": "give budgets with --budget",
    "tables.overrides": "its tables are left as they are; give them in the configuration",
    "train.seed": "the best of several seeds is the luckiest; give seeds with --train-seeds",
    "train.monitor": "trials are compared by one metric; give it with --set",
}
"""Keys that a search sets itself, or that have to be the same in all trials."""

_BASELINES = ("uniform_dim", "mde", "frequency_cut", SEARCHED)
_LR, _TABLE_LR, _DIM = (1 / 3, 1.0, 3.0), (0.25, 0.5, 1.0, 2.0, 4.0), (0.5, 1.0, 2.0)


class ConfigSpace(Space):
    """Values at some keys of a configuration.

    The bytes of a candidate are what its budget allows, which its method never exceeds. A budget is a share of the
    plain tables at the configuration's own `tables.dim`, whatever dim the candidate has: equal budgets mean equal
    bytes.

    Args:
        config: all other keys.
        choices: by key, its values; `budget` is the share of all tables. To each of several methods belong the choices
            that its `Config` declares, `METHOD.OPTION`, where all tables may have them. A value that is a list is its
            JSON text in candidates: Optuna's are numbers and texts.
        budget: of all candidates, where it is not among the choices.
        shapes: the file with the profile's shapes; read when a candidate needs them.
        told: how messages call the space.

    Raises:
        ConfigError: a value that the configuration refuses, with all else as it is there, and with the space's other
            values as well; or a first candidate that it refuses.
        BudgetError: a first candidate's method has one size, which the budget does not hold.
    """

    def __init__(
        self,
        config: Config,
        choices: Mapping[str, Sequence[Any]],
        *,
        budget: float | None,
        shapes: Path,
        told: str = "the space",
    ) -> None:
        self.base, self.budget, self.shapes = to_plain(config), budget, shapes
        self.choices = {key: ordered([held(value) for value in values]) for key, values in choices.items()}
        self._lists = {
            (key, held(value)): value for key, values in choices.items() for value in values if is_nested(value)
        }
        for key, values in choices.items():
            self._refuse_key(key, told=told)
            for value in values:
                self._refuse(key, value, told=told)
        self.data = Path(config.data.path)
        self.schema = Schema.load(self.data)
        self.counts = id_counts(self.schema, data=self.data)
        groups = [
            Group(name=key, parameters=self._parameters(key, values))
            for key, values in self.choices.items()
            if key != CODEC or METHOD not in self.choices
        ]
        super().__init__(groups, plain_nbytes=self._plain_nbytes(plain_config(config)))
        for candidate in self.first_candidates():
            if candidate.get(METHOD) != SEARCHED:
                with written_in(f"{told}, whose first candidate is {candidate}"):
                    self.config(candidate)

    def _refuse(self, key: str, value: Any, *, told: str) -> None:
        """Raises ConfigError for a value that the configuration refuses, whatever the budget, with any of the methods
        and models that the key may be an option of: all else as it is there, and, since keys may depend on one another,
        with the nearest values that the space has."""
        if key == BUDGET or (key == METHOD and value == SEARCHED):
            return
        where = f"{told}: '{key}' holds {value!r}"
        if key in (METHOD, CODEC, MODEL) and not isinstance(value, str):
            raise ConfigError(f"{where}, which is no name; give a list of names, for example [{self._base(key)}]")
        near = {own: nearest(values, held(self._base(own))) for own, values in self.choices.items()}
        if near.get(METHOD) == SEARCHED:
            near[METHOD] = _SHAPED
        owner, names = self._owners(key)
        for chosen in [{owner: _SHAPED if name == SEARCHED else name} for name in names] or [{}]:
            errors = [self._refusal({**others, **chosen, key: held(value)}) for others in ({}, near)]
            if errors[0] is not None and errors[1] is not None:
                said = str(errors[0]).removeprefix(f"{ORIGIN}: ")
                raise ConfigError(f"{where}, which can't be tried: {said}") from errors[0]
        has_budget = self.budget is not None or BUDGET in self.choices
        if key == CODEC and has_budget and self._takes_budget:
            cure = f"leave it out of '{key}', or search without --budget"
            refuse_unsized(value, where=f"{where} and there is a budget", cure=cure)

    def _refuse_key(self, key: str, *, told: str) -> None:
        """Raises ConfigError for an option of some of the space's methods or models that others lack: its values are
        tried with each of them."""
        owner, names = self._owners(key)
        takers = [name for name in names if key.partition(".")[2] in _option_names(owner, name)]
        others = [name for name in names if name not in takers]
        if takers and others:
            raise ConfigError(
                f"{told}: '{key}' is an option of {owner} {listing(takers)} and not of {listing(others)}, which the "
                f"space has as well; leave those out of {owner}, and search them apart"
            )

    def _owners(self, key: str) -> tuple[str, list[str]]:
        """Where a key is an option of methods or models, which of them, and those of the space; else no names."""
        section, _, name = key.partition(".")
        if section == "tables" and name not in (*TABLE_KEYS, *COLLECTION_KEYS):
            return METHOD, self._methods
        return MODEL, self._models if section == "model" and key != MODEL else []

    @property
    def _methods(self) -> list[str]:
        """Of the methods to try those that there are, `searched` among them."""
        methods = [str(method) for method in self.choices.get(METHOD, (self.base["tables"]["method"],))]
        return [method for method in methods if method == SEARCHED or method in registered_methods()]

    @property
    def _models(self) -> list[str]:
        """Of the models to try those that there are."""
        models = [str(model) for model in self.choices.get(MODEL, (self.base["model"]["name"],))]
        return [model for model in models if model in MODELS]

    def _refusal(self, values: Candidate) -> ConfigError | None:
        """Why the configuration refuses some values, without a budget; None if it takes them."""
        try:
            self.config({**values, BUDGET: None})  # type: ignore[dict-item]
        except ConfigError as error:
            return error
        return None

    @property
    def _takes_budget(self) -> bool:
        """Whether a method of the space does."""
        methods = [method for method in self._methods if method != SEARCHED]
        return any(method_class(method).traits.allocation.takes_budget for method in methods)

    def _parameters(self, key: str, values: tuple[Value, ...]) -> tuple[Parameter, ...]:
        """What is chosen at a key; of methods, their codec and their options as well."""
        found = [Parameter(name=key, values=values, is_ordered=is_ordered(values))]
        coded = tuple(method for method in values if method != SEARCHED)
        if key == METHOD and coded and CODEC in self.choices:
            found.append(Parameter(name=CODEC, values=self.choices[CODEC], is_ordered=False, when=(METHOD, coded)))
        for method in values if key == METHOD else ():
            if method in registered_methods():
                found += [
                    Parameter(
                        name=f"{method}.{choices.option}",
                        values=choices.values,
                        is_ordered=choices.is_ordered,
                        when=(METHOD, (method,)),
                    )
                    for choices in self._options(str(method))
                ]
        return tuple(found)

    def _options(self, method: str) -> list[OptionChoices]:
        """What is tried of a method's options: what all tables may have at every dim, and no sizes, which the budget
        decides."""
        cls = method_class(method).Config
        dims = {self.base["tables"]["dim"], *self.choices.get(DIM, ())}
        specs = [replace(spec, embedding_dim=dim) for spec in self._embeddings for dim in dims] + self._first_order
        found = common_choices([choices_of(cls, spec) for spec in specs])
        given = {key.partition(".")[2] for key in self.choices if key.startswith("tables.")}
        return [choices for choices in found if not choices.sets_size and choices.option not in given]

    @cached_property
    def _plain_specs(self) -> list[TableSpec]:
        return table_specs(plain_config(parse_config(self.base)), self.schema, data=self.data, counts=self.counts)

    @property
    def _embeddings(self) -> list[TableSpec]:
        return [spec for spec in self._plain_specs if not spec.name.startswith(f"{FIRST_ORDER}/")]

    @property
    def _first_order(self) -> list[TableSpec]:
        return [spec for spec in self._plain_specs if spec.name.startswith(f"{FIRST_ORDER}/")]

    def _plain_nbytes(self, config: Config) -> int:
        specs = table_specs(config, self.schema, data=self.data, counts=self.counts)
        return sum(spec.plain_nbytes for spec in specs if spec.has_vocabulary)

    @property
    def needs_shapes(self) -> bool:
        """Whether a supernet has to be trained and profiled first."""
        return SEARCHED in self.choices.get(METHOD, ())

    def config(self, candidate: Mapping[str, Value]) -> Config:
        """The configuration that trains a candidate.

        Raises:
            ConfigError: it can't be trained.
            BudgetError: its method has one size, which the budget does not hold.
        """
        if candidate.get(METHOD) == SEARCHED:
            return self._searched(candidate)
        raw = deepcopy(self.base)
        values = {key: self._lists.get((key, value), value) for key, value in candidate.items() if key != BUDGET}
        set_model(raw, values.pop(MODEL, None))
        method = str(values.pop(METHOD, raw["tables"]["method"]))
        options = {key: values.pop(key) for key in list(values) if key.partition(".")[0] == method}
        if method != raw["tables"]["method"]:
            general = (*TABLE_KEYS, *COLLECTION_KEYS)
            raw["tables"] = {k: v for k, v in raw["tables"].items() if k in general} | {"method": method}
        raw["tables"] |= {key.partition(".")[2]: value for key, value in options.items()}
        for key, value in values.items():
            section, _, name = key.partition(".")
            raw[section][name] = value
        raw["tables"]["budget"] = self._share(raw, candidate.get(BUDGET, self.budget))
        return parse_config(raw)

    def _searched(self, candidate: Mapping[str, Value]) -> Config:
        """Plain tables in the profile's shapes, at the configuration's own dim."""
        plain = self.config(self.unshaped(candidate))
        budget = candidate.get(BUDGET, self.budget)
        assert budget is not None
        return candidate_config(plain, read_shapes(self.shapes)[float(budget)])

    def unshaped(self, candidate: Mapping[str, Value]) -> Candidate:
        """A candidate of the profile's shapes as the plain tables that they are cut from; any other as it is."""
        if candidate.get(METHOD) != SEARCHED:
            return dict(candidate)
        others = {key: value for key, value in candidate.items() if key not in (METHOD, DIM)}
        return others | {METHOD: _SHAPED, CODEC: "fp32", BUDGET: 1.0}

    def _share(self, raw: Mapping[str, Any], budget: Value | None) -> float | None:
        """A budget at the candidate's dim."""
        method = raw["tables"]["method"]
        if budget is None:
            return None
        if not method_class(method).traits.allocation.takes_budget:
            if float(budget) < 1:
                raise BudgetError(f"method '{method}' has one size, more than budget {budget:g}; leave it out")
            return None
        if raw["tables"]["dim"] == self.base["tables"]["dim"]:
            return float(budget)
        plain = parse_config({**self.base, "tables": {**self._plain_tables, "dim": raw["tables"]["dim"]}})
        return min(1.0, int(float(budget) * self.plain_nbytes) / self._plain_nbytes(plain))

    def served_floor(self, config: Config, share: float) -> int:
        """Bytes that a candidate's tables take where its method reaches no less than a share of them.

        Args:
            config: of the candidate.
            share: of the plain tables at the candidate's dim.
        """
        dim = config.tables.default.dim
        plain = parse_config({**self.base, "tables": {**self._plain_tables, "dim": dim}})
        # a byte more, since a budget in bytes is rounded down to a whole number
        return min(self.plain_nbytes, int(share * self._plain_nbytes(plain)) + 1)

    @property
    def _plain_tables(self) -> dict[str, Any]:
        general = (*TABLE_KEYS, *COLLECTION_KEYS)
        kept = {key: value for key, value in self.base["tables"].items() if key in general}
        return kept | {"method": "full", "budget": None, "codec": "fp32"}

    def nbytes_of(self, genes: Genes) -> int:
        budget = self.decode(genes).get(BUDGET, self.budget)
        return self.plain_nbytes if budget is None else int(float(budget) * self.plain_nbytes)

    def specs(self, candidate: Mapping[str, Value]) -> list[TableSpec]:
        return table_specs(self.config(candidate), self.schema, data=self.data, counts=self.counts)

    def floor(self) -> Genes:
        return min((self.at(**{BUDGET: b}) for b in self.choices.get(BUDGET, (None,))), key=self.nbytes_of)

    def ceiling(self) -> Genes:
        return max((self.at(**{BUDGET: b}) for b in self.choices.get(BUDGET, (None,))), key=self.nbytes_of)

    def at(self, **values: Value | None) -> Genes:
        """The candidate with some values, all else as near to the configuration as can be."""
        at = {key: nearest(own, held(values.get(key) or self._base(key))) for key, own in self.choices.items()}
        method = str(at.get(METHOD, ""))
        if method == SEARCHED:
            at.pop(CODEC, None)
        if method in registered_methods():
            default = method_class(method).Config()
            at |= {f"{method}.{c.option}": nearest(c.values, getattr(default, c.option)) for c in self._options(method)}
        return self.encode(at)

    def _base(self, key: str) -> Any:
        """What the configuration has at a key."""
        section, _, name = key.partition(".")
        return self.budget if key == BUDGET else self.base[section].get(name)

    def first_candidates(self) -> list[Candidate]:
        """The baselines among the methods, everything else as in the configuration, and the first of them in the
        codec of the fewest bits; at each budget."""
        methods: list[str | None] = [m for m in _BASELINES if m in self.choices.get(METHOD, ())] or [None]
        budgets: Sequence[Value | None] = self.choices.get(BUDGET, (None,))
        found = [self.at(**{METHOD: m, BUDGET: b}) for b in budgets for m in methods]
        if sized := [codec for codec in self.choices.get(CODEC, ()) if is_sized(str(codec))]:
            smallest = min(sized, key=lambda codec: named_codec(str(codec)).nbytes_of(64, 64))
            found += [self.at(**{METHOD: methods[0], BUDGET: b, CODEC: smallest}) for b in budgets]
        return [self.decode(genes) for genes in dict.fromkeys(found)]


TrainedSpace = ConfigSpace | FeatureMethodSpace | FeatureUnifiedSpace
"""Spaces whose candidates are scored by training them."""


def config_space(plan: SearchPlan, *, budget: float | None, shapes: Path) -> TrainedSpace:
    """The space of a plan that trains.

    Args:
        plan: the search; with `front` the budgets are part of the space.
        budget: of the study.
        shapes: see `ConfigSpace`.

    Raises:
        ConfigError: an unknown key, or a value that its configuration refuses.
    """
    config, options = plan.parsed, dict(plan.options)
    if plan.space == "methods":
        return method_space(config, options)
    if plan.space == "unified":
        return unified_space(config, options, budget=budget)
    choices: dict[str, Sequence[Any]] = {
        **_default_choices(config, has_budget=plan.budgets[0] is not None),
        **options,
    }
    for key, values in choices.items():
        refuse_untuned(key, _UNTUNED, where=plan.told_space)
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f"the space's '{key}' is {values!r}; give a list of values, for example [0.001, 0.003]")
        if key.partition(".")[0] not in ("model", "tables", "train") or "." not in key:
            raise ConfigError(
                f"the space has a key '{key}'; it knows those of the configuration's sections model, tables and train, "
                "for example train.lr"
            )
    if SEARCHED in choices[METHOD] and None in plan.budgets:
        raise ConfigError(f"the space has '{SEARCHED}' among its methods, whose shapes take a --budget; give one")
    budgets = [b for b in plan.budgets if b is not None]
    if plan.front and budgets:
        choices = {BUDGET: sorted(budgets), **choices}
    return ConfigSpace(config, choices, budget=budget, shapes=shapes, told=plan.told_space)


def _default_choices(config: Config, *, has_budget: bool) -> dict[str, Sequence[Value]]:
    dim, train = config.tables.default.dim, config.train
    known = registered_methods()
    return {
        METHOD: [*(method for method in METHODS if method in known), *([SEARCHED] if has_budget else [])],
        CODEC: list(dict.fromkeys((config.tables.default.codec, *CODECS))),
        DIM: sorted({max(1, round(dim * factor)) for factor in _DIM}),
        "train.lr": [float(f"{train.lr * factor:.2g}") for factor in _LR],
        "train.table_lr": [float(f"{train.rows_lr * factor:.2g}") for factor in _TABLE_LR],
    }


def _option_names(owner: str, name: str) -> list[str]:
    """Options of a method or a model."""
    if owner == METHOD:
        return field_names(method_class(_SHAPED if name == SEARCHED else name).Config)
    return field_names(MODELS[name].Config)
