"""The supernet: trained once with random widths, then frozen, so that a candidate is scored without training it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from embank.ctr_models import CTRModel
from embank.pipelines.config.run import Config, parse_config, to_plain
from embank.pipelines.data.schema import Schema
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.build import FIRST_ORDER, id_counts
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.open import best_model
from embank.pipelines.search.fields import supernet_config
from embank.pipelines.search.held import Field
from embank.pipelines.train.trainer import Trainer
from embank.tables import ConfigError, TableCollection, pack_table

STAGE = 0
"""Of OptEmbed: the one with random widths."""


@dataclass(frozen=True, kw_only=True)
class Supernet:
    """A frozen supernet.

    Args:
        run: the run directory that it comes from.
        step: of its checkpoint.
        model: in evaluation mode: every row whose norm exceeds its table's threshold, at full width.
        fields: the features whose widths and rows can be chosen.
        checksum: of every number in it.
    """

    run: Path
    step: int
    model: CTRModel
    fields: tuple[Field, ...]
    checksum: str


def train_supernet(config: Config, run: Path, *, reporter: Reporter | None = None) -> None:
    """Trains the supernet of a configuration, or goes on with it; does nothing where it is complete.

    Args:
        config: the search's configuration.
        run: the supernet's run directory.
        reporter: is told how it goes.

    Raises:
        ConfigError: the directory holds another run.
        InterruptedRunError: a signal stopped it; it is saved.
    """
    trainer = Trainer(supernet_config(config), run, reporter=reporter, num_stages=STAGE + 1)
    trainer.train(resume=RunFolder(run).is_run)


@contextmanager
def open_supernet(run: Path, *, config: Config) -> Iterator[Supernet]:
    """The supernet that a run has trained, for as long as the context lasts.

    Args:
        run: a run directory of method `optembed`, `width_sampling: log`, that stands at its first stage: `RUN/supernet`
            of a search, or a run that has not begun its retraining.
        config: the search's configuration.

    Raises:
        ConfigError: the run is of another model or method, or on other data, or has gone on to its retraining.
        CheckpointError: it can't be read.
    """
    folder, data = RunFolder(run), Path(config.data.path)
    refuse_other_run(folder, config=config)
    schema = Schema.load(data)
    with best_model(folder, schema=schema, data=data) as (model, step):
        tables = model.tables
        assert isinstance(tables, TableCollection)
        model.eval()
        searched = [f.name for f in schema.categorical if f.name not in config.tables.overrides]
        stages = {method.spec.name: method.spec.stage for method in tables.built_methods()}
        if any(stages[name] != STAGE for name in searched):
            raise ConfigError(
                f"run '{run}' has gone on to its retraining, and a search needs the supernet that came before. Leave "
                "--supernet out, and the search trains one"
            )
        counts = id_counts(schema, data=data)
        with torch.no_grad():
            fields = tuple(_field(tables, name, counts=counts[name]) for name in searched)
        yield Supernet(run=run, step=step, model=model, fields=fields, checksum=checksum_of(model, fields))


def refuse_other_run(folder: RunFolder, *, config: Config) -> None:
    """Refuses a run whose supernet is not that of a configuration.

    Raises:
        ConfigError: names what differs.
    """
    wanted, own = to_plain(supernet_config(config)), to_plain(parse_config(folder.read_config()))
    for key in ("model", "tables"):
        if wanted[key] != own[key]:
            different = next(k for k in wanted[key] if own[key].get(k) != wanted[key][k])
            raise ConfigError(
                f"run '{folder.path}' has {key}.{different} = {own[key].get(different)!r}, the supernet of this "
                f"configuration needs {wanted[key][different]!r}. Give its own run, or leave --supernet out, and the "
                "search trains one"
            )
    fingerprint = Schema.load(config.data.path).fingerprint
    if folder.fingerprint != fingerprint:
        raise ConfigError(
            f"run '{folder.path}' was trained on data with fingerprint {folder.fingerprint[:12]}, and "
            f"'{config.data.path}' has {fingerprint[:12]}: its ids mean something else. Leave --supernet out, and the "
            "search trains one"
        )


def _field(tables: TableCollection, name: str, *, counts: torch.Tensor) -> Field:
    """A feature of the supernet."""
    methods = {method.spec.name: method for method in tables.built_methods()}
    own = [table for table in (name, f"{FIRST_ORDER}/{name}") if table in methods]
    weights = tables.weights()
    rows = [pack_table(methods[t], weights).lookup(torch.arange(methods[t].spec.num_embeddings)) for t in own]
    columns = [_columns(tables, table, feature=name) for table in own]
    return Field(
        name=name,
        columns=columns[0],
        first_order=columns[1].start if len(own) > 1 else None,
        rows_ND=torch.cat(rows, dim=1),
        counts=counts,
        pooling=methods[name].spec.pooling,
    )


def _columns(tables: TableCollection, table: str, *, feature: str) -> slice:
    """Columns of a feature's lookup in a table in the collection's output."""
    uses = [(spec.name, feature) for spec in tables.specs for feature in spec.feature_names]
    place = uses.index((table, feature))
    start = sum(tables.dims[:place])
    return slice(start, start + tables.dims[place])


@torch.no_grad()
def checksum_of(model: CTRModel, fields: tuple[Field, ...]) -> str:
    """Of the network's numbers and all rows, which decide every score."""
    digest = hashlib.sha256()
    parts = [*model.network.state_dict().items(), *((field.name, field.rows_ND) for field in fields)]
    for name, value in parts:
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers of a network whose statistics depend on the candidate."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
