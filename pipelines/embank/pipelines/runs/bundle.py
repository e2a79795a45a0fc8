"""A trained model as a bundle: tables, network, and what is needed to score the same kind of data again."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from embank.ctr_models import CTRModel, Inputs, build_model
from embank.pipelines.config.run import Config, to_plain
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.folder import MAY_CHANGE
from embank.tables import Bundle, CheckpointError, ConfigError, TableCollection, save_bundle
from embank.tables.storage.resources import refuse_exhausted


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


def load_model(bundle: Bundle) -> CTRModel:
    """The model of a bundle, in evaluation mode.

    Raises:
        ConfigError: the bundle has tables only.
        CheckpointError: another program's facts, or another version's network.
    """
    weights = bundle.network()
    try:
        inputs = dict(bundle.facts["inputs"])
        hyper = dict(bundle.facts["config"]["model"])
        name = hyper.pop("name")
        inputs |= {key: tuple(inputs[key]) for key in ("names", "dims")}
        with torch.random.fork_rng(devices=[]):
            model = build_model(name, tables=bundle.tables(), inputs=Inputs(**inputs), **hyper)
        model.network.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError, ConfigError) as error:
        refuse_exhausted(error, doing=f"building the network of bundle '{bundle.path}'")
        raise CheckpointError(
            f"the network of bundle '{bundle.path}' can't be built: {error}. It was written by embank "
            f"{bundle.embank_version}: "
            "load it with that version, or export it again from its run"
        ) from error
    return model.eval()


def schema_of(bundle: Bundle) -> Schema:
    """The schema of the data that a bundle's model was trained on.

    Raises:
        CheckpointError: the bundle is not one of a training run.
    """
    try:
        values: dict[str, Any] = bundle.facts["schema"]
        return Schema.from_json(values)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"bundle '{bundle.path}' does not say which data it was trained on; give the bundle of a training run"
        ) from error
