"""A method for each feature of a configuration."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace

from embank.compression.budget.solver import at_floor
from embank.pipelines.config.run import Config, parse_config, to_plain
from embank.pipelines.runs.build import FIRST_ORDER
from embank.pipelines.search.fields import field_space, plain_config
from embank.search.spaces import Candidate, Genes, MethodSpace, Value
from embank.search.spaces.methods import by_share
from embank.search.spaces.options import OptionChoices
from embank.tables import BudgetError, ConfigError, TableSpec, build_method, method_class
from embank.tables.scalars import plain as plain_values


class FeatureMethodSpace(MethodSpace):
    """A method for each feature, see `embank.search.MethodSpace`.

    Args:
        config: all else; features with an override keep it.
        methods, shares: see `embank.search.MethodSpace`.
    """

    def __init__(self, config: Config, *, methods: Sequence[str], shares: Sequence[float]) -> None:
        fields = field_space(config)
        self.base, self.has_first_order = to_plain(plain_config(config)), fields.has_first_order
        self.fixed_nbytes = fields.fixed_nbytes
        super().__init__([replace(spec, options=None) for spec in fields.tables], methods=methods, shares=shares)
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
        made = super().form(spec, values)
        if not self.has_first_order or made.budget is None:
            return made
        narrow = first_order(made)
        try:
            build_method(narrow)
        except BudgetError:  # its weights need a larger share than its embeddings
            floor = at_floor(replace(narrow, budget=1.0))[0].budget
            return replace(made, budget=max(made.budget, floor or made.budget))
        return made

    def form_nbytes(self, spec: TableSpec, values: Candidate) -> int:
        own = super().form_nbytes(spec, values)
        if not self.has_first_order:
            return own
        narrow = first_order(self.form(spec, values))
        return own + self._layout(narrow).nbytes(self.codecs[self.codec(spec.name, values)])

    def config(self, candidate: Mapping[str, Value]) -> Config:
        raw = deepcopy(self.base)
        for spec in self.specs(candidate):
            options = {} if spec.options is None else plain_values(asdict(spec.options))
            raw["tables"]["overrides"][spec.name] = {
                "dim": spec.embedding_dim,
                "method": spec.method,
                "budget": spec.budget,
                **options,
            }
        return parse_config(raw)

    def first_candidates(self) -> list[Candidate]:
        return [self.decode(self.floor())]


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
