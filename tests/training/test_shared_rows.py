"""Tables that share rows, from YAML to a bundle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from embank.compression.methods.unified import Unified
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.open import best_model
from embank.tables import Bundle
from tests.processes import embank
from tests.training.runs import model_of, raw_config, train, write_data

pytestmark = pytest.mark.slow

SIZES = {"genre": 90, "item": 200, "user": 500}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prepared"
    return write_data(path, single={"user": 500, "item": 200}, bags={"genre": 90})


def test_a_yaml_with_overrides_trains_evaluates_and_bundles(data: Path, tmp_path: Path) -> None:
    """Per-feature lookups and placements on top of one shared table, all through the command line."""
    tables = {
        "dim": 16,
        "method": "unified",
        "rows": 60,
        "width": 8,
        "lookups": 2,
        "overrides": {"user": {"lookups": 3}, "item": {"placement": "private"}, "genre": {"placement": "exact"}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw_config(data, tables=tables)))
    run = tmp_path / "run"
    for step in (
        ["train", "run.yaml", "--out", "run"],
        ["evaluate", "run", "--data", data, "--split", "test"],
        ["export", "run", "--out", "shipped"],
        ["inspect", "shipped"],
    ):
        done = embank(*step, cwd=tmp_path)
        assert done.returncode == 0, f"{step}: {done.stderr}"
    result = json.loads((run / "result.json").read_text())
    evaluated = json.loads((run / "evaluations.jsonl").read_text())
    assert evaluated["auc"] == result["auc"]
    with best_model(RunFolder(run), schema=Schema.load(data), data=data) as (model, _):
        methods = {method.spec.name: method for method in model.tables.built_methods()}
        placements = {}
        for name in SIZES:
            method = methods[name]
            assert isinstance(method, Unified)
            placements[name] = (method.placement, method.num_lookups, method.width)
        assert placements == {"user": ("shared", 3, 8), "item": ("private", 2, 8), "genre": ("exact", 2, 8)}
        assert {name: tuple(rows.shape) for name, rows in model.tables.weights().items()} == {
            "unified/shared/8": (60, 8),
            "item": (60, 8),
            "genre": (90, 16),
            "unified/shared/1": (60, 1),  # first-order weights: one lookup of their own dim
            "first_order/item": (60, 1),
            "first_order/genre": (90, 1),
        }
        served = model_of(Bundle(tmp_path / "shipped"))
        model.eval()
        (batch,) = Loader(data, "test", batch_size=100, shuffle=False).epoch(0)
        with torch.no_grad():
            torch.testing.assert_close(served(batch.dense, batch.sparse), model(batch.dense, batch.sparse))
    shipped = evaluate_saved(tmp_path / "shipped", data=data, split="test")
    assert shipped["auc"] == pytest.approx(result["auc"], abs=1e-9)
    assert shipped["serving_bytes"] == result["serving_bytes"]


def test_a_misspelt_option_of_one_feature_is_refused(data: Path, tmp_path: Path) -> None:
    tables = {"dim": 16, "method": "unified", "rows": 60, "overrides": {"user": {"lokups": 3}}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw_config(data, tables=tables)))
    done = embank("train", tmp_path / "run.yaml", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "unknown key 'tables.overrides.user.lokups'. Did you mean 'lookups'?" in done.stderr


SHARING: dict[str, dict[str, Any]] = {
    "unified": {},
    "compositional": {"table": "pool"},
    "memcom": {"table": "pool"},
    "hash_embedding": {"table": "pool", "num_hashes": 2},
    "robe": {"array": "pool"},
}


@pytest.mark.parametrize("method", sorted(SHARING))
def test_a_budget_for_all_features_trains_in_shared_rows(data: Path, tmp_path: Path, method: str) -> None:
    tables = {"dim": 16, "method": method, "budget": 0.4, **SHARING[method]}
    result = train(data, tmp_path / "run", tables=tables, train={"epochs": 1})
    plain = sum(4 * num * (16 + 1) for num in SIZES.values())
    assert 0.33 * plain < result["serving_bytes"] <= 0.4 * plain
    with best_model(RunFolder(tmp_path / "run"), schema=Schema.load(data), data=data) as (model, _):
        readers: dict[str, set[str]] = {}
        for built in model.tables.built_methods():
            for table in built.physical:
                readers.setdefault(table.name, set()).add(built.spec.name)
    assert any({"user", "item"} <= names for names in readers.values()), "genre has fewer than 100 ids and stays plain"
    resumed = train(data, tmp_path / "run", resume=True, tables=tables, train={"epochs": 1})
    assert resumed["auc"] == result["auc"]
    assert Bundle(tmp_path / "run" / "bundle").tables().nbytes() == result["serving_bytes"]
