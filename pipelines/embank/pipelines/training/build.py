"""From a configuration and a schema to tables and a model."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from embank.ctr_models import MODELS, CTRModel, Inputs, Network, build_network
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
from embank.tables.stages import restored_specs

FIRST_ORDER = "first_order"
NO_STAGES: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


def table_specs(
    config: Config, schema: Schema, *, data: Path, counts: Mapping[str, torch.Tensor] | None = None
) -> list[TableSpec]:
    """Specs of the embeddings (if the model has them), then of the first-order weights (if it has them).

    First-order weights are tables of dim 1, stored by the feature's own method and counted like any other. Under a default
    budget, tables of fewer than `tables.plain_below` ids stay plain and the larger ones share what is left of it.

    Args:
        config: the run's configuration.
        schema: of the prepared folder.
        data: the prepared folder, for the counts in its vocabularies.
        counts: what `id_counts` has read from them, if the caller has it already.

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
    counts = id_counts(schema, data=data) if counts is None else counts
    specs = []
    if network.embeddings:
        specs += [_spec(config, f, counts, name=f.name, dim=config.tables.of(f.name).dim) for f in schema.categorical]
    if network.first_order:
        specs += [_spec(config, f, counts, name=f"{FIRST_ORDER}/{f.name}", dim=1) for f in schema.categorical]
    return _share_budget(config, specs)


def _spec(
    config: Config, field: CategoricalField, counts: Mapping[str, torch.Tensor], *, name: str, dim: int
) -> TableSpec:
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
        counts=counts[field.name],
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


def id_counts(schema: Schema, *, data: Path) -> dict[str, torch.Tensor]:
    """Occurrences in training of every id, int64 [num_embeddings], by feature.

    Raises:
        DataError: a vocabulary is missing or damaged.
    """
    return {field.name: _counts(data, field) for field in schema.categorical}


def _counts(data: Path, field: CategoricalField) -> torch.Tensor:
    vocabulary = Vocabulary.load(data / VOCAB_FOLDER / f"{field.name}.parquet", name=field.name)
    if len(vocabulary) != field.num_embeddings:
        raise DataError(
            f"'{data}' has {len(vocabulary)} ids of '{field.name}' in its vocabulary and {field.num_embeddings} in its schema; prepare it again"
        )
    return torch.from_numpy(vocabulary.counts.astype(np.int64))


def build_tables(
    config: Config,
    schema: Schema,
    *,
    data: Path,
    rows_folder: Path,
    stages: Mapping[str, Mapping[str, Any]] = NO_STAGES,
) -> TableCollection:
    """Tables with the initial values of the configuration's seed.

    Args:
        config: the run's configuration.
        schema: of the prepared folder.
        data: the prepared folder.
        rows_folder: where the disk tier's files go, unless the configuration says otherwise.
        stages: how far the tables' methods are, see `embank.tables.stages.stage_state`; without it they stand at their beginning.

    Raises:
        ConfigError, BudgetError: what methods and backends refuse.
    """
    train = config.train
    directory = Path(config.rows.directory) if config.rows.directory else rows_folder
    return TableCollection(
        restored_specs(table_specs(config, schema, data=data), stages),
        seed=train.seed,
        backend=config.rows.backend,
        optimizer=RowOptimizer(name=train.table_optimizer, lr=train.table_lr),
        tier=RowTier(name="disk", directory=directory) if config.rows.tier == "disk" else RowTier(),
    )


def initial_network(config: Config, schema: Schema) -> Network:
    """The network with the initial values of the configuration's seed, which also seeds torch's global generator.

    Raises:
        ConfigError: what the model refuses.
    """
    names = schema.feature_names
    inputs = Inputs(
        names=names, dims=tuple(config.tables.of(name).dim for name in names), num_dense=len(schema.numeric)
    )
    hyper = {key: value for key, value in config.model.items() if key != "name"}
    torch.manual_seed(config.train.seed)
    return build_network(config.model["name"], inputs=inputs, **hyper)


def build(
    config: Config,
    schema: Schema,
    *,
    data: Path,
    rows_folder: Path,
    stages: Mapping[str, Mapping[str, Any]] = NO_STAGES,
) -> CTRModel:
    """Tables and network, see `build_tables` and `initial_network`."""
    tables = build_tables(config, schema, data=data, rows_folder=rows_folder, stages=stages)
    return CTRModel(tables, initial_network(config, schema))
