"""A trained model as a bundle: tables, network, and what is needed to score the same kind of data again."""

from dataclasses import asdict
from pathlib import Path

from embank.ctr_models import CTRModel
from embank.pipelines.config.changes import MAY_CHANGE
from embank.pipelines.config.run import Config, to_plain
from embank.pipelines.data.schema import Schema
from embank.tables import TableCollection, save_bundle


def write_bundle(folder: Path, model: CTRModel, *, config: Config, schema: Schema, step: int) -> None:
    """Writes a model as it stands.

    The facts of the bundle: `config`, resolved, without the keys that belong to a machine and don't enter figures, so
    that equal runs write equal bundles; `inputs` of the network; `schema` of the data, whose fingerprint stands for the
    vocabularies; `step`.

    Args:
        folder: must not exist yet.
        model: tables and network.
        config: the run's configuration.
        schema: of the data that it was trained on.
        step: optimizer steps that made it.

    Raises:
        CheckpointError, ConfigError, WorkError: see `embank.tables.save_bundle`.
    """
    assert isinstance(model.tables, TableCollection)
    plain = to_plain(config)
    for key in sorted(MAY_CHANGE):
        section, name = key.split(".")
        del plain[section][name]
    facts = {
        "config": plain,
        "inputs": asdict(model.network.inputs),
        "schema": schema.to_json(),
        "step": step,
    }
    save_bundle(
        folder,
        model.tables,
        network={key: value.cpu() for key, value in model.network.state_dict().items()},
        facts=facts,
    )
