"""From a configuration and a schema to tables and a model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from embank.ctr_models import MODELS, CTRModel, Inputs, build_model
from embank.pipelines.data.schema import VOCAB_FOLDER, CategoricalField, Schema
from embank.pipelines.data.suggest import did_you_mean
from embank.pipelines.training.config import Config
from embank.tables import (
    BudgetError,
    ConfigError,
    DataError,
    RowOptimizer,
    RowTier,
    TableCollection,
    TableSpec,
    Vocabulary,
)

FIRST_ORDER = "first_order"


def table_specs(config: Config, schema: Schema, *, data: Path) -> list[TableSpec]:
    """Specs of the embeddings (if the model has them), then of the first-order weights (if it has them).

    First-order weights are tables of dim 1, stored by the feature's own method and counted like any other. Under a default
    budget, tables of fewer than `tables.plain_below` ids stay plain and the larger ones share what is left of it.

    Args:
        config: the run's configuration.
        schema: of the prepared folder.
        data: the prepared folder, for the counts in its vocabularies.

    Raises:
        ConfigError: an override of a feature that the data lacks.
        DataError: a vocabulary is missing or damaged.
        BudgetError: the plain small tables alone exceed the budget.
    """
    for feature in config.tables.overrides:
        if feature not in schema.feature_names:
            raise ConfigError(
                f"'tables.overrides.{feature}' names a feature that '{config.data.path}' lacks.{did_you_mean(feature, schema.feature_names)}"
            )
    network = MODELS[config.model["name"]]
    fields = schema.categorical
    specs = []
    if network.embeddings:
        specs += [_spec(config, field, data, name=field.name, dim=config.tables.of(field.name).dim) for field in fields]
    if network.first_order:
        specs += [_spec(config, field, data, name=f"{FIRST_ORDER}/{field.name}", dim=1) for field in fields]
    return _share_budget(config, specs)


def _spec(config: Config, field: CategoricalField, data: Path, *, name: str, dim: int) -> TableSpec:
    table = config.tables.of(field.name)
    return TableSpec(
        name=name,
        num_embeddings=field.num_embeddings,
        embedding_dim=dim,
        feature_names=[field.name],
        pooling=table.pooling,
        method=table.method,
        options=table.options,
        budget=table.budget,
        init_std=table.init_std,
        counts=_counts(data, field),
    )


def _share_budget(config: Config, specs: list[TableSpec]) -> list[TableSpec]:
    """Keeps small tables plain and gives the others the rest of the budget, so that the whole keeps it."""
    budget = config.tables.default.budget
    if budget is None:
        return specs
    shared = {spec.name for spec in specs if spec.feature_names[0] not in config.tables.overrides}
    small = {spec.name for spec in specs if spec.name in shared and spec.num_embeddings < config.tables.plain_below}
    plain_nbytes = sum(spec.plain_nbytes for spec in specs if spec.name in small)
    total_nbytes = sum(spec.plain_nbytes for spec in specs if spec.name in shared)
    rest = (budget * total_nbytes - plain_nbytes) / max(1, total_nbytes - plain_nbytes)
    if plain_nbytes > budget * total_nbytes or (rest <= 0 and shared != small):
        raise BudgetError(
            f"'tables.budget' is {budget}, but the tables of fewer than {config.tables.plain_below} ids alone are "
            f"{plain_nbytes / total_nbytes:.4f} of all bytes; raise the budget above that or lower 'tables.plain_below'"
        )
    return [_within(spec, rest, plain=spec.name in small) if spec.name in shared else spec for spec in specs]


def _within(spec: TableSpec, budget: float, *, plain: bool) -> TableSpec:
    if plain:
        return replace(spec, method="full", options=None, budget=None)
    return replace(spec, budget=min(1.0, budget))


def _counts(data: Path, field: CategoricalField) -> torch.Tensor:
    vocabulary = Vocabulary.load(data / VOCAB_FOLDER / f"{field.name}.parquet", name=field.name)
    if len(vocabulary) != field.num_embeddings:
        raise DataError(
            f"'{data}' has {len(vocabulary)} ids of '{field.name}' in its vocabulary and {field.num_embeddings} in its schema; prepare it again"
        )
    return torch.from_numpy(vocabulary.counts.astype(np.int64))


def build(config: Config, schema: Schema, *, data: Path, rows_folder: Path) -> CTRModel:
    """Tables and network with the initial values of the configuration's seed.

    Args:
        config: the run's configuration.
        schema: of the prepared folder.
        data: the prepared folder.
        rows_folder: where the disk tier's files go, unless the configuration says otherwise.

    Raises:
        ConfigError, BudgetError: what models, methods and backends refuse.
    """
    train = config.train
    directory = Path(config.rows.directory) if config.rows.directory else rows_folder
    specs = table_specs(config, schema, data=data)
    tables = TableCollection(
        specs,
        seed=train.seed,
        backend=config.rows.backend,
        optimizer=RowOptimizer(name=train.table_optimizer, lr=train.table_lr),
        tier=RowTier(name="disk", directory=directory, prefetch=config.rows.prefetch)
        if config.rows.tier == "disk"
        else RowTier(),
    )
    names = schema.feature_names
    inputs = Inputs(
        names=names, dims=tuple(config.tables.of(name).dim for name in names), num_dense=len(schema.numeric)
    )
    hyper = {key: value for key, value in config.model.items() if key != "name"}
    torch.manual_seed(train.seed)
    return build_model(config.model["name"], tables=tables, inputs=inputs, **hyper)
