"""Folders and features whose names are patterns elsewhere: everything reads the very file that is named."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embank.pipelines import compress_vectors, load_model, load_vectors, predict, prepare
from embank.pipelines.runs import predict as predicting
from tests.training.runs import train

NAMES = ("tags[0]", "tags0", "tags?")
CONFIG = {"label": "click", "categorical": list(NAMES), "split": {"by": "ratio"}}


def write_log(path: Path, prefix: str) -> Path:
    rows = {name: [f"{prefix}{name}{number % 5}" for number in range(300)] for name in NAMES}
    pl.DataFrame({"click": [number % 2 for number in range(300)], **rows}).write_csv(path)
    return path


def test_from_a_log_to_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside each folder lies the one that its name would match as a pattern."""
    for folder, prefix in (("day1", "A"), ("day[1]", "B")):
        log = write_log(tmp_path / f"{prefix}.csv", prefix)
        prepare(CONFIG, log, tmp_path / folder, format="csv")
        run = tmp_path / f"run-{folder}"
        train(tmp_path / folder, run, model={"name": "fm"}, train={"epochs": 1, "num_threads": 1})
    model = load_model(tmp_path / "run-day[1]")
    for name in NAMES:
        assert (model.ids_of(name, [f"B{name}{number}" for number in range(5)]) > 0).all()
        assert (model.ids_of(name, [f"A{name}0"]) == 0).all()
    monkeypatch.setattr(predicting, "BATCH_ROWS", 50)
    monkeypatch.setattr(predicting, "PART_ROWS", 1)
    outs = [tmp_path / name / "s.csv" for name in ("scores1", "scores[1]", "scores*")]
    for out in outs:
        out.parent.mkdir()
        done = predict(tmp_path / "run-day[1]", tmp_path / "B.csv", out)
        assert (done.num_rows, set(done.num_unknown.values())) == (300, {0})
    assert len({out.read_bytes() for out in outs}) == 1
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    for folder, prefix in (("v1", "A"), ("v[1]", "B")):
        file = tmp_path / f"{folder}.parquet"
        pl.DataFrame({"id": [f"{prefix}{number}" for number in range(40)], "v": vectors.tolist()}).write_parquet(file)
        compress_vectors(file, tmp_path / folder, codec="int8", num_queries=10)
    keys = load_vectors(tmp_path / "v[1]").keys
    assert keys is not None
    assert keys[3] == "B3"


def test_every_file_is_read_by_its_name() -> None:
    """polars takes `[`, `?` and `*` in a path as a pattern, unless it is told otherwise."""
    root = Path(__file__).parents[2]
    for package in ("tables", "compression", "ctr_models", "pipelines", "search"):
        for file in sorted((root / package).rglob("*.py")):
            for number, line in enumerate(file.read_text().splitlines(), start=1):
                if "pl.read_parquet(" in line or "pl.scan_parquet(" in line:
                    assert "glob=False" in line or ">>>" in line, (
                        f"{os.path.relpath(file, root)}:{number}: {line.strip()}"
                    )
