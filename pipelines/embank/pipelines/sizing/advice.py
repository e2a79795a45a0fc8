"""What to expect of a configuration's tables before anything is trained: bytes, lookups, collisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embank.compression.multiplexing.specs import Advice, FeatureAdvice, advise
from embank.pipelines.config.run import Config
from embank.pipelines.data.loading.parts import Parts
from embank.pipelines.data.prepare.blocks import Piece
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import table_specs
from embank.tables import Method, TableSpec, build_method


@dataclass(frozen=True, kw_only=True)
class TableAdvice:
    """What to expect of one table.

    Args:
        name, method: of the table.
        num_ids: its vocabulary; without one, different values in training; None where these are not known either.
        lookups: rows that are read for an average training example.
        row_nbytes: of the rows that it reads, in training; several tables may read the same.
        collisions: expected rates, where they have a closed form: of tables of method 'unified'.
    """

    name: str
    method: str
    num_ids: int | None
    lookups: float
    row_nbytes: int
    collisions: FeatureAdvice | None


@dataclass(frozen=True, kw_only=True)
class ConfigAdvice:
    """What to expect of all tables of a configuration.

    Args:
        tables: one each, in the order of the collection.
        row_nbytes: of all rows in training, shared ones once, without optimizer state.
        serving_nbytes: of all tables in their inference form; None where that is known only after training or packing.
        plain_nbytes: of the plain fp32 tables; without a vocabulary, of one with a row for each different value in
            training. None where these are not known.
        is_estimated: a table has no vocabulary, so that its number of values, and what is made from it, is as good as
            the training part.
        lookups: rows that are read for an average training example.
        concentration: by shared table, the part of its colliding pairs that is within features; see `Advice`.
        warnings: what had better be changed.
    """

    tables: Sequence[TableAdvice]
    row_nbytes: int
    serving_nbytes: int | None
    plain_nbytes: int | None
    is_estimated: bool
    lookups: float
    concentration: Mapping[str, float]
    warnings: Sequence[str]


def advise_config(config: Config) -> ConfigAdvice:
    """Advice on the tables that a run of this configuration would begin with. No row is allocated.

    Args:
        config: the run's configuration; its prepared folder is read for sizes and counts.

    Raises:
        ConfigError, DataError, BudgetError: as in training.
    """
    data = Path(config.data.path)
    schema = Schema.load(data)
    specs = table_specs(config, schema, data=data)
    return advise_specs(
        specs,
        num_samples=schema.split("train").num_rows,
        num_values=schema.num_values,
        ids_per_example=bag_lengths(schema, data=data),
    )


def advise_specs(
    specs: Sequence[TableSpec],
    *,
    num_samples: int,
    num_values: Mapping[str, int] | None = None,
    ids_per_example: Mapping[str, float] | None = None,
) -> ConfigAdvice:
    """Advice on tables.

    Args:
        specs: with the counts of their ids.
        num_samples: examples that the counts are of.
        num_values: by feature without a vocabulary, its different values.
        ids_per_example: by feature, for tables without counts; one that is not named has 1.
    """
    values = _num_values(specs, num_values or {})
    methods = [build_method(spec) for spec in specs]
    unified = [spec for spec in specs if spec.method == "unified"]
    known = {name: num for name, num in values.items() if num is not None}
    advice = advise(unified, num_values=known) if unified else None
    features = {} if advice is None else {feature.name: feature for feature in advice.features}
    tables = [
        TableAdvice(
            name=method.spec.name,
            method=method.spec.method,
            num_ids=values[method.spec.name],
            lookups=len(method.physical) * _ids_per_example(method.spec, num_samples, ids_per_example or {}),
            row_nbytes=_row_nbytes([method]),
            collisions=features.get(method.spec.name),
        )
        for method in methods
    ]
    return ConfigAdvice(
        tables=tables,
        row_nbytes=_row_nbytes(methods),
        serving_nbytes=_serving_nbytes(specs, advice),
        plain_nbytes=_plain_nbytes(specs, values),
        is_estimated=not all(spec.has_vocabulary for spec in specs),
        lookups=sum(table.lookups for table in tables),
        concentration={} if advice is None else advice.concentration,
        warnings=[] if advice is None else advice.warnings,
    )


def bag_lengths(schema: Schema, *, data: Path) -> dict[str, float]:
    """Mean number of ids in an example, by multi-valued feature without a vocabulary, in the first row group of the
    training part.

    Raises:
        DataError: the training part is damaged.
    """
    multivalued = [field for field in schema.categorical if field.multivalued]
    if all(field.has_vocabulary for field in multivalued):
        return {}
    parts = Parts(data, "train", schema=schema)
    first = parts.groups[0]
    block = parts.read_block([Piece(group=first, start=0, stop=first.num_rows)], order_R=None)
    return {
        field.name: len(bags.values) / block.num_rows
        for field, bags in zip(multivalued, block.bags, strict=True)
        if not field.has_vocabulary
    }


def _num_values(specs: Sequence[TableSpec], num_values: Mapping[str, int]) -> dict[str, int | None]:
    return {
        spec.name: spec.num_embeddings if spec.has_vocabulary else num_values.get(spec.feature_names[0])
        for spec in specs
    }


def _plain_nbytes(specs: Sequence[TableSpec], values: Mapping[str, int | None]) -> int | None:
    nbytes = 0
    for spec in specs:
        num = values[spec.name]
        if num is None:
            return None
        nbytes += 4 * num * spec.embedding_dim
    return nbytes


def _ids_per_example(spec: TableSpec, num_samples: int, measured: Mapping[str, float]) -> float:
    if spec.counts is None or not num_samples:
        return sum(measured.get(feature, 1.0) for feature in spec.feature_names)
    return int(spec.counts.sum()) / num_samples


def _row_nbytes(methods: Sequence[Method]) -> int:
    tables = {table.name: table for method in methods for table in method.physical}
    return sum(4 * table.num_embeddings * table.embedding_dim for table in tables.values())


def _serving_nbytes(specs: Sequence[TableSpec], advice: Advice | None) -> int | None:
    if any(spec.method not in ("unified", "full") for spec in specs):
        return None
    plain = sum(spec.plain_nbytes for spec in specs if spec.method == "full")
    return plain + (0 if advice is None else advice.serving_nbytes)
