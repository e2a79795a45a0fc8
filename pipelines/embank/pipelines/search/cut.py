"""A candidate as a model of its own, cut out of the supernet: narrow tables, few rows, no dead input columns."""

from collections.abc import Mapping
from pathlib import Path

import torch

from embank.ctr_models import CTRModel, narrowed
from embank.pipelines.config.run import Config
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import FIRST_ORDER, build_tables
from embank.pipelines.search.fields import candidate_config
from embank.pipelines.search.scores import Scorer
from embank.search.spaces import Shape
from embank.tables import TableCollection


@torch.no_grad()
def cut_model(scorer: Scorer, shapes: Mapping[str, Shape], *, config: Config) -> CTRModel:
    """The model of a candidate with the supernet's numbers; it scores every row as the masked supernet does.

    Each table holds the kept columns of the kept rows and nothing else, and the network's first layers have lost the
    columns that would always be zero.

    Args:
        scorer: on the supernet; the network's batch statistics are taken anew for the candidate.
        shapes: what is kept of each field.
        config: the search's configuration.

    Raises:
        ConfigError: the network can't be cut, see `embank.ctr_models.narrowed`.
    """
    data = Path(config.data.path)
    schema = Schema.load(data)
    tables = build_tables(candidate_config(config, shapes), schema, data=data, rows_folder=data)
    source = scorer.model.tables
    assert isinstance(source, TableCollection)
    for held in scorer.valid.fields:
        shape = shapes[held.name]
        rows_ND = held.rows_ND[: shape.rows].clone()
        if shape.rows < held.num_ids:
            rows_ND[0] = held.shared_row(shape.rows)
        tables.set_rows(held.name, rows_ND[:, : shape.width].contiguous())
        if held.first_order is not None:
            tables.set_rows(f"{FIRST_ORDER}/{held.name}", rows_ND[:, -1:].contiguous())
    _carry_fixed(source, tables, searched={held.name for held in scorer.valid.fields})
    dims = tuple(shapes[name].width if name in shapes else config.tables.of(name).dim for name in schema.feature_names)
    with scorer.calibrated(shapes):
        network = narrowed(scorer.model.network, dims)
    return CTRModel(tables, network).eval()


def _carry_fixed(source: TableCollection, target: TableCollection, *, searched: set[str]) -> None:
    """The tables that were not searched, as the supernet has them."""
    weights = source.weights()
    for old, new in zip(source.built_methods(), target.built_methods(), strict=True):
        if new.spec.feature_names[0] in searched:
            continue
        new.load_state_dict(old.state_dict())
        for table in new.physical:
            target.set_rows(table.name, weights[table.name])
