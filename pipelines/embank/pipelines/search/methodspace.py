"""A method for each feature of a configuration."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace

from embank.compression.budget.solver import at_floor
from embank.pipelines.config.run import Config, parse_config, to_plain
from embank.pipelines.runs.build import FIRST_ORDER
from embank.pipelines.search.fields import field_space, plain_config
from embank.search.spaces import Candidate, Genes, MethodSpace, Value
from embank.search.spaces.options import OptionChoices, common_choices
from embank.tables import BudgetError, TableSpec, build_method
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

    def choices(self, spec: TableSpec, method: str) -> list[OptionChoices]:
        """What is tried of a method's options: where there are weights per id, what they may have as well."""
        own = super().choices(spec, method)
        if not self.has_first_order:
            return own
        narrow = super().choices(first_order(spec), method)
        return [choices for choices in own if choices.sets_size] + [
            choices for choices in common_choices([own, narrow]) if not choices.sets_size
        ]

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


def first_order(spec: TableSpec) -> TableSpec:
    """The weights per id of a feature: stored as its embeddings are."""
    return replace(spec, name=f"{FIRST_ORDER}/{spec.name}", embedding_dim=1)
