"""From a configuration and a schema to tables and a model."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from embank.compression.budget.coded import share_coded, within_coded
from embank.ctr_models import MODELS, CTRModel, Inputs, Network, build_network
from embank.pipelines.config.run import Config
from embank.pipelines.data.schema import VOCAB_FOLDER, CategoricalField, Schema
from embank.tables import (
    ConfigError,
    DataError,
    PackedCollection,
    RowOptimizer,
    RowTier,
    TableCollection,
    TableSpec,
    Vocabulary,
    pack_collection,
)
from embank.tables.collections.stages import restored_specs
from embank.tables.sharding.plan import Load, Plan, load_plan
from embank.tables.sharding.planner import PlanRequest, plan_tables
from embank.tables.sharding.processes import Processes
from embank.tables.wording import did_you_mean

if TYPE_CHECKING:
    from embank.tables.sharding.sharded_rows import Sharding

FIRST_ORDER = "first_order"
NO_STAGES: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


def table_specs(
    config: Config, schema: Schema, *, data: Path, counts: Mapping[str, torch.Tensor] | None = None
) -> list[TableSpec]:
    """Specs of the embeddings (if the model has them), then of the first-order weights (if it has them).

    First-order weights are tables of dim 1, stored by the feature's own method and counted like any other. Under a
    default budget, tables of fewer than `tables.plain_below` ids stay plain, as far as half of it allows, and the
    others share the rest.

    Args:
        config: the run's configuration.
        schema: of the prepared folder.
        data: the prepared folder, for the counts in its vocabularies.
        counts: what `id_counts` has read from them, if the caller has it already.

    Raises:
        ConfigError: an override of a feature that the data lacks, or a default budget for one without a vocabulary.
        DataError: a vocabulary is missing or damaged.
        BudgetError: the methods' floors exceed the budget.
    """
    for feature in config.tables.overrides:
        if feature not in schema.feature_names:
            raise ConfigError(
                f"'tables.overrides.{feature}' names a feature that '{config.data.path}' "
                f"lacks.{did_you_mean(feature, schema.feature_names)}"
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
        counts=counts.get(field.name),
        fused_pooling=not (field.multivalued and config.train.embedding_l2),  # the penalty is per id
    )


def _share_budget(config: Config, specs: list[TableSpec]) -> list[TableSpec]:
    """Shares the default budget between the tables that are not overridden."""
    budget, codecs = config.tables.default.budget, _counted_codecs(config, specs)
    specs = [
        within_coded(spec, codec=codecs[spec.name]) if spec.feature_names[0] in config.tables.overrides else spec
        for spec in specs
    ]
    if budget is None:
        return specs
    shared = [spec for spec in specs if spec.feature_names[0] not in config.tables.overrides]
    for spec in shared:
        if not spec.has_vocabulary:
            raise ConfigError(
                f"table '{spec.name}' has no vocabulary (its ids are hashes of tokens), so there is no plain table "
                "that 'tables.budget', "
                f"{budget}, could be a share of. Give it a number of rows: 'tables.overrides.{spec.feature_names[0]}: "
                f"{{method: hash, "
                "num_rows: 100000, budget: null}', or for all tables 'method: unified' with 'rows' in place of the "
                "budget"
            )
    found = share_coded(shared, budget=budget, codecs=codecs, plain_below=config.tables.plain_below)
    within = {spec.name: spec for spec in found}
    return [within.get(spec.name, spec) for spec in specs]


def table_codecs(config: Config, specs: Sequence[TableSpec]) -> dict[str, str]:
    """The codec that each table is served under: that of its feature, or else the one that was trained through."""
    through = config.train.straight_through or "fp32"
    return {name: through if codec == "fp32" else codec for name, codec in _counted_codecs(config, specs).items()}


def served_codec(config: Config) -> str:
    """The codec of a feature without one of its own, as its table is served."""
    own = config.tables.default.codec
    return config.train.straight_through or own if own == "fp32" else own


def _counted_codecs(config: Config, specs: Sequence[TableSpec]) -> dict[str, str]:
    """The codec of each table that a budget counts."""
    return {spec.name: config.tables.of(spec.feature_names[0]).codec for spec in specs}


def served_tables(config: Config, tables: TableCollection) -> PackedCollection:
    """Tables as a configuration serves them.

    Raises:
        ConfigError: see `embank.tables.pack_collection`.
    """
    return pack_collection(tables, codec=table_codecs(config, tables.specs))


def served_nbytes(config: Config, tables: TableCollection) -> int:
    """Serving bytes of tables as a configuration serves them; without codecs also of tables that are still searched."""
    codecs = table_codecs(config, tables.specs)
    return served_tables(config, tables).nbytes() if {*codecs.values()} - {"fp32"} else tables.nbytes("serving")


def served_model(config: Config, model: CTRModel) -> CTRModel:
    """The model over its tables as the configuration serves them: itself, where they have no codec."""
    assert isinstance(model.tables, TableCollection)
    codecs = table_codecs(config, model.tables.specs)
    return CTRModel(served_tables(config, model.tables), model.network) if {*codecs.values()} - {"fp32"} else model


def id_counts(schema: Schema, *, data: Path) -> dict[str, torch.Tensor]:
    """Occurrences in training of every id, int64 [num_embeddings], by feature with a vocabulary.

    Raises:
        DataError: a vocabulary is missing or damaged.
    """
    return {field.name: _counts(data, field) for field in schema.categorical if field.has_vocabulary}


def _counts(data: Path, field: CategoricalField) -> torch.Tensor:
    if not (data / VOCAB_FOLDER).is_dir():
        raise DataError(
            f"'{data}' has no vocabularies (it was prepared like a bundle that was exported without tokens), and the "
            "counts in them are needed to build tables. Bundles can be evaluated on it; for training and for runs, "
            "prepare it like the run"
        )
    vocabulary = Vocabulary.load(data / VOCAB_FOLDER / f"{field.name}.parquet", name=field.name)
    if len(vocabulary) != field.num_embeddings:
        raise DataError(
            f"'{data}' has {len(vocabulary)} ids of '{field.name}' in its vocabulary and {field.num_embeddings} in "
            "its schema; prepare it again"
        )
    return torch.from_numpy(vocabulary.counts.astype(np.int64))


def build_tables(
    config: Config,
    schema: Schema,
    *,
    data: Path,
    rows_folder: Path,
    stages: Mapping[str, Mapping[str, Any]] = NO_STAGES,
    processes: Processes | None = None,
) -> TableCollection:
    """Tables with the initial values of the configuration's seed.

    Args:
        config: the run's configuration.
        schema: of the prepared folder.
        data: the prepared folder.
        rows_folder: where the disk tier's files go, unless the configuration says otherwise.
        stages: how far the tables' methods are, see `embank.tables.collections.stages.stage_state`; without it they
            stand at their beginning.
        processes: those that train together; their rows are spread by a plan.

    Raises:
        ConfigError, BudgetError: what methods, backends and planners refuse.
    """
    directory = Path(config.rows.directory) if config.rows.directory else rows_folder
    specs = restored_specs(table_specs(config, schema, data=data), stages)
    return TableCollection(
        specs,
        seed=config.train.seed,
        backend=config.rows.backend,
        optimizer=row_optimizer(config),
        tier=row_tier(config, directory=directory, processes=processes),
        sharding=None if processes is None or processes.group is None else _sharding(config, schema, specs, processes),
    )


def row_tier(config: Config, *, directory: Path, processes: Processes | None) -> RowTier:
    """Where rows are held, and on which device they are looked up: of several processes each has a GPU of its own."""
    rows = config.rows
    device: str = rows.device
    if device != "cpu" and processes is not None and processes.count > 1:
        device = f"{device}:{os.environ.get('LOCAL_RANK', processes.rank)}"
    return RowTier(
        name=rows.tier,
        directory=directory if rows.tier == "disk" else None,
        prefetch=rows.prefetch,
        device=device,
        dtype=rows.dtype,
    )


def row_optimizer(config: Config) -> RowOptimizer:
    """How rows are updated."""
    return RowOptimizer(name=config.train.table_optimizer, lr=config.train.rows_lr)


def _sharding(config: Config, schema: Schema, specs: Sequence[TableSpec], processes: Processes) -> "Sharding":
    from embank.tables.sharding.sharded_rows import Sharding  # TorchRec's distributed half takes a while to import

    def planner(specs: Sequence[TableSpec]) -> Plan:
        return plan_run(config, schema, specs, world_size=processes.count)[0]

    with processes.together():
        plan = planner(specs)
    return Sharding(plan=plan, group=processes.group, planner=planner)


def plan_run(config: Config, schema: Schema, specs: Sequence[TableSpec], *, world_size: int) -> tuple[Plan, list[Load]]:
    """The plan of a configuration for a number of ranks, and what it was made from.

    Raises:
        ConfigError: it does not fit, or the configuration's own plan is wrong.
    """
    rows = config.rows
    request = PlanRequest(
        world_size=world_size,
        planner=rows.planner,
        memory_per_rank=rows.memory_per_rank,
        given=None if rows.plan is None else load_plan(Path(rows.plan)),
        row_dtype=rows.dtype,
    )
    num_samples = schema.split("train").num_rows
    return plan_tables(specs, request, optimizer=row_optimizer(config), num_samples=num_samples)


def initial_network(config: Config, schema: Schema) -> Network:
    """The network with the initial values of the configuration's seed, which also seeds torch's global CPU generator.

    Raises:
        ConfigError: what the model refuses.
    """
    names, tables = schema.feature_names, config.tables
    dims = tuple(tables.of(name).dim for name in names)
    padded_dim = max(tables.default.dim, *dims) if dims and tables.alignment == "pad" else None
    inputs = Inputs(names=names, dims=dims, num_dense=len(schema.numeric), padded_dim=padded_dim)
    hyper = {key: value for key, value in config.model.items() if key != "name"}
    torch.default_generator.manual_seed(config.train.seed)  # other devices' generators are their owners' to seed
    return build_network(config.model["name"], inputs=inputs, **hyper)


def build(
    config: Config,
    schema: Schema,
    *,
    data: Path,
    rows_folder: Path,
    stages: Mapping[str, Mapping[str, Any]] = NO_STAGES,
    processes: Processes | None = None,
) -> CTRModel:
    """Tables and network, see `build_tables` and `initial_network`."""
    tables = build_tables(config, schema, data=data, rows_folder=rows_folder, stages=stages, processes=processes)
    return CTRModel(tables, initial_network(config, schema).to(tables.device))
