"""Plans, the leaderboard's arithmetic, floors, the picture: everything of a sweep that needs no training."""

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from embank.compression import build_table
from embank.pipelines.config.run import Config, parse_config
from embank.pipelines.runs.build import table_specs
from embank.pipelines.sweep.comparison import CaseResults
from embank.pipelines.sweep.drawing import auc_of, draw, front, nbytes_of, spread
from embank.pipelines.sweep.feasible import Feasibility, smallest
from embank.pipelines.sweep.folder import SweepFolder
from embank.pipelines.sweep.latency import measure_packs
from embank.pipelines.sweep.leaderboard import (
    Row,
    leaderboard,
    leaderboard_facts,
    table_columns,
    write_csv,
)
from embank.pipelines.sweep.page import write_markdown
from embank.pipelines.sweep.pareto import look_of, plot_pareto
from embank.pipelines.sweep.plan import Case, Job, Plan, grid_axes, method_names, numbers
from embank.tables import CheckpointError, ConfigError, TableCollection, method_class, registered_methods
from tests.training.runs import raw_config, write_data

OWN = [name for name in registered_methods() if not name.startswith("test_")]
"""Other tests register methods of their own."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "prepared", single={"user": 500, "item": 7})


def plan(data: Path, **changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "config": raw_config(data),
        "models": ["deepfm"],
        "methods": ["full", "hash"],
        "budgets": [0.5, 0.1],
        "seeds": [0, 1],
        "grid": {},
    }
    return Plan(**{**settings, **changes})


def test_cases_and_run_folders(data: Path) -> None:
    swept = plan(data, models=["deepfm", "dcn_v2"], grid={"train.table_lr": [0.02, 0.05], "train.lr": [0.001]})
    assert [case.name for case in swept.cases()[:3]] == ["deepfm/full/1", "deepfm/hash/0.5", "deepfm/hash/0.1"]
    assert len(swept.cases()) == 6
    points = swept.points(swept.cases()[1])
    assert [job.name for job in points] == [
        "deepfm/hash/0.5/train.table_lr=0.02,train.lr=0.001/0",
        "deepfm/hash/0.5/train.table_lr=0.05,train.lr=0.001/0",
    ]
    config = swept.config_of(points[1])
    assert (config.tables.default.method, config.tables.default.budget) == ("hash", 0.5)
    assert (config.train.table_lr, config.train.seed) == (0.05, 0)


def test_other_models_and_methods_take_what_they_know(data: Path) -> None:
    raw = raw_config(data, tables={"dim": 4, "method": "hash", "num_rows": 9, "plain_below": 3})
    swept = plan(data, config=raw, models=["dcn_v2"], methods=["full"])
    config = swept.config_of(Job(case=Case(model="dcn_v2", method="full", budget=None), seed=3, point=""))
    assert (config.model["name"], config.model["dropout"]) == ("dcn_v2", 0.2)
    assert (config.tables.default.method, config.tables.plain_below, config.train.seed) == ("full", 3, 3)


def test_a_method_with_options_is_a_line_of_its_own(data: Path) -> None:
    swept = plan(data, methods=["hash", "unified:lookups=1:exact_below=0", "unified"])
    assert [case.method for case in swept.cases()[::2]] == swept.methods
    options = swept.config_of(swept.points(swept.cases()[2])[0]).tables.default.options
    assert (options.lookups, options.exact_below) == (1, 0)
    assert swept.config_of(swept.points(swept.cases()[4])[0]).tables.default.options.exact_below == 100
    with pytest.raises(ConfigError, match="unknown key 'tables.lockups'. Did you mean 'lookups'"):
        plan(data, methods=["unified:lockups=1"])
    with pytest.raises(ConfigError, match="whose 'lookups' is not of the form key=value"):
        method_names("hash,unified:lookups")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ["deepfn"]}, "Did you mean 'deepfm'?"),
        ({"methods": []}, "--methods is empty; give at least one"),
        ({"budgets": []}, "--budgets is empty"),
        (
            {"budgets": [0.5, 0.0]},
            "--budgets holds 0; a budget is serving bytes / bytes of the plain fp32 tables and lies in",
        ),
        ({"budgets": [1.5]}, "--budgets holds 1.5"),
        ({"budgets": [float("nan")]}, "--budgets holds nan"),
        ({"seeds": [-1]}, "--seeds holds -1; a seed must be 0 or more"),
        (
            {"grid": {"train.tabel_lr": [1]}},
            "unknown key 'train.tabel_lr'. Did you mean 'table_lr'?",
        ),
    ],
)
def test_mistakes_in_a_plan(data: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan(data, **change)
    assert message in str(error.value)


def test_mistakes_in_options() -> None:
    with pytest.raises(ConfigError, match="there is no method 'hsh'; did you mean 'hash'"):
        method_names("full,hsh")
    assert method_names(" full, hash,full") == ["full", "hash"]
    assert {"full", "hash"} <= set(method_names("all"))
    with pytest.raises(ConfigError, match="--budgets is 'half'; give numbers separated by commas"):
        numbers("half", option="--budgets", kind=float)
    assert numbers("0,1,1", option="--seeds", kind=int) == [0, 1]
    assert grid_axes(["train.lr=1e-3,3e-3,1.5e-2,2.5e0", "train.decay=none,e-3"]) == {
        "train.lr": [0.001, 0.003, 0.015, 2.5],  # a text in YAML, which has no edge beyond which one could go
        "train.decay": ["none", "e-3"],
    }
    assert grid_axes(["train.lr=0.1,0.2", "model.hidden_units=[64,32],[16]"]) == {
        "train.lr": [0.1, 0.2],
        "model.hidden_units": [[64, 32], [16]],
    }
    for wrong in ("train.lr", "train.lr=", "=1,2", "train.lr=[1"):
        with pytest.raises(ConfigError, match="is not of the form KEY=VALUE,VALUE"):
            grid_axes([wrong])
    with pytest.raises(ConfigError, match="which a run's folder can't be named after"):
        grid_axes(["data.path=a/b"])


def refused(path: Path, swept: Plan, *, resume: bool) -> str:
    """What a folder that can't be opened is answered with."""
    with pytest.raises((ConfigError, CheckpointError)) as error, SweepFolder(path).opened(swept, resume=resume):
        pass
    return str(error.value)


def test_folders_that_hold_something_else(data: Path, tmp_path: Path) -> None:
    swept = plan(data)
    (tmp_path / "file").touch()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.tex").touch()
    assert "is a file; choose another --out" in refused(tmp_path / "file", swept, resume=False)
    assert "is not empty and holds no sweep" in refused(tmp_path / "files", swept, resume=False)
    assert "holds no sweep to resume; start it without --resume" in refused(tmp_path / "none", swept, resume=True)
    out = tmp_path / "sweep"
    with SweepFolder(out).opened(swept, resume=False):
        assert "another process is training in" in refused(out, swept, resume=True)
    assert "already holds a sweep; go on with --resume" in refused(out, swept, resume=False)
    other = plan(data, config=raw_config(data, train={"epochs": 9}))
    message = "was started with train.epochs = 3, the configuration now says 9"
    assert message in refused(out, other, resume=True)
    with SweepFolder(out).opened(plan(data, methods=["hash"], seeds=[5]), resume=True):
        assert yaml.safe_load((out / "sweep.yaml").read_text())["methods"] == ["hash"]


def test_a_floor_is_the_smallest_budget_that_works(data: Path) -> None:
    feasibility = Feasibility(data)
    swept = plan(data, budgets=[0.001])
    config = swept.config_of(Job(case=Case(model="deepfm", method="hash", budget=0.001), seed=0, point=""))
    refusal, floor = feasibility.refusal(config), feasibility.floor(config)
    assert refusal is not None
    assert floor is not None

    def tables(budget: float) -> TableCollection:
        changed = parse_config(raw_config(data, tables={"method": "hash", "budget": budget}))
        return TableCollection(table_specs(changed, feasibility.schema, data=data))

    built = tables(floor)
    assert built.nbytes("serving") <= floor * built.plain_nbytes
    with pytest.raises(Exception, match="floor|alone are"):
        tables(floor * 0.98)
    assert [smallest(lambda budget, least=least: budget >= least) for least in (0.3, 0.3001, 0.09996, 1e-13, 1.0)] == [
        *(0.3, 0.301, 0.1, 1e-12, 1.0)
    ]
    for near in (1e-9, 0.2999, 0.3, 0.301, 2.0):
        assert smallest(lambda budget: budget >= 0.3, near=near) == 0.3, "a wrong guess changes nothing"
    assert smallest(lambda budget: False) is smallest(lambda budget: False, near=0.5) is None


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in OWN if method_class(name).traits.allocation.takes_budget])
def test_a_method_has_one_floor_whatever_budget_was_asked(data: Path, method: str) -> None:
    def config(budget: float) -> Config:
        return parse_config(raw_config(data, tables={"method": method, "budget": budget}))

    floors, said = set(), set()
    for budget in (1e-7, 1e-5):
        feasibility = Feasibility(data)
        refusal = feasibility.refusal(config(budget))
        assert refusal is not None
        said.add(float(re.findall(r"budget ([0-9.e-]*[0-9])", refusal)[0]))
        floors.add(feasibility.floor(config(budget)))
    assert len(floors) == 1
    (floor,) = floors
    assert feasibility.refusal(config(floor)) is None
    below = float(f"{floor * 0.9949:.3g}")
    assert feasibility.refusal(config(below)) is not None
    assert len(said) == 1
    assert floor == pytest.approx(said.pop(), rel=0.011), "the message names the same floor"


def result(auc: float | None, valid: float, **changes: Any) -> dict[str, Any]:
    defaults = {
        "auc": auc,
        "logloss": 0.5,
        "valid_auc": valid,
        "serving_bytes": 100,
        "serving_ratio": 0.1,
        "nominal_ratio": None,
        "training_bytes": 400,
        "train_seconds": 2.0,
        "num_samples": 1000,
        "samples_per_s": 500.0,
    }
    return {**defaults, **changes}


def results(
    method: str, budget: float | None, aucs: dict[int, float | None], valid: float, **changes: Any
) -> CaseResults:
    by_seed = {seed: result(auc, valid, **changes) for seed, auc in aucs.items()}
    case = Case(model="deepfm", method=method, budget=budget)
    return CaseResults(case=case, point="", by_seed=by_seed, failures={}, failed_points={})


def test_means_deviations_and_paired_differences() -> None:
    rng = np.random.default_rng(0)
    aucs = {name: rng.normal(0.8, 0.01, 3) for name in ("hash", "frequency_cut", "mine")}
    entries = [
        results(name, 0.1, dict(enumerate(values.tolist())), valid={"frequency_cut": 0.9}.get(name, 0.8))
        for name, values in aucs.items()
    ]
    entries.append(results("mine", 0.5, {0: 0.85, 1: None}, valid=0.8, serving_bytes=300))
    hashed, cut, mine, other_size = leaderboard(entries)
    assert mine.auc == pytest.approx(aucs["mine"].mean())
    assert mine.auc_sd == pytest.approx(aucs["mine"].std(ddof=1))
    gain = aucs["mine"] - aucs["hash"]
    assert (mine.minus_hash, mine.minus_hash_sd) == pytest.approx((gain.mean(), gain.std(ddof=1)))
    assert mine.minus_hash_bytes_ratio == 1
    gain = aucs["mine"] - aucs["frequency_cut"]
    assert mine.best_baseline == "frequency_cut", "the best one by validation, whatever the test split says"
    assert (mine.minus_best_baseline, mine.minus_best_baseline_sd) == pytest.approx((gain.mean(), gain.std(ddof=1)))
    assert (hashed.minus_hash, hashed.best_baseline) == (None, "frequency_cut")
    assert (cut.best_baseline, cut.minus_best_baseline) == ("hash", cut.minus_hash)
    assert (other_size.auc, other_size.auc_sd) == (0.85, None)
    assert other_size.minus_hash == pytest.approx(0.85 - aucs["hash"][0])
    assert other_size.minus_hash_bytes_ratio == pytest.approx(1 / 3)


def test_a_method_is_compared_at_its_true_bytes() -> None:
    def hashed(budget: float, nbytes: int, auc: float) -> CaseResults:
        return results("hash", budget, {0: auc, 1: auc + 0.02}, valid=auc, serving_bytes=nbytes)

    mine = results("mine", 0.5, {0: 0.8, 1: 0.85}, valid=0.8, serving_bytes=200)  # asked for a half, took a fifth
    sizes = [hashed(0.5, 500, 0.82), hashed(0.4, 400, 0.78), hashed(0.1, 100, 0.70)]
    row = leaderboard([*sizes, mine])[-1]
    assert row.minus_hash == pytest.approx(((0.8 - 0.74) + (0.85 - 0.76)) / 2), "half way between 100 and 400 bytes"
    assert row.minus_hash_sd == pytest.approx(0.03 / 2**0.5)
    assert row.minus_hash_bytes_ratio == 1

    row = leaderboard([*sizes, hashed(0.2, 204, 0.9), mine])[-1]
    assert row.minus_hash == pytest.approx(((0.8 - 0.9) + (0.85 - 0.92)) / 2), "2% more bytes are the same size"

    row = leaderboard([*sizes[:2], mine])[-1]
    assert row.minus_hash == pytest.approx(((0.8 - 0.78) + (0.85 - 0.80)) / 2)
    assert row.minus_hash_bytes_ratio == 2
    assert table_columns([row])["AUC − hash"] == ["+0.0350 ± 0.0212 (2 times the bytes)"]

    cut = results("frequency_cut", 0.2, {0: 0.7, 1: 0.7}, valid=0.6, serving_bytes=200)
    row = leaderboard([*sizes[:2], cut, mine])[-1]
    assert row.best_baseline == "frequency_cut", (
        "a baseline of the same size, though a larger one has a better validation"
    )
    row = leaderboard([*sizes, cut, mine])[-1]
    assert row.best_baseline == "hash", "its validation at 200 bytes, .74, is better than .6"

    narrow = results("uniform_dim", 0.5, {0: 0.9, 1: 0.9}, valid=0.9, serving_bytes=6300)
    near = [
        results(name, 0.2, {0: 0.7, 1: 0.7}, valid=valid, serving_bytes=nbytes)
        for name, valid, nbytes in (("hash", 0.6, 260), ("frequency_cut", 0.7, 265))
    ]
    row = leaderboard([narrow, *near, mine])[-1]
    assert row.best_baseline == "frequency_cut", "nobody has the size: the better of the two that are nearest"

    other_model = replace(mine, case=replace(mine.case, model="fm"))
    assert leaderboard([*sizes, other_model])[-1].minus_hash is None
    sized = replace(sizes[1], case=Case(model="deepfm", method="hash:num_rows=9", budget=None))
    row = leaderboard([sized, mine])[-1]
    assert (row.minus_hash, row.minus_hash_bytes_ratio) == (pytest.approx(0.035), 2)


def test_every_line_of_a_leaderboard_keeps_what_it_says() -> None:
    """Whatever the results are: lines in order, means within their runs, nothing compared with itself, the front on
    validation."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        entries = [
            results(
                str(method),
                float(budget),
                {seed: float(rng.uniform(0.5, 0.9)) for seed in rng.permutation(4)[: rng.integers(1, 5)].tolist()},
                valid=float(rng.uniform(0.5, 0.9)),
                serving_bytes=int(rng.integers(50, 2000)),
            )
            for method in rng.permutation(["hash", "frequency_cut", "uniform_dim", "mine", "yours"])
            for budget in (0.5, 0.1)
        ]
        rows = leaderboard(entries)
        assert [(row.method, row.budget) for row in rows] == [(e.case.method, e.case.budget) for e in entries]
        hashed = [entry for entry in entries if entry.case.method == "hash"]
        for row, entry in zip(rows, entries, strict=True):
            aucs = [run["auc"] for run in entry.by_seed.values()]
            assert row.auc is not None
            assert min(aucs) <= row.auc <= max(aucs)
            assert (row.auc_sd is None) == (len(aucs) == 1)
            assert row.best_baseline != row.method, "no line is compared with itself"
            if row.method == "hash":
                assert (row.minus_hash, row.minus_hash_bytes_ratio) == (None, None)
            elif min(e.nbytes for e in hashed) <= entry.nbytes <= max(e.nbytes for e in hashed):
                assert row.minus_hash_bytes_ratio == 1
            else:
                nearest = min((e.nbytes / entry.nbytes for e in hashed), key=lambda ratio: abs(np.log(ratio)))
                assert row.minus_hash_bytes_ratio == (1 if abs(np.log(nearest)) <= np.log(1.05) else nearest)
        for row in front(rows):
            assert row.serving_bytes is not None
            assert row.valid_metric is not None
            smaller = [r.valid_metric for r in rows if (r.serving_bytes or 0) <= row.serving_bytes]
            assert row.valid_metric == max(filter(None, smaller)), (
                "no table of its size or smaller is better on validation"
            )


def test_the_facts_say_what_there_was(tmp_path: Path) -> None:
    def facts(rows: list[Row], num_jobs: int = 2, num_cores: int = 2) -> str:
        return "\n".join(leaderboard_facts(rows, data=tmp_path, num_jobs=num_jobs, num_cores=num_cores))

    one = leaderboard([results("hash", 0.5, {3: 0.7}, valid=0.7)])
    assert f"`{tmp_path}`, seed 3; checkpoints" in facts(one)
    assert "deviation" not in facts(one)
    assert "1 run at a time had 2 cores." in facts(one, num_jobs=1)
    assert "1 run at a time had 1 core." in facts(one, num_jobs=1, num_cores=1)
    assert "2 runs at a time shared 2 cores." in facts(one)
    two = leaderboard([results("hash", 0.5, {0: 0.7, 1: 0.8}, valid=0.7)])
    assert "mean ± sample deviation over the seeds 0, 1; checkpoints" in facts(two)
    assert "seeds" not in table_columns(two)
    assert "mean ± sample deviation over the seeds of each line" in facts([*one, *two])
    assert table_columns([*one, *two])["seeds"] == ["3", "0, 1"]


def test_a_method_looks_the_same_in_every_picture() -> None:
    every = [name for name in OWN if name != "full"]
    looks = {name: look_of(name, every) for name in every}
    assert len({(look.color, look.marker, look.is_hollow) for look in looks.values()}) == len(every)
    for name in every:
        assert look_of(name, [name]) == looks[name], "alone as among all"
        assert look_of(name, [*reversed(every), "another"]) == looks[name]
    variants = ["unified:lookups=2", "unified:lookups=4"]
    two, four = (look_of(name, variants) for name in variants)
    assert two.color == four.color == looks["unified"].color
    assert (two.marker, two.label) != (four.marker, four.label)
    assert look_of("somebody's", ["somebody's"]) == look_of("somebody's", [*every, "somebody's"])


def test_files(tmp_path: Path) -> None:
    refused = CaseResults(
        case=Case(model="deepfm", method="hash", budget=0.001),
        point="",
        by_seed={},
        failures={},
        failed_points={},
        refusal="too small",
        floor=0.0123,
    )
    failed = CaseResults(
        case=Case(model="deepfm", method="mine", budget=0.5),
        point="",
        by_seed={},
        failures={"deepfm/mine/0.5/0": "the disk is full"},
        failed_points={},
    )
    rows = leaderboard([results("full", None, {0: 0.8, 1: 0.9}, valid=0.8), refused, failed])
    assert [row.status for row in rows] == ["complete", "infeasible", "failed"]
    write_csv(rows, tmp_path / "l.csv")
    with (tmp_path / "l.csv").open() as file:
        read = list(csv.DictReader(file))
    assert float(read[0]["auc"]) == pytest.approx(0.85)
    assert read[1]["note"] == "infeasible: floor 0.0123"
    assert read[1]["auc"] == ""
    write_markdown(rows, tmp_path / "l.md", title="T", facts=["a fact"])
    text = (tmp_path / "l.md").read_text()
    assert "| full | **0.8500 ± 0.0707 (0.1)** |" in text
    assert "| hash |  |  | floor 0.0123 |" in text
    assert "- deepfm, mine: deepfm/mine/0.5/0 failed: the disk is full" in text
    assert "nominal" not in table_columns(rows), "a column without a figure is left out"
    plot_pareto(rows, tmp_path / "p.png", title="T")
    plot_pareto(rows[1:], tmp_path / "empty.png", title="T")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_bytes_that_are_nearly_the_same_lie_above_each_other(tmp_path: Path) -> None:
    """All methods at one budget: their last bytes filled an axis without a tick."""
    rows = leaderboard([results(name, 0.1, {0: 0.8}, valid=0.8) for name in ("hash", "mde")])
    ends = []

    def panel(axes: Any, own: Sequence[Row]) -> None:
        axes.plot([nbytes_of(row) for row in own], [auc_of(row) for row in own], "o")
        ends.append(axes.get_xlim())

    draw(rows, tmp_path / "p.png", title="T", models=[rows[0].model], size=(4, 3), panel=panel)
    ((low, high),) = ends
    assert high >= 4 * low


def test_the_pareto_front_is_chosen_on_validation() -> None:
    points = {"a": (100, 0.8), "b": (100, 0.7), "c": (200, 0.75), "d": (300, 0.9), "e": (50, 0.5), "f": (400, 0.9)}
    rows = leaderboard(
        [
            results(name, None, {0: 1 - valid}, valid=valid, serving_bytes=nbytes)
            for name, (nbytes, valid) in points.items()
        ]
    )
    assert [row.method for row in front(rows)] == ["e", "a", "d"], "the test split says the opposite"


@pytest.mark.parametrize("seed", range(20))
def test_labels_never_touch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gap = 0.04
    for count in (1, 5, 24):
        wanted = np.sort(rng.uniform(0, 1, count) ** rng.choice([0.05, 1.0, 5.0]))
        placed = spread(wanted.tolist(), gap=gap)
        assert np.all(np.diff(placed) >= gap - 1e-9)
        assert -1e-9 <= placed[0] <= placed[-1] <= 1 + 1e-9
        if count == 1 or np.diff(wanted).min() >= gap:
            assert placed == pytest.approx(wanted.tolist())


def test_latency_counts_ids_and_rows() -> None:
    table = build_table(method="hash", num_embeddings=5000, embedding_dim=8, budget=0.5).pack().table
    ids = torch.randint(0, 5000, (4096,))
    one, three = measure_packs([(table, ids)]), measure_packs([(table, ids)] * 3)
    for speed in (one, three):
        assert 0.5 < speed.us_per_id < 5000
        assert 4096 / 1.0 < speed.rows_per_s < 1e10
    assert 1e6 / one.us_per_id < one.rows_per_s, "a lookup of many ids is cheaper per id"
