"""What faults are put into: a raw log, prepared data, a run that was stopped, one that is complete, a bundle; and their
figures."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.faults.commands import Ended, embank

COLUMNS: dict[str, Any] = {
    "label": {"column": "click"},
    "categorical": ["user", "item"],
    "multivalued": {"tags": "|"},
    "numeric": {"price": "standard"},
    "split": {"by": "ratio", "ratios": [0.6, 0.2, 0.2]},
    "group": "user",
    "row_group_rows": 128,
}
CONFIG: dict[str, Any] = {
    "model": {"name": "deepfm", "hidden_units": [8], "dropout": 0.2},
    "tables": {"dim": 4},
    "train": {"epochs": 2, "table_lr": 0.05, "num_threads": 1, "checkpoint_every": 3},
}
FIGURES = ("auc", "logloss", "gauc", "valid_auc", "best_step", "num_steps", "serving_bytes")


class Place:
    """A folder with one of each, made once.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log, self.columns, self.config = folder / "log.csv", folder / "columns.yaml", folder / "run.yaml"
        self.data, self.whole, self.stopped, self.bundle = (folder / n for n in ("data", "whole", "stopped", "bundle"))
        write_log(self.log)
        self.columns.write_text(yaml.safe_dump(COLUMNS))
        self.config.write_text(yaml.safe_dump({"data": {"path": str(self.data), "batch_size": 64}, **CONFIG}))
        self.must(*self.prepare(self.data))
        self.must(*self.train(self.whole))
        self.must("export", self.whole, "--out", self.bundle)
        self.stop()
        self.figures = figures_of(self.whole)

    def stop(self) -> None:
        """A run as a kill leaves it: complete but for its end."""
        shutil.copytree(self.whole, self.stopped)
        for name in ("result.json", "bundle", "checkpoints", "plots"):
            path = self.stopped / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        from embank.pipelines.config.run import load_config
        from embank.pipelines.train.interrupt import InterruptedRunError
        from embank.pipelines.train.trainer import Trainer
        from tests.training.test_resume import StopAt

        shutil.rmtree(self.stopped)
        try:
            Trainer(load_config(self.config), self.stopped, reporter=StopAt(8, 15)).train()
        except InterruptedRunError:
            return
        raise AssertionError("the run was not stopped")

    def prepare(self, out: Path, *more: object) -> list[object]:
        """Arguments of `embank prepare`."""
        return ["prepare", "--format", "csv", "--input", self.log, "--config", self.columns, "--out", out, *more]

    def train(self, out: Path, *more: object, data: Path | None = None) -> list[object]:
        """Arguments of `embank train`."""
        moved = [] if data is None else ["--set", f"data.path={data}"]
        return ["train", self.config, "--out", out, *moved, *more]

    def must(self, *arguments: object) -> Ended:
        """A command that has to end well."""
        ended = embank(*arguments, log=self.folder / "log.txt")
        assert ended.code == 0, ended.output
        return ended

    def copy(self, what: Path, name: str) -> Path:
        """A copy to break."""
        target = self.folder / "broken" / name
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(what, target))


def write_log(path: Path, *, rows: int = 800, seed: int = 0) -> None:
    """Clicks that follow user and item."""
    draw = random.Random(seed)
    lines = ["click,user,item,tags,price"]
    for _ in range(rows):
        user, item = draw.randrange(20), draw.randrange(9)
        click = int(draw.random() < 0.15 + 0.7 * ((user + item) % 3 == 0))
        tags = "|".join(f"t{draw.randrange(6)}" for _ in range(draw.randrange(4)))
        lines.append(f"{click},u{user},i{item},{tags},{draw.random():.3f}")
    path.write_text("\n".join(lines) + "\n")


def figures_of(run: Path) -> dict[str, Any]:
    """The figures of a complete run that don't depend on the clock."""
    result = json.loads((run / "result.json").read_text())
    return {key: result.get(key) for key in FIGURES}


def last_evaluation(file: Path) -> dict[str, Any]:
    """AUC and log loss of the last line of an evaluations.jsonl."""
    record = json.loads(file.read_text().splitlines()[-1])
    return {key: record[key] for key in ("auc", "logloss")}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
