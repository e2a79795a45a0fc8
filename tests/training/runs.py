"""Small training runs for tests."""

import os
from pathlib import Path
from typing import Any

from embank.ctr_models import CTRModel
from embank.pipelines.config.run import Config, parse_config
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.trained import network_of
from embank.pipelines.train.trainer import Trainer
from embank.tables import Bundle
from tests.data.prepared import write_prepared

TIMES = ("samples_per_s", "train_seconds", "loader_share")


def write_data(path: Path, **changes: Any) -> Path:
    """600 + 100 + 100 rows: two single-valued features, one multi-valued, two numeric inputs, groups."""
    defaults: dict[str, Any] = {
        "rows": {"train": 600, "valid": 100, "test": 100},
        "single": {"user": 50, "item": 7},
        "bags": {"genre": 9},
        "numeric": ("age", "price"),
        "group": True,
        "row_group_rows": 64,
    }
    write_prepared(path, **{**defaults, **changes})
    return path


def raw_config(data: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration of 10 steps an epoch, as YAML would give it; sections are merged over the defaults."""
    defaults: dict[str, dict[str, Any]] = {
        "data": {"path": str(data), "batch_size": 64, "buffer_rows": 128},
        "model": {"name": "deepfm", "hidden_units": [8], "dropout": 0.2},
        "tables": {"dim": 4},
        "train": {"epochs": 3, "table_lr": 0.05, "num_threads": 1},
        "rows": {},
    }
    merged = {key: {**defaults[key], **sections.get(key, {})} for key in defaults}
    if "model" in sections:
        merged["model"] = sections["model"]
    return merged


def config(data: Path, **sections: dict[str, Any]) -> Config:
    """The same, checked."""
    return parse_config(raw_config(data, **sections))


def train(data: Path, run: Path, *, resume: bool = False, **sections: dict[str, Any]) -> dict[str, Any]:
    """Trains to the end."""
    return Trainer(config(data, **sections), run).train(resume=resume)


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what depends on the clock."""
    stages = [{key: value for key, value in stage.items() if key != "seconds"} for stage in result["stages"]]
    return {key: value for key, value in result.items() if key not in TIMES} | {"stages": stages}


def model_of(bundle: Bundle) -> CTRModel:
    """A bundle's model over KeyedJaggedTensors: the slow twin of `Scorer`."""
    return CTRModel(bundle.tables(), network_of(bundle)).eval()


class StopAt:
    """A reporter that sends this process a signal after a step."""

    def __new__(cls, step: int, number: int) -> Any:
        class _Stop(Reporter):
            def advance(self, done: int, *, per_s: float, loss: float | None = None) -> None:
                if done == self.at:
                    os.kill(os.getpid(), number)

        reporter = _Stop()
        reporter.at = step
        return reporter
