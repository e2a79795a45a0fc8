"""One table for all features of a configuration: its rows and width, and the lookups of each feature."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace

from embank.compression.methods.unified import fixed_nbytes
from embank.pipelines.config.run import Config, parse_config, to_plain
from embank.pipelines.search.fields import field_space, plain_config
from embank.pipelines.search.methodspace import first_order
from embank.search.spaces import Candidate, Genes, UnifiedSpace, Value
from embank.tables import ConfigError
from embank.tables.scalars import plain as plain_values

ROW_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Rows that a search tries by default, as shares of the ids of all features."""

LOOKUPS = (1, 2, 4)


class FeatureUnifiedSpace(UnifiedSpace):
    """One table for the features of a configuration, see `embank.search.UnifiedSpace`.

    Weights per id, of models that have them, are looked up in a table of as many rows and one column. Features with an
    override keep it.

    Args:
        config: all else; every feature has its `tables.dim`.
        rows: numbers of rows to try; None takes shares of the ids (`ROW_SHARES`).
        widths: of a row; None takes a quarter of `tables.dim`, the half and all.
        lookups: of a feature.
        exact_below: tables of fewer ids stay plain.
        budget: the first candidate's share of the plain bytes.
    """

    def __init__(
        self,
        config: Config,
        *,
        rows: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
        lookups: Sequence[int] = LOOKUPS,
        exact_below: int = 100,
        budget: float | None = None,
    ) -> None:
        fields, dim = field_space(config), config.tables.default.dim
        self.base, self.has_first_order, self.budget = to_plain(plain_config(config)), fields.has_first_order, budget
        self.fixed_nbytes = fields.fixed_nbytes
        num_ids = sum(spec.num_embeddings for spec in fields.tables if spec.num_embeddings >= exact_below)
        super().__init__(
            [replace(spec, options=None) for spec in fields.tables],
            rows=sorted(rows or {max(1, round(num_ids * share)) for share in ROW_SHARES}),
            widths=sorted(widths or {max(1, dim // 4), max(1, dim // 2), dim}),
            lookups=sorted(lookups),
            embedding_dim=dim,
            exact_below=exact_below,
        )
        self.plain_nbytes = fields.plain_nbytes

    def nbytes_of(self, genes: Genes) -> int:
        own = super().nbytes_of(genes) + self.fixed_nbytes
        if not self.has_first_order:
            return own
        values = self.decode(genes)
        narrow = [first_order(spec) for spec in self.specs(values)]
        exact = sum(4 * spec.num_embeddings for spec in narrow if spec.num_embeddings < self.exact_below)
        salts = sum(fixed_nbytes(spec) for spec in narrow if spec.num_embeddings >= self.exact_below)
        return own + 4 * int(values["rows"]) + exact + salts

    def config(self, candidate: Mapping[str, Value]) -> Config:
        """The configuration that trains a candidate."""
        raw = deepcopy(self.base)
        for spec in self.specs(candidate):
            raw["tables"]["overrides"][spec.name] = {
                "dim": spec.embedding_dim,
                "method": spec.method,
                "budget": None,
                **plain_values(asdict(spec.options)),
            }
        return parse_config(raw)

    def first_candidates(self) -> list[Candidate]:
        """Two lookups of half the dim for every feature, or what is nearest; as many rows as the budget allows."""
        nearest = {name: parameter.values[len(parameter.values) // 2] for name, parameter in self.parameters.items()}
        allowed = self.plain_nbytes if self.budget is None else self.allowed_nbytes(self.budget)
        found = [nearest | {"rows": rows} for rows in self.parameters["rows"].values]
        return [candidate for candidate in found if self.nbytes(candidate) <= allowed][-1:]


def unified_space(config: Config, options: Mapping[str, object], *, budget: float | None) -> FeatureUnifiedSpace:
    """The space that a SPACE.yaml asks for.

    Raises:
        ConfigError: an option that it does not have, or one that is no list of whole numbers.
    """
    known = ("rows", "widths", "lookups", "exact_below")
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"space 'unified' has no option '{name}'; it has {', '.join(known)}")
        values = [value] if name == "exact_below" else value
        if not isinstance(values, list) or not values or not all(type(v) is int and v >= 1 for v in values):
            wanted = "a whole number" if name == "exact_below" else "a list of whole numbers"
            raise ConfigError(f"the space's '{name}' is {value!r}; give {wanted} of at least 1")
    return FeatureUnifiedSpace(config, budget=budget, **options)  # type: ignore[arg-type]
