"""The end of a run: its bundle, and its figures: quality, bytes, and what training has cost in all stages."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embank.ctr_models import CTRModel
from embank.pipelines.config.run import Config
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import served_codec, served_nbytes
from embank.pipelines.runs.bundle import write_bundle
from embank.pipelines.runs.evaluate import evaluate_bundle
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.open import best_model
from embank.pipelines.runs.progress import Judged, Progress
from embank.tables import Bundle, TableCollection
from embank.tables.serving.bundle import folder_nbytes
from embank.tables.specs import plain_nbytes_of


def close_run(
    run: RunFolder,
    model: CTRModel,
    *,
    config: Config,
    schema: Schema,
    progress: Progress,
    tell: Callable[[dict[str, Any]], None],
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a run leaves behind at its end: bundle, plots, and last of all the result. One process does it.

    The test split is read once, and scored by the bundle itself: whoever scores its rows by the bundle later has the
    figures of the result.

    Args:
        run: the run directory.
        model: settled, as it is served; where its rows are spread over processes its checkpoint is taken instead.
        config: the run's configuration.
        schema: of its data.
        progress: at the run's end.
        tell: is given the figures of the test split.
        facts: what else the bundle is to say.

    Returns:
        What result.json holds.
    """
    assert isinstance(model.tables, TableCollection)
    with _whole(run, model, config=config, schema=schema) as whole:
        assert isinstance(whole.tables, TableCollection)
        run.remove_bundle()
        write_bundle(
            run.bundle,
            whole,
            config=config,
            schema=schema,
            step=progress.step if progress.best_step is None else progress.best_step,
            data=Path(config.data.path),
            metrics=metrics_of(progress),
            facts=facts,
        )
        scores = evaluate_bundle(Bundle(run.bundle, verify=False), config.data.path, "test")
        tell(scores)
        nbytes = folder_nbytes(run.bundle)
        result = final_figures(config, tables=whole.tables, progress=progress, scores=scores, bundle_nbytes=nbytes)
    run.plot()
    begun = {} if run.start is None else {"from": run.start}
    run.write_result({**result, **begun, "ranks": model.tables.processes.count})
    return run.read_result()


@contextmanager
def _whole(run: RunFolder, model: CTRModel, *, config: Config, schema: Schema) -> Iterator[CTRModel]:
    """The model with all of its rows in this process."""
    assert isinstance(model.tables, TableCollection)
    if model.tables.sharding is None:
        yield model
        return
    with best_model(run, schema=schema, data=Path(config.data.path)) as (loaded, _):
        yield loaded


def final_figures(
    config: Config, *, tables: TableCollection, progress: Progress, scores: Mapping[str, Any], bundle_nbytes: int
) -> dict[str, Any]:
    """What result.json holds. Plain bytes, and ratios to them, are None where a table has no vocabulary.

    Args:
        config: the run's configuration.
        tables: settled, with the rows that are served.
        progress: at the run's end.
        scores: of the test split.
        bundle_nbytes: of the run's bundle, on disk.
    """
    serving, plain = served_nbytes(config, tables), plain_nbytes_of(tables.specs)
    chosen, least = progress.chosen, progress.least_loss
    nominal = tables.nbytes("nominal")
    return {
        **scores,
        f"valid_{progress.monitor}": progress.best_value,
        **({} if chosen is None else {f"valid_{name}": v for name, v in _figures(chosen).items()}),
        "monitor": progress.monitor,
        "best_step": progress.best_step,
        "best_epoch": None if chosen is None else chosen.epoch,
        "least_valid_logloss": None if least is None else {"step": least.step, "epoch": least.epoch, **_figures(least)},
        "num_steps": progress.step,
        "serving_bytes": serving,
        "training_bytes": max(stage.training_bytes for stage in progress.stages),
        "bundle_bytes": bundle_nbytes,
        "plain_bytes": plain,
        "nominal_bytes": nominal,
        "serving_ratio": None if plain is None else serving / plain,
        "nominal_ratio": None if plain is None else nominal / plain,
        "samples_per_s": progress.samples_per_s,
        "loader_share": progress.seconds_waiting / max(progress.seconds, 1e-9),
        "train_seconds": sum(stage.seconds for stage in progress.stages),
        "num_samples": sum(stage.samples for stage in progress.stages),
        "stages": [
            {
                "name": stage.name,
                "steps": stage.steps,
                "samples": stage.samples,
                "seconds": stage.seconds,
                "training_bytes": stage.training_bytes,
            }
            for stage in progress.stages
        ],
        "seed": config.train.seed,
        "model": config.model["name"],
        "method": config.tables.default.method,
        "budget": config.tables.default.budget,
        "codec": served_codec(config),
    }


def metrics_of(progress: Progress) -> dict[str, Any]:
    """What validation said of the checkpoint that is served, for its bundle; empty where none was evaluated."""
    chosen = progress.chosen
    if chosen is None:
        return {}
    return {"split": "valid", **_figures(chosen), "calibration": chosen.calibration}


def _figures(judged: Judged) -> dict[str, float]:
    """The metrics of an evaluation that are defined."""
    figures = {"logloss": judged.logloss, "auc": judged.auc, "gauc": judged.gauc}
    return {name: value for name, value in figures.items() if value is not None}
