"""Drift reports against what a plain count of the rows gives."""

import csv
import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embank.pipelines.cli.app import app
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.prepare.profile import TrainingNumbers, bins_of
from embank.pipelines.data.schema import Schema
from embank.pipelines.diagnosis import slices
from embank.pipelines.diagnosis.drift import Drift, FeatureDrift, drift_report, stability
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.folder import RunFolder
from embank.tables.errors import CheckpointError, ConfigError, DataError
from tests.training.runs import train

COLUMNS: dict[str, Any] = {
    "label": "click",
    "categorical": ["user", "city"],
    "multivalued": {"genres": "|"},
    "hashed": ["page"],
    "numeric": {"price": {"transform": "standard", "missing": "indicator"}},
    "split": {"by": "time", "column": "at", "ratios": [0.8, 0.1, 0.1]},
}


def write_log(path: Path, count: int, *, shift: int = 0, first_day: int = 1, times: str = "day") -> Path:
    """Rows of some days; with `shift`, other users and prices."""
    rng = random.Random(shift)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["click", "user", "city", "page", "genres", "price", "at"])
        for number in range(count):
            user = rng.randrange(shift, 20 + shift)
            day = first_day + number * 4 // count
            at = f"2024-05-{day:02d} 0{number % 10}:00" if times == "day" else str(1000 + number)
            price = "" if rng.random() < 0.2 else f"{rng.gauss(shift / 10, 1):.3f}"
            genres = "|".join(rng.sample("abcd", rng.randrange(3)))
            click = int(rng.random() < 0.2 + 0.5 * (user % 2))
            rows.writerow([click, f"u{user}", rng.choice(["Ulm", "Bonn", ""]), f"p{number % 7}", genres, price, at])
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    prepare(COLUMNS, write_log(folder / "past.csv", 500), folder / "data")
    overrides = {"page": {"method": "hash", "num_rows": 20, "budget": None}}
    train(folder / "data", folder / "run", train={"epochs": 1}, tables={"overrides": overrides})
    write_log(folder / "new.csv", 300, shift=8, first_day=20)
    prepare(None, folder / "new.csv", folder / "new", like=folder / "run", split="test")
    return folder


def of(drift: Drift) -> dict[str, FeatureDrift]:
    return {one.name: one for one in drift.features}


def test_training_rows_have_not_drifted(first: Path) -> None:
    drift = drift_report(first / "run", data=first / "data", split="train")
    assert {one.name: one.psi for one in drift.features} == {
        **dict.fromkeys(["user", "city", "genres", "price"], pytest.approx(0, abs=1e-12)),
        "page": None,
    }
    assert [(one.unknown, one.unknown_train) for one in drift.features][:2] == [(0, 0), (0, 0)]


def naive_psi(train_values: Iterable[Any], new_values: Iterable[Any]) -> float:
    then, now = Counter(train_values), Counter(new_values)
    total = 0.0
    for value in then | now:
        e, a = (max(1e-4, counts[value] / counts.total()) for counts in (then, now))
        total += (a - e) * math.log(a / e)
    return total


def test_shifts_are_those_of_plain_counts(first: Path) -> None:
    found = of(drift_report(first / "run", data=first / "new"))
    then, now = pq.read_table(first / "data/train"), pq.read_table(first / "new/test")
    for name in ("user", "city"):  # fewer ids than are told apart
        assert found[name].psi == pytest.approx(naive_psi(then[name].to_pylist(), now[name].to_pylist()))
    members = [[id for bag in table["genres"].to_pylist() for id in bag] for table in (then, now)]
    assert found["genres"].psi == pytest.approx(naive_psi(*members))
    price = next(field for field in Schema.load(first / "data").numeric if field.name == "price").training
    assert price is not None
    assert len(price.edges) >= 8
    assert found["price"].psi == pytest.approx(
        naive_psi(*(bins_of(table["price"].to_numpy(), price.edges).tolist() for table in (then, now)))
    )
    users = now["user"].to_pylist()
    assert found["user"].unknown == users.count(0) / 300 > 0.2
    assert found["user"].verdict == "much"
    assert found["city"].verdict == "stable"
    with (first / "new.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert found["city"].missing == sum(not row["city"] for row in rows) / 300
    assert found["price"].missing == sum(not row["price"] for row in rows) / 300
    assert found["genres"].missing == sum(not row["genres"] for row in rows) / 300
    assert found["page"].psi is found["page"].unknown is None
    assert found["price"].missing_train == pytest.approx(0.2, abs=0.06)
    assert "price_missing" not in found


def test_calibration_is_that_of_the_evaluation_and_of_each_day(first: Path) -> None:
    drift = drift_report(first / "run", data=first / "new")
    values = evaluate_saved(first / "run", data=first / "new", split="test")
    assert drift.metrics is not None
    assert {name: drift.metrics[name] for name in ("auc", "logloss", "calibration")} == {
        name: values[name] for name in ("auc", "logloss", "calibration")
    }
    assert drift.mean_prediction / (values["num_positive"] / 300) == pytest.approx(values["calibration"], rel=1e-6)
    assert drift.by == "day of at"
    assert [(one.name, one.num_rows) for one in drift.slices] == [(f"2024-05-{day}", 75) for day in range(20, 24)]
    labels = pq.read_table(first / "new/test")["label"].to_numpy()
    for day, one in enumerate(drift.slices):
        assert one.mean_label is not None
        assert one.mean_label == labels[75 * day : 75 * day + 75].mean()
        assert one.calibration == one.mean_prediction / one.mean_label
    assert sum(one.mean_prediction * 75 for one in drift.slices) / 300 == pytest.approx(drift.mean_prediction)
    bundle = drift_report(first / "run/bundle", data=first / "new")
    for ours, theirs in zip(drift.slices, bundle.slices, strict=True):
        assert ours.mean_prediction == pytest.approx(theirs.mean_prediction, rel=1e-6)
    assert bundle.features == drift.features


def test_calibration_by_a_feature(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drift = drift_report(first / "run", data=first / "new", by="city")
    rows = Counter({one.name: one.num_rows for one in drift.slices})
    with (first / "new.csv").open() as file:
        assert rows == Counter(row["city"] or "missing" for row in csv.DictReader(file))
    assert [one.num_rows for one in drift.slices] == sorted(rows.values(), reverse=True)
    monkeypatch.setattr(slices, "MOST_SLICES", 2)
    fewer = drift_report(first / "run", data=first / "new", by="city")
    assert [one.name for one in fewer.slices] == [*(one.name for one in drift.slices[:2]), "others"]
    assert replace(fewer.slices[2], name="") == replace(drift.slices[2], name="")
    for by, message in (("towns", "no categorical feature of"), ("genres", "has several values in a row")):
        with pytest.raises(ConfigError, match=message):
            drift_report(first / "run", data=first / "new", by=by)


def test_rows_without_labels(first: Path, tmp_path: Path) -> None:
    with (first / "new.csv").open() as file, (tmp_path / "new.csv").open("w") as out:
        out.writelines(line.partition(",")[2] for line in file)
    prepare(None, tmp_path / "new.csv", tmp_path / "new", like=first / "run", split="test", labelled=False)
    drift = drift_report(first / "run/bundle", data=tmp_path / "new", out=tmp_path / "report")
    assert drift.metrics is None
    assert "the rows have no labels, so calibration and the other metrics are left out" in drift.notes
    whole = drift_report(first / "run/bundle", data=first / "new")
    assert drift.mean_prediction == whole.mean_prediction
    first_day = drift.slices[0]
    assert (first_day.name, first_day.mean_label, first_day.calibration) == ("2024-05-20", None, None)


def test_what_is_written(first: Path, tmp_path: Path) -> None:
    drift = drift_report(first / "run", data=first / "new", out=tmp_path / "report")
    assert [file.name for file in drift.files] == ["drift.json", "drift.csv", "calibration.csv", "drift.png"]
    values = json.loads((tmp_path / "report/drift.json").read_text())
    assert values["features"][0]["psi"] == drift.features[0].psi
    with (tmp_path / "report/calibration.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [one.name for one in drift.slices]
    with (tmp_path / "report/drift.csv").open() as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == [one.verdict for one in drift.features]
    assert (tmp_path / "report/drift.png").stat().st_size > 10_000
    with pytest.raises(CheckpointError, match="exists already, and a drift report is never written over anything"):
        drift_report(first / "run", data=first / "new", out=tmp_path / "report")


def test_the_command_says_it(first: Path, tmp_path: Path) -> None:
    arguments = ["drift", str(first / "run/bundle"), "--data", str(first / "new"), "--out", str(tmp_path / "report")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    drift = drift_report(first / "run/bundle", data=first / "new")
    user = next(line.split() for line in done.output.splitlines() if line.startswith("user"))
    assert user[1:4] == [f"{of(drift)['user'].psi:.3f}", "much", f"{of(drift)['user'].unknown:.2%}"]
    assert "2024-05-20" in done.output
    assert drift.metrics is not None
    assert f"calibration {drift.metrics['calibration']:.4f}" in done.output
    assert str(tmp_path / "report/drift.png") in done.output.replace("\n", "")


@pytest.mark.slow
def test_times_that_are_numbers_give_tenths(first: Path, tmp_path: Path) -> None:
    prepare(COLUMNS, write_log(tmp_path / "past.csv", 500, times="number"), tmp_path / "data")
    prepare(None, tmp_path / "past.csv", tmp_path / "like", like=tmp_path / "data", split="test")
    overrides = {"page": {"method": "hash", "num_rows": 20, "budget": None}}
    train(tmp_path / "data", tmp_path / "run", train={"epochs": 1}, tables={"overrides": overrides})
    drift = drift_report(tmp_path / "run", data=tmp_path / "like")
    assert drift.by == "tenths of at"
    assert [(one.name, one.num_rows) for one in drift.slices][:2] == [("from 1000", 49), ("from 1049", 50)]
    assert sum(one.num_rows for one in drift.slices) == 500


def test_folders_of_earlier_versions(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first / "data", tmp_path / "old")
    values = json.loads((tmp_path / "old/schema.json").read_text())
    for field in (*values["categorical"], *values["numeric"]):
        del field["training"]
    (tmp_path / "old/schema.json").write_text(json.dumps(values | {"format_version": 1}))
    shutil.copytree(first / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/bundle")
    drift = drift_report(tmp_path / "run", data=tmp_path / "old")
    whole = of(drift_report(first / "run", data=first / "data"))
    found = of(drift)
    assert found["user"].psi == whole["user"].psi
    assert found["user"].unknown_train == 0
    assert found["price"].psi is None
    assert any("no stability index of price: the training data was prepared by an earlier" in n for n in drift.notes)
    assert any("have no times" in note for note in drift.notes)
    assert any("missing shares are left out" in note for note in drift.notes)


def test_refusals(first: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows in its valid split; those with rows: test"):
        drift_report(first / "run", data=first / "new", split="valid")
    prepare(COLUMNS, first / "new.csv", tmp_path / "anew")
    for path in (first / "run", first / "run/bundle"):
        with pytest.raises(ConfigError, match="embank prepare --like"):
            drift_report(path, data=tmp_path / "anew")
    assert RunFolder(first / "run").is_run


def test_bins_do_not_depend_on_blocks_and_are_few_where_numbers_are_equal() -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    whole, blocks = TrainingNumbers(1000), TrainingNumbers(1000)
    whole.add("x", values)
    for part in np.array_split(values, 7):
        blocks.add("x", part)
    assert whole.bins("x") == blocks.bins("x")
    edges, shares = whole.bins("x")
    assert len(edges) == 9
    np.testing.assert_allclose(shares, 0.1, atol=0.002)
    zeros = TrainingNumbers(10)
    zeros.add("x", np.zeros(10, dtype=np.float32))
    assert zeros.bins("x") == ((0.0,), (0.0, 1.0))
    large = TrainingNumbers(2**18 * 3)
    for part in np.array_split(np.arange(2**18 * 3, dtype=np.float32), 11):
        large.add("x", part)
    assert sum(map(len, large._kept["x"])) == 2**18
    np.testing.assert_array_equal(np.concatenate(large._kept["x"])[:3], [0, 3, 6])


def test_stability() -> None:
    assert stability([0.5, 0.5], [60, 40]) == pytest.approx(0.1 * math.log(0.6 / 0.5) - 0.1 * math.log(0.4 / 0.5))
    assert stability([0.5, 0.5, 0.0], [5, 5, 0]) == 0
    assert math.isfinite(stability([1.0, 0.0], [0, 10]))
    assert stability([1.0], [0]) > 0
