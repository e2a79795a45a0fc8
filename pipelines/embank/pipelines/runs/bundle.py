"""A trained model as a bundle: tables, network, and what is needed to score the same kind of data again."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embank.ctr_models import CTRModel
from embank.pipelines.config.changes import MAY_CHANGE
from embank.pipelines.config.run import Config, to_plain
from embank.pipelines.data.preprocessing.rules import Preprocessing
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import table_codecs
from embank.pipelines.runs.environment import provenance_of
from embank.tables import TableCollection, save_bundle


def write_bundle(
    folder: Path,
    model: CTRModel,
    *,
    config: Config,
    schema: Schema,
    step: int,
    data: Path,
    metrics: Mapping[str, Any] | None = None,
    tokens: bool = True,
    codec: str | Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model as it stands, with the rules and vocabularies that turn raw rows into what it reads.

    The facts of the bundle: `config`, resolved, without the keys that belong to a machine and don't enter figures, so
    that equal runs write equal bundles; `inputs` of the network; `schema` of the data, whose fingerprint stands for the
    vocabularies; `step`; `metrics`; `provenance`: the versions that trained it.

    Args:
        folder: must not exist yet.
        model: tables and network.
        config: the run's configuration.
        schema: of the data that it was trained on.
        step: optimizer steps that made it.
        data: the prepared folder, where rules and vocabularies are.
        metrics: what validation said of it.
        tokens: write the vocabularies' tokens too, not only their index.
        codec: of the tables, see `embank.tables.save_bundle`; None takes those of the configuration.
        facts: what else the bundle is to say.

    Raises:
        CheckpointError, ConfigError, WorkError: see `embank.tables.save_bundle`.
    """
    assert isinstance(model.tables, TableCollection)
    rules = Preprocessing.of_prepared(data)
    plain = to_plain(config)
    for key in sorted(MAY_CHANGE):
        section, name = key.split(".")
        del plain[section][name]
    own = {
        "config": plain,
        "inputs": asdict(model.network.inputs),
        "schema": schema.to_json(),
        "step": step,
        "metrics": dict(metrics or {}),
        "provenance": provenance_of(config.train.seed),
    }
    save_bundle(
        folder,
        model.tables,
        network={key: value.cpu() for key, value in model.network.state_dict().items()},
        facts={**own, **(facts or {})},
        files={} if rules is None else rules.files(tokens=tokens),
        codec=table_codecs(config, model.tables.specs) if codec is None else codec,
    )
