"""`embank advise` before training and `embank diagnose` after it, on small runs."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from embank.compression.multiplexing.specs import advise, unified_specs
from embank.pipelines.sizing.advice import advise_config, advise_specs
from embank.tables import TableCollection, TableSpec
from tests.processes import embank
from tests.training.runs import config, raw_config, train, write_data

pytestmark = pytest.mark.slow

UNIFIED = {"dim": 8, "method": "unified", "rows": 40, "width": 4, "exact_below": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "prepared")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_advise_prints_what_the_closed_forms_say(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw_config(data, tables=UNIFIED, model={"name": "fnn"})))
    done = embank("advise", tmp_path / "run.yaml", "--set", "tables.overrides={user: {lookups: 3, width: 4}}")
    assert done.returncode == 0, done.stderr
    sizes = {"genre": 9, "item": 7, "user": 50}
    expected = advise(
        unified_specs(
            rows=40,
            width=4,
            lookups={"genre": 2, "item": 2, "user": 3},
            num_embeddings=sizes,
            embedding_dim=8,
            exact_below=8,
        )
    )
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert lines["table"] == [
        "table",
        "method",
        "placement",
        "ids",
        "lookups/example",
        "row",
        "bytes",
        "intra",
        "merged",
        "inter",
    ]
    for feature in expected.features:
        rates = [f"{rate:.2%}" for rate in (feature.intra, feature.merged, feature.inter) if rate is not None]
        assert lines[feature.name][1:4] == ["unified", feature.placement, str(sizes[feature.name])]
        assert lines[feature.name][6:] == rates
    assert lines["user"][5] == f"{4 * 40 * 4:,}"
    assert f"serving: {expected.serving_nbytes:,} bytes" in done.stdout
    assert f"warning: {expected.warnings[0]}" in done.stdout
    assert not (tmp_path / "run").exists()


def test_bytes_and_lookups_are_those_of_a_collection(data: Path) -> None:
    counts = {"a": torch.tensor([0, 300, 100, 50]), "b": torch.tensor([10, 90])}
    specs = [
        *unified_specs(rows=40, width=4, lookups={"x": 2}, num_embeddings={"x": 700}),
        TableSpec(name="a", num_embeddings=4, embedding_dim=8, feature_names=["a"], counts=counts["a"]),
        TableSpec(
            name="b", num_embeddings=2, embedding_dim=8, feature_names=["b"], method="memcom", counts=counts["b"]
        ),
    ]
    advice = advise_specs(specs, num_samples=100)
    tables = TableCollection(specs)
    assert advice.row_nbytes == sum(4 * rows.numel() for rows in tables.weights().values())
    assert [table.lookups for table in advice.tables] == [2, 4.5, 2]
    assert advice.lookups == 8.5
    assert advice.serving_nbytes is None, "known after packing only"
    assert advise_specs(specs[:2], num_samples=100).serving_nbytes == TableCollection(specs[:2]).nbytes("serving")


def test_a_budget_is_shared_before_it_is_advised_on(data: Path) -> None:
    advice = advise_config(config(data, tables={"dim": 8, "method": "unified", "budget": 0.4, "plain_below": 0}))
    assert advice.serving_nbytes is not None
    assert 0.3 * advice.plain_nbytes < advice.serving_nbytes <= 0.4 * advice.plain_nbytes


def test_advise_refuses_what_training_would(tmp_path: Path, data: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw_config(data, tables={**UNIFIED, "width": 3})))
    done = embank("advise", tmp_path / "run.yaml")
    assert done.returncode == 2
    assert "has dim 8, which is no multiple of its width 3" in done.stderr


def test_diagnose_writes_figures_and_pictures(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(data, run, tables=UNIFIED, model={"name": "dcn_v2", "hidden_units": [8], "num_cross_layers": 1})
    done = embank("diagnose", run)
    assert done.returncode == 0, done.stderr
    overlap = read_csv(run / "diagnosis" / "reader_overlap.csv")
    assert len(overlap) == 2 * 2 * 2, "cross and deep, over the two features that share the table"
    assert {row["table"] for row in overlap} == {"unified/shared/4"}
    for row in overlap:
        value = float(row["overlap"])
        assert row["initial"] != row["overlap"] or row["feature"] == row["other"]
        assert value == pytest.approx(1) if row["feature"] == row["other"] else 0 < value < 1
    ranks = read_csv(run / "diagnosis" / "reader_ranks.csv")
    assert [(row["layer"], row["feature"], row["lookup"]) for row in ranks[:3]] == [
        ("cross", "genre", "0"),
        ("cross", "genre", "1"),
        ("cross", "user", "0"),
    ]
    assert all(1 <= float(row["effective_rank"]) <= 4.001 for row in ranks)
    traffic = {row["table"]: row for row in read_csv(run / "diagnosis" / "row_traffic.csv")}
    assert next(iter(traffic)) == "unified/shared/4", "shared tables come first"
    assert traffic["unified/shared/4"]["features"] == "2"
    assert traffic["item"]["lookups"] == "600"
    norms = read_csv(run / "diagnosis" / "row_norms.csv")
    assert [row["decile"] for row in norms] == [str(decile) for decile in range(1, 11)]
    assert float(norms[0]["final"]) > float(norms[0]["initial"])
    for name in ("reader_overlap", "row_traffic"):
        assert (run / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "unified/shared/4" in done.stdout
    assert "binary cross entropy only" in done.stdout


def test_diagnose_says_where_overlap_is_not_defined(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", tables=UNIFIED, model={"name": "dlrm", "bottom": [8], "top": [8]})
    before = sorted((tmp_path / "run").rglob("*"))
    done = embank("diagnose", tmp_path / "run", "--out", tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert "overlap of readers and the rank budget are not defined for model 'dlrm'" in done.stdout
    assert sorted(path.name for path in (tmp_path / "elsewhere").rglob("*.*")) == [
        "row_norms.csv",
        "row_traffic.csv",
        "row_traffic.png",
    ]
    assert sorted((tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize("model", [{"name": "lr"}, {"name": "deepfm", "hidden_units": [8]}])
@pytest.mark.parametrize("method", ["full", "tt_rec", "dhe", "hash_embedding"])
def test_diagnose_takes_other_methods_and_models(
    data: Path, tmp_path: Path, model: dict[str, object], method: str
) -> None:
    from embank.pipelines.diagnosis.diagnose import diagnose_run

    train(data, tmp_path / "run", tables={"dim": 8, "method": method}, model=model, train={"epochs": 1})
    found = diagnose_run(tmp_path / "run")
    assert bool(found.overlaps) == (model["name"] == "deepfm")
    assert all(overlap.table is None for overlap in found.overlaps)
    assert (not found.traffic) == (method == "dhe")


def test_diagnose_refuses_what_is_no_run(data: Path, tmp_path: Path) -> None:
    done = embank("diagnose", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "holds no run" in done.stderr
