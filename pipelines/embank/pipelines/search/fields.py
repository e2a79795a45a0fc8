"""What of a configuration is searched: its fields as a space of widths and rows, and candidates as configurations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embank.compression.methods.mde import ideal_dims, ids_per_lookup
from embank.ctr_models import MODELS
from embank.pipelines.config.run import Config, parse_config, to_plain
from embank.pipelines.config.tables import COLLECTION_KEYS, TABLE_KEYS
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import id_counts, table_specs
from embank.search.spaces import Candidate, DimensionSpace, Genes, Shape, Value
from embank.search.spaces.tables import RowLevels, Widths, rows_at
from embank.tables import ConfigError, TableCollection, TableSpec

UNIFORM, MDE = "uniform", "mde"
"""Names of the candidates that every search is measured by."""

_RULE_STEPS = 100


class FieldSpace(DimensionSpace):
    """Widths and rows of the features of a configuration that have no override.

    Serving bytes are those of all tables of the run: the embeddings of the searched features, their first-order weights
    (of models that have them, cut to the same rows), and the tables that `tables.overrides` fixes.

    Args:
        searched: plain embeddings of the features that are searched.
        has_first_order: each of them also has a weight per id.
        fixed_nbytes: serving bytes of all other tables.
        fixed_plain_nbytes: their bytes as plain fp32 tables.
        widths, row_levels: see `DimensionSpace`.
    """

    def __init__(
        self,
        searched: list[TableSpec],
        *,
        has_first_order: bool,
        fixed_nbytes: int = 0,
        fixed_plain_nbytes: int = 0,
        widths: Widths = 4,
        row_levels: RowLevels = 1,
    ) -> None:
        self.has_first_order, self.fixed_nbytes = has_first_order, fixed_nbytes
        super().__init__(searched, widths=widths, row_levels=row_levels)
        self.plain_nbytes += fixed_plain_nbytes
        if has_first_order:
            self.plain_nbytes += 4 * sum(spec.num_embeddings for spec in searched)

    def form_nbytes(self, spec: TableSpec, values: Mapping[str, Value]) -> int:
        rows = int(values.get(f"rows.{spec.name}", spec.num_embeddings))
        return super().form_nbytes(spec, dict(values)) + (4 * rows if self.has_first_order else 0)

    def nbytes_of(self, genes: Genes) -> int:
        return super().nbytes_of(genes) + self.fixed_nbytes

    def simple_candidates(self, nbytes: int | None) -> dict[str, Candidate]:
        """What a search is measured by, by name, as large as some bytes allow.

        `uniform` keeps the same share of every table's columns; `mde` follows the rule of Mixed Dimension Embeddings,
        narrower rows in larger tables. Both keep all rows, or where narrow rows alone don't keep the bytes, the same
        share of each table's. One that is the other is left out, and so are both where even the fewest rows don't.
        """
        allowed = self.plain_nbytes if nbytes is None else nbytes
        uniform, by_rule = (self._largest(wholes, allowed) for wholes in (self._uniform(), self._by_rule()))
        found = {UNIFORM: uniform, MDE: None if by_rule == uniform else by_rule}
        return {name: candidate for name, candidate in found.items() if candidate is not None}

    def _largest(self, wholes: Sequence[Candidate], allowed: int) -> Candidate | None:
        """The largest of some candidates of all rows that fits; with fewer rows where none does."""
        for share in self.row_shares:
            fitting = [c for c in (self._with_rows(whole, share) for whole in wholes) if self.nbytes(c) <= allowed]
            if fitting:
                return max(fitting, key=self.nbytes)
        return None

    def _uniform(self) -> list[Candidate]:
        shares = {int(width) / spec.embedding_dim for spec in self.tables for width in self._widths(spec)}
        return [self._at_share(share) for share in sorted(shares)]

    def _by_rule(self) -> list[Candidate]:
        """From the narrowest to the widest tables that the rule gives; widths are rounded to the nearest there are."""
        sizes = ids_per_lookup(self.tables)
        return [
            self._at_dims(ideal_dims(self.tables, sizes, 2 - 2 * step / _RULE_STEPS)) for step in range(_RULE_STEPS + 1)
        ]

    def _at_dims(self, dims: Sequence[float]) -> Candidate:
        nearest = {
            f"width.{spec.name}": min((abs(int(width) - dim), int(width)) for width in self._widths(spec))[1]
            for spec, dim in zip(self.tables, dims, strict=True)
        }
        return self._at_share(1.0) | {name: width for name, width in nearest.items() if name in self.parameters}

    def _with_rows(self, candidate: Candidate, share: float) -> Candidate:
        """The candidate with a share of the rows of each table."""
        rows = {f"rows.{spec.name}": rows_at(spec, share) for spec in self.tables}
        return candidate | {name: value for name, value in rows.items() if name in self.parameters}


def field_space(config: Config, *, widths: Widths = 4, row_levels: RowLevels = 1) -> FieldSpace:
    """The space of a configuration's features.

    Args:
        config: features with an override keep it; all others are searched, from one column and row up to `tables.dim`
            columns and all rows.
        widths, row_levels: see `DimensionSpace`.

    Raises:
        ConfigError: no feature is left to search, the model has no embeddings, or rows are to be held by a codec.
        DataError: the prepared folder can't be read.
    """
    codecs = {table.codec for table in (config.tables.default, *config.tables.overrides.values())} - {"fp32"}
    if codecs:
        raise ConfigError(
            f"the tables have codec '{min(codecs)}', and this search counts bytes of fp32 rows; leave 'codec' out, "
            "and export what was chosen by `embank export --codec`"
        )
    data = Path(config.data.path)
    schema = Schema.load(data)
    network = MODELS[config.model["name"]]
    if not network.embeddings:
        raise ConfigError(f"model '{config.model['name']}' has no embeddings, so there are no widths to search")
    specs = table_specs(plain_config(config), schema, data=data, counts=id_counts(schema, data=data))
    searched = [
        spec for spec in specs if spec.name in schema.feature_names and spec.name not in config.tables.overrides
    ]
    fixed = [spec for spec in specs if spec.feature_names[0] in config.tables.overrides]
    hashed = [spec.name for spec in searched if not spec.has_vocabulary]
    if hashed:
        raise ConfigError(
            f"feature '{hashed[0]}' has no vocabulary (its ids are hashes of tokens), so its rows can't be ranked; fix "
            f"it by 'tables.overrides.{hashed[0]}'"
        )
    if not searched:
        raise ConfigError("every feature has an override, so nothing is left to search; remove some of them")
    return FieldSpace(
        searched,
        has_first_order=network.first_order,
        fixed_nbytes=TableCollection(fixed, backend="torch").nbytes("serving") if fixed else 0,
        fixed_plain_nbytes=sum(spec.plain_nbytes for spec in fixed if spec.has_vocabulary),
        widths=widths,
        row_levels=row_levels,
    )


def plain_config(config: Config) -> Config:
    """The configuration with plain tables in place of its default method; overrides stay."""
    return _with_tables(config, {"method": "full", "budget": None})


def supernet_config(config: Config) -> Config:
    """The configuration whose first stage trains the supernet: OptEmbed's, for every feature without an override.

    Widths are drawn evenly over their logarithm. Drawn evenly, as in the paper, half of the columns are read half of
    the time, and candidates of few columns score far below what they come to when they are trained.
    """
    changes = {"method": "optembed", "width_sampling": "log", "budget": None, "alignment": "pad"}
    return _with_tables(config, changes)


def candidate_config(config: Config, shapes: Mapping[str, Shape]) -> Config:
    """The configuration that trains a candidate.

    Each searched feature has an override with its dim, and where rows are left out, with `frequency_cut`. Narrow fields
    are padded with zeros, as they are in the supernet.

    Args:
        config: the search's.
        shapes: by searched feature.
    """
    raw = to_plain(plain_config(config))
    rows = _num_ids(config)
    for name, shape in shapes.items():
        own: dict[str, Any] = {"dim": shape.width, "method": "full", "budget": None}
        if shape.rows < rows[name]:
            own |= {"method": "frequency_cut", "num_rows": shape.rows}
        raw["tables"]["overrides"][name] = own
    raw["tables"]["alignment"] = "pad"
    return parse_config(raw)


def _num_ids(config: Config) -> dict[str, int]:
    return {field.name: field.num_embeddings for field in Schema.load(config.data.path).categorical}


def _with_tables(config: Config, changes: Mapping[str, Any]) -> Config:
    """The default method and budget changed; its options take their defaults."""
    raw = to_plain(config)
    general = (*TABLE_KEYS, *COLLECTION_KEYS)
    raw["tables"] = {key: value for key, value in raw["tables"].items() if key in general} | dict(changes)
    return parse_config(raw)
