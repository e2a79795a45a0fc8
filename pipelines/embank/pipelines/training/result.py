"""The final figures of a run: quality, bytes, and what its training has cost in all stages."""

from collections.abc import Mapping
from typing import Any

from embank.pipelines.training.config import Config
from embank.pipelines.training.progress import Progress
from embank.tables import TableCollection


def final_figures(
    config: Config, *, tables: TableCollection, progress: Progress, scores: Mapping[str, Any], bundle_nbytes: int
) -> dict[str, Any]:
    """What result.json holds.

    Args:
        config: the run's configuration.
        tables: settled, with the rows that are served.
        progress: at the run's end.
        scores: of the test split.
        bundle_nbytes: of the run's bundle, on disk.
    """
    serving, plain, nominal = tables.nbytes("serving"), tables.plain_nbytes, nominal_nbytes(tables)
    return {
        **scores,
        f"valid_{progress.monitor}": progress.best_value,
        "best_step": progress.best_step,
        "num_steps": progress.step,
        "serving_bytes": serving,
        "training_bytes": max(stage.training_bytes for stage in progress.stages),
        "bundle_bytes": bundle_nbytes,
        "plain_bytes": plain,
        "nominal_bytes": nominal,
        "serving_ratio": serving / plain,
        "nominal_ratio": None if nominal is None else nominal / plain,
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
    }


def nominal_nbytes(tables: TableCollection) -> int | None:
    """Serving bytes as the methods' papers count them; None if every paper counts what is really held."""
    counts = [method.nominal_nbytes() for method in tables.built_methods()]
    if all(count is None for count in counts):
        return None
    rows = tables.weights()
    return sum(
        method.pack(rows).nbytes() if count is None else count
        for method, count in zip(tables.built_methods(), counts, strict=True)
    )
