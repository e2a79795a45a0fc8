"""A method for each feature of a configuration."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

from embank.compression.budget.coded import coded_nbytes, within_coded
from embank.compression.budget.solver import at_floor
from embank.pipelines.config.run import Config, parse_config, to_plain
from embank.pipelines.runs.build import FIRST_ORDER
from embank.pipelines.search.codecs import refuse_unsized
from embank.pipelines.search.fields import field_space, plain_config
from embank.search.spaces import Candidate, Genes, MethodSpace, Value
from embank.search.spaces.methods import by_share
from embank.search.spaces.options import OptionChoices
from embank.tables import BudgetError, ConfigError, TableSpec, build_method, method_class, named_codec
from embank.tables.scalars import plain as plain_values

METHODS = ("full", "frequency_cut", "hash", "uniform_dim", "mgqe")
"""Methods that are tried for each feature by default."""

SHARES = (0.05, 0.1, 0.2, 0.5)

CODECS = ("fp32", "int8", "int4")
"""Codecs that a search tries by default, see `embank codecs`."""


class FeatureMethodSpace(MethodSpace):
    """A method for each feature, see `embank.search.MethodSpace`, and the codec that its rows are served in.

    Args:
        config: all else; features with an override keep it.
        methods: see `embank.search.MethodSpace`.
        shares: see `embank.search.MethodSpace`; of the bytes as they are served, so that a codec means more rows.
        codecs: names, see `embank codecs`.

    Raises:
        ConfigError: a codec is unknown, or its bytes depend on the rows.
    """

    def __init__(
        self, config: Config, *, methods: Sequence[str], shares: Sequence[float], codecs: Sequence[str] = ("fp32",)
    ) -> None:
        fields = field_space(config)
        self.base, self.has_first_order = to_plain(plain_config(config)), fields.has_first_order
        self.fixed_nbytes = fields.fixed_nbytes
        self._shares: dict[tuple[Any, ...], float] = {}
        self._within_share: dict[tuple[Any, ...], TableSpec | None] = {}
        for codec in codecs:
            where = f"the space: 'codecs' holds '{codec}' and features have shares of bytes"
            refuse_unsized(codec, where=where, cure="leave it out of 'codecs'")
        super().__init__(
            [replace(spec, options=None) for spec in fields.tables],
            methods=methods,
            shares=shares,
            codecs={codec: named_codec(codec).nbytes_of for codec in codecs},
        )
        self.plain_nbytes = fields.plain_nbytes

    def nbytes_of(self, genes: Genes) -> int:
        return super().nbytes_of(genes) + self.fixed_nbytes

    def takes(self, spec: TableSpec, method: str) -> bool:
        """Whether the embeddings of a feature, and its weights per id if there are any, can be stored by a method."""
        own = super().takes(spec, method)
        return own and (not self.has_first_order or super().takes(first_order(spec), method))

    def choices(self, spec: TableSpec, method: str) -> list[OptionChoices]:
        """What is tried of a method's options: where there are weights per id, what they can have as well."""
        own = super().choices(spec, method)
        if not self.has_first_order:
            return own
        narrow = replace(first_order(spec), method=method, budget=1.0 if by_share(spec, method) else None)
        fitting = [
            replace(choices, values=tuple(value for value in choices.values if _has(narrow, choices.option, value)))
            for choices in own
        ]
        return [choices for choices in fitting if len(choices.values) > 1 or (choices.sets_size and choices.values)]

    def form(self, spec: TableSpec, values: Candidate) -> TableSpec:
        return self._within(super().form(spec, values), values)

    def form_nbytes(self, spec: TableSpec, values: Candidate) -> int:
        codec = self.codecs[self.codec(spec.name, values)]
        own = self._layout(self.form(spec, values)).nbytes(codec)
        if not self.has_first_order:
            return own
        return own + self._layout(self._within(first_order(super().form(spec, values)), values)).nbytes(codec)

    def _within(self, made: TableSpec, values: Candidate) -> TableSpec:
        """A feature's embeddings, or its weights per id, as they are trained for its share of the served bytes."""
        if made.budget is None:
            return made
        name = made.feature_names[0]
        codec = self.codec(name, values)
        found = self._at_share(made, self._share(name, values), codec)
        if found is None:
            raise BudgetError(
                f"table '{made.name}' has no fewer bytes by method '{made.method}' under codec '{codec}' than plain: "
                "leave one of the two out of the space"
            )
        return found

    def _at_share(self, spec: TableSpec, share: float, codec: str) -> TableSpec | None:
        """A table as it is trained for a share of its plain bytes under a codec; None where its method can't keep
        it."""
        key = (spec.name, spec.method, spec.options, share, codec)
        if key not in self._within_share:
            try:
                build_method(made := within_coded(replace(spec, budget=share), codec=codec))
                self._within_share[key] = made
            except BudgetError:
                self._within_share[key] = None
        return self._within_share[key]

    def _least_share(self, spec: TableSpec, asked: float, codec: str) -> float:
        """The smallest share from one that was asked for on that a method keeps under a codec, to a fiftieth."""
        if self._at_share(spec, asked, codec) is not None:
            return asked
        floor, floor_nbytes = at_floor(replace(spec, budget=1.0))
        if codec == "fp32":
            return max(asked, floor.budget or asked)
        share = max(asked, coded_nbytes([floor], {spec.name: codec}) / spec.plain_nbytes)
        while share < floor_nbytes / spec.plain_nbytes and self._at_share(spec, share, codec) is None:
            share *= 1.02
        return share

    def _share(self, name: str, values: Candidate) -> float:
        """The share of plain bytes of a feature's tables, as they are served: the candidate's, or the smallest that its
        method keeps with the embeddings and the weights per id."""
        codec = self.codec(name, values)
        spec = next(spec for spec in self.tables if spec.name == name)
        made = super().form(spec, values)
        asked = float(values[f"share.{name}"])
        key = (name, made.method, made.options, asked, codec)
        if key not in self._shares:
            parts = [made, first_order(made)] if self.has_first_order else [made]
            self._shares[key] = max(asked, *(self._least_share(part, asked, codec) for part in parts))
        return self._shares[key]

    def _least(self, spec: TableSpec, method: str) -> int:
        """By the codec that keeps the smallest share."""
        for index, share in enumerate(self.shares):
            asked = replace(spec, method=method)
            if any(self._at_share(asked, share, codec) is not None for codec in self.codecs):
                return max(0, index - 1)
        return len(self.shares) - 1

    def config(self, candidate: Mapping[str, Value]) -> Config:
        raw, values = deepcopy(self.base), dict(candidate)
        for spec in self.tables:
            made = super().form(spec, values)
            options = {} if made.options is None else plain_values(asdict(made.options))
            raw["tables"]["overrides"][spec.name] = {
                "dim": made.embedding_dim,
                "method": made.method,
                "budget": None if made.budget is None else self._share(spec.name, values),
                "codec": self.codec(spec.name, values),
                **options,
            }
        return parse_config(raw)

    def first_candidates(self) -> list[Candidate]:
        return [self.decode(self.floor())]


def method_space(config: Config, options: Mapping[str, Any]) -> FeatureMethodSpace:
    """The space that a SPACE.yaml asks for.

    Raises:
        ConfigError: an option that it does not have, one that is no list of what it takes, or a method or codec that
            can't be tried.
    """
    wanted = {
        "methods": ("names of methods", _is_name, METHODS),
        "shares": ("numbers above 0 and at most 1", _is_share, SHARES),
        "codecs": ("names of codecs", _is_name, CODECS),
    }
    for name, value in options.items():
        if name not in wanted:
            raise ConfigError(f"space 'methods' has no option '{name}'; it has {', '.join(wanted)}")
        what, is_fitting, default = wanted[name]
        if not isinstance(value, list | tuple) or not value or not all(map(is_fitting, value)):
            raise ConfigError(f"the space's '{name}' is {value!r}; give a list of {what}, for example {list(default)}")
    return FeatureMethodSpace(config, **{name: options.get(name, default) for name, (_, _, default) in wanted.items()})


def _is_name(value: object) -> bool:
    return isinstance(value, str)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _has(spec: TableSpec, option: str, value: Value) -> bool:
    """Whether a table can have a value of an option of its method."""
    try:
        build_method(replace(spec, options=method_class(spec.method).Config(**{option: value})))
    except (BudgetError, ConfigError):
        return False
    return True


def first_order(spec: TableSpec) -> TableSpec:
    """The weights per id of a feature: stored as its embeddings are."""
    return replace(spec, name=f"{FIRST_ORDER}/{spec.name}", embedding_dim=1)
