"""Whole searches: from a configuration to the best one, resumed, shared, by training."""

import csv
import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from tests.search.supernets import plan_of, scored, searched
from tests.told import Told
from tests.training.runs import write_data
from typer.testing import CliRunner

from embank.pipelines.cli.app import app
from embank.pipelines.config.run import parse_config
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import id_counts, served_nbytes, table_specs
from embank.pipelines.runs.evaluate import figures_of
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.search.configspace import config_space
from embank.pipelines.search.dashboard import dashboard
from embank.pipelines.search.methodspace import FeatureMethodSpace
from embank.pipelines.search.report import markdown
from embank.pipelines.search.retrain import Entry, kendall_tau
from embank.pipelines.search.search import Search
from embank.tables import BudgetError, CheckpointError, ConfigError, TableCollection

PICTURES = ("pareto.png", "history.png", "importance.png", "slices.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "prepared")


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[float | None, optuna.Study]]:
    out = tmp_path_factory.mktemp("searches") / "search"
    return out, Search(plan_of(data, out), out).run()


@pytest.mark.slow
def test_codecs_of_features(data: Path) -> None:
    """Bytes are those that are served by the configuration that trains a candidate, weights per id included."""
    config = searched(data, model={"name": "deepfm"})
    methods = ["full", "hash", "frequency_cut"]
    space = FeatureMethodSpace(config, methods=methods, shares=[0.01, 0.3], codecs=["fp32", "int4"])
    schema = Schema.load(data)
    rng = Random(0)
    for genes in [space.floor(), *(space.draw(rng) for _ in range(8))]:
        candidate = space.decode(genes)
        made = space.config(candidate)
        specs = table_specs(made, schema, data=data, counts=id_counts(schema, data=data))
        assert space.nbytes(candidate) == served_nbytes(made, TableCollection(specs, backend="torch")), candidate
    few = FeatureMethodSpace(config, methods=["hash"], shares=[0.2], codecs=["fp32"])
    coded = FeatureMethodSpace(config, methods=["hash"], shares=[0.2], codecs=["int4"])
    assert coded.nbytes_of(coded.floor()) <= few.nbytes_of(few.floor())
    with pytest.raises(ConfigError, match="only known once rows are trained"):
        FeatureMethodSpace(config, methods=["full"], shares=[0.5], codecs=["dedup"])


@pytest.mark.slow
def test_a_search_ends_with_a_model_within_the_budget(data: Path, done: tuple[Path, Any]) -> None:
    out, studies = done
    (study,) = studies.values()
    with scored(out / "supernet", data, row_levels=6) as (_, space, scorer):
        allowed = space.allowed_nbytes(0.4)
        trials = [t for t in study.trials if t.state == TrialState.COMPLETE]
        assert len(trials) == 8
        simple = space.simple_candidates(allowed)
        first = [trial.user_attrs["candidate"] for trial in trials[: len(simple)]]
        assert first == list(simple.values()), "enqueued: first and unchanged"
        assert all(t.user_attrs["nbytes"] <= allowed for t in trials)
        best = study.best_trial
        assert scorer(space.shapes(best.user_attrs["candidate"])) == best.value  # what was stored is what it scores
        with (out / "candidates.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["name"] for row in rows] == ["1", *simple]
        for row in rows:
            results = [RunFolder(run).read_result() for run in (out / "runs").glob(f"{row['nbytes']}-*/0")]
            assert all(result["serving_bytes"] == int(row["nbytes"]) <= allowed for result in results)
            figures = [(result["auc"], result["valid_auc"]) for result in results]
            assert (float(row["auc"]), float(row["validation"])) in figures
            assert float(row["share"]) == int(row["nbytes"]) / space.plain_nbytes
        assert f"of the plain fp32 tables of dim 8, {space.plain_nbytes:,} bytes" in (out / "results.md").read_text()
        chosen = max(rows, key=lambda row: float(row["validation"]))
        assert chosen["is_best"] == "True"
        config = parse_config(yaml.safe_load((out / "best.yaml").read_text()))
        assert config.tables.of("user").dim == int(chosen["width.user"])
    for name in PICTURES:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert "**best**" in (out / "results.md").read_text()


@pytest.mark.slow
def test_a_search_goes_on_with_more_trials_and_refuses_another(data: Path, done: tuple[Path, Any]) -> None:
    out, _ = done
    with pytest.raises(ConfigError, match="already holds a search"):
        Search(plan_of(data, out), out).run()
    with pytest.raises(ConfigError, match="has sampler 'ea', this one 'random'"):
        Search(plan_of(data, out, sampler="random"), out).run(resume=True)
    with pytest.raises(ConfigError, match="has space 'rows', this one 'widths'"):
        Search(plan_of(data, out, space="widths", budgets=[0.9]), out).run(resume=True)
    told = Told()
    (study,) = Search(plan_of(data, out, num_trials=11), out, reporter=told).run(resume=True).values()
    assert sum(t.state == TrialState.COMPLETE for t in study.trials) == 11
    assert "11 trials, best" in told.notes[1]


@pytest.mark.slow
def test_a_study_of_another_supernet_is_refused_by_name(data: Path, done: tuple[Path, Any], tmp_path: Path) -> None:
    out, _ = done
    storage = str(out / "study.journal")
    shared = plan_of(data, tmp_path / "same", storage=storage, supernet=str(out / "supernet"), num_trials=11)
    Search(shared, tmp_path / "same").run()  # joins, since it is the same search
    other = plan_of(data, tmp_path / "other", storage=storage, sections={"train": {"epochs": 1, "seed": 1}})
    with pytest.raises(CheckpointError, match=r"was made with supernet '\w+'; this search has supernet '\w+'"):
        Search(other, tmp_path / "other").run()


@pytest.mark.slow
def test_a_supernet_that_is_none_leaves_nothing_behind(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "search"
    with pytest.raises(CheckpointError, match="nowhere"):
        Search(plan_of(data, out, supernet=str(tmp_path / "nowhere")), out).run()
    assert not out.exists()


@pytest.mark.slow
def test_workers_share_the_trials(data: Path, done: tuple[Path, Any], tmp_path: Path) -> None:
    out, _ = done
    settings = {"supernet": str(out / "supernet"), "num_trials": 40, "workers": 2, "num_retrained": 0}
    plan = plan_of(data, tmp_path / "two", storage=f"sqlite:///{tmp_path / 'two.db'}", **settings)
    (study,) = Search(plan, tmp_path / "two").run().values()
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert len(complete) == 40
    assert len({t.user_attrs["embank:lease"]["pid"] for t in complete if "embank:lease" in t.user_attrs}) == 2
    with scored(out / "supernet", data, row_levels=6) as (_, space, scorer):
        bundle = tmp_path / "two" / "best-bundle"
        candidate = study.best_trial.user_attrs["candidate"]
        figures = figures_of(bundle, data=data, split="valid")
        assert figures["auc"] == pytest.approx(scorer(space.shapes(candidate)), abs=1e-6)
        assert figures["serving_bytes"] == space.nbytes(candidate)
    more = plan_of(data, tmp_path / "two", storage=plan.storage, **{**settings, "num_trials": 41, "workers": 1})
    Search(more, tmp_path / "two").run(resume=True)
    assert bundle.is_dir()


@pytest.mark.slow
def test_a_front_has_the_best_of_every_size(data: Path, done: tuple[Path, Any], tmp_path: Path) -> None:
    out, _ = done
    settings = {"supernet": str(out / "supernet"), "budgets": [0.6, 0.3], "front": True, "sampler": "nsga2"}
    plan = plan_of(data, tmp_path / "front", num_trials=30, num_retrained=0, **settings)
    studies = Search(plan, tmp_path / "front").run()
    assert len({id(study) for study in studies.values()}) == 1
    study = studies[0.6]
    front = sorted((t.values[1], t.values[0]) for t in study.best_trials)
    assert [score for _, score in front] == sorted(score for _, score in front)
    assert not any(t.intermediate_values for t in study.trials)  # several objectives can't be pruned
    assert (tmp_path / "front" / "best-0.3.yaml").is_file()


@pytest.mark.slow
def test_whole_configurations_are_trained(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "full"
    space = tmp_path / "space.yaml"
    methods = ["uniform_dim", "searched", "full"]
    space.write_text(
        yaml.safe_dump({"space": "full", "tables.method": methods, "tables.dim": [4, 8], "train.lr": [0.01]})
    )
    plan = plan_of(data, out, space=str(space), sampler="tpe", num_trials=4, sections={"train": {"epochs": 2}})
    (study,) = Search(plan, out).run().values()
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert complete
    first = study.trials[0].user_attrs
    assert first["candidate"]["tables.method"] == "uniform_dim"
    second = study.trials[1].user_attrs
    assert second["candidate"]["tables.method"] == "searched"
    trained = parse_config(RunFolder(second["run"]).read_config()).tables
    assert trained.alignment == "pad"
    assert sum(t.number > 1 and "infeasible" in t.user_attrs for t in study.trials) == sum(
        t.user_attrs["candidate"]["tables.method"] == "full" for t in study.trials
    )
    for trial in complete:
        result = RunFolder(trial.user_attrs["run"]).read_result()
        assert trial.value == result["valid_auc"]
        assert result["serving_bytes"] <= trial.user_attrs["nbytes"]
    best = parse_config(yaml.safe_load((out / "best.yaml").read_text()))
    chosen = study.best_trial.user_attrs["candidate"]["tables.method"]
    assert best.tables.default.method == ("full" if chosen == "searched" else chosen)
    assert (out / "slices.png").is_file()


@pytest.mark.slow
def test_the_same_training_is_not_made_twice_and_several_seeds_decide(data: Path, tmp_path: Path) -> None:
    """Within a budget that holds all tables as coded plain ones, the method plays no part."""
    out = tmp_path / "full"
    plan = plan_of(data, out, space="full", sampler="random", budgets=(0.9,), num_trials=2, num_retrained=2)
    options = {"tables.method": ["hash", "compositional"], "tables.codec": ["int4"], "tables.dim": [8]}
    plan = replace(plan, options={**options, "train.lr": [0.01], "train.table_lr": [0.05]}, train_seeds=(0, 1))
    (study,) = Search(plan, out).run().values()
    first, second = study.trials
    assert {t.user_attrs["candidate"]["tables.method"] for t in study.trials} == {"hash", "compositional"}
    assert second.user_attrs["same_as"] == first.number
    assert second.values == first.values
    assert "run" not in second.user_attrs
    with (out / "candidates.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["seeds"] == "0 1"
    (again,) = (out / "runs").glob("*/1/result.json")
    mean = (first.values[0] + json.loads(again.read_text())["valid_auc"]) / 2
    assert float(row["validation"]) == pytest.approx(mean)


def test_whole_configurations_have_the_choices_that_methods_declare(data: Path, tmp_path: Path) -> None:
    """Of each method those that all tables may have, the weights of dim 1 per id among them; sizes are the budget's."""
    plan = plan_of(data, tmp_path / "full", space="full", sampler="tpe", sections={"model": {"name": "deepfm"}})
    plan = replace(plan, options={"tables.method": ["hash", "mgqe", "unified"], "tables.dim": [8, 16]})
    space = config_space(plan, budget=0.4, shapes=tmp_path / "none")
    declared = {name: parameter.values for name, parameter in space.parameters.items() if "." in name}
    assert declared["unified.lookups"] == (1, 2, 4)
    assert declared["unified.width"] == (4, 8), "what both dims are multiples of"
    assert declared["mgqe.head_share"] == (0.05, 0.1, 0.2)
    assert "mgqe.num_codebooks" not in declared, "weights of dim 1 have one codebook"
    first, coded = space.first_candidates()
    assert "unified.lookups" not in first
    assert (first["tables.codec"], coded["tables.codec"]) == ("fp32", "int4")
    assert {**coded, "tables.codec": "fp32"} == first
    chosen = {**first, "tables.method": "unified", "unified.lookups": 4, "unified.width": 4, "tables.dim": 8}
    assert space.decode(space.encode(chosen)) == chosen
    tables = space.config(chosen).tables.default
    assert (tables.method, tables.options.lookups, tables.options.width, tables.dim) == ("unified", 4, 4, 8)


def test_codecs_of_whole_configurations(data: Path, tmp_path: Path) -> None:
    """A codec within the budget means more rows; the profile's shapes are of fp32 rows and have no choice of it."""
    plan = plan_of(data, tmp_path / "full", space="full", sampler="tpe", sections={"model": {"name": "deepfm"}})
    plan = replace(plan, options={"tables.method": ["hash", "searched"], "tables.codec": ["fp32", "int4"]})
    space = config_space(plan, budget=0.4, shapes=tmp_path / "none")
    (first,) = space.first_candidates()
    assert first["tables.method"] == "searched"
    assert "tables.codec" not in first
    rows = [
        TableCollection(space.specs({**first, "tables.method": "hash", "tables.codec": codec})).nbytes("serving")
        for codec in ("fp32", "int4")
    ]
    assert rows[1] > 1.5 * rows[0]


def test_methods_that_weights_per_id_cannot_have_are_left_out(data: Path) -> None:
    """Of dim 1: `alpt` has more bytes than a plain table, and there is one codebook."""
    config = searched(data, model={"name": "deepfm"})
    space = FeatureMethodSpace(config, methods=["full", "alpt", "mgqe"], shares=[0.5])
    assert space.parameters["method.user"].values == ("full", "mgqe")
    assert "mgqe.num_codebooks.user" not in space.parameters
    assert space.parameters["mgqe.head_share.user"].values == (0.05, 0.1, 0.2)
    assert space.nbytes_of(space.floor()) <= space.plain_nbytes


@pytest.mark.slow
@pytest.mark.parametrize(("space", "front"), [("methods", False), ("unified", True)])
def test_methods_and_lookups_of_each_feature_are_trained(space: str, front: bool, data: Path, tmp_path: Path) -> None:
    out, file = tmp_path / space, tmp_path / "space.yaml"
    options = (
        {"rows": [10, 20], "widths": [4, 8], "exact_below": 8}
        if space == "unified"
        else {"methods": ["full", "hash", "mgqe", "tt_rec"], "shares": [0.4], "codecs": ["int4"]}
    )
    file.write_text(yaml.safe_dump({"space": space} | options))
    plan = plan_of(data, out, space=str(file), sampler="ea", num_trials=3, budgets=[0.7], front=front)
    studies = Search(plan, out).run()
    (study,) = set(studies.values())
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert complete
    for trial in complete:
        assert trial.user_attrs["serving_bytes"] <= trial.user_attrs["nbytes"]
        if space == "unified":
            assert trial.user_attrs["serving_bytes"] == trial.user_attrs["nbytes"], "known exactly before training"
    if space == "unified":
        best = parse_config(yaml.safe_load((out / "best.yaml").read_text())).tables
        chosen = [best.of(name) for name in ("user", "genre")]
        assert {table.method for table in chosen} == {"unified"}
        assert {table.options.rows for table in chosen} <= {10, 20}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lookup": [1]}, "space 'unified' has no option 'lookup'"),
        ({"lookups": 2}, "the space's 'lookups' is 2; give a list of whole numbers"),
        ({"exact_below": [5]}, r"the space's 'exact_below' is \[5\]; give a whole number"),
        ({"widths": [16]}, "a width of 16 is more than the embedding dim 8"),
    ],
)
def test_unified_spaces_that_can_not_be_are_refused(data: Path, tmp_path: Path, options: Any, message: str) -> None:
    plan = replace(plan_of(data, tmp_path / "s", space="unified", sampler="tpe"), options=options)
    with pytest.raises(ConfigError, match=message):
        config_space(plan, budget=None, shapes=tmp_path / "none")


@pytest.mark.parametrize("model", ["deepfm", "dcn_v2"])
def test_bytes_of_a_unified_table_are_known_before_it_is_built(model: str, data: Path, tmp_path: Path) -> None:
    plan = plan_of(data, tmp_path / "s", space="unified", sampler="tpe", sections={"model": {"name": model}})
    space = config_space(replace(plan, options={"exact_below": 8}), budget=0.6, shapes=tmp_path / "none")
    rng = Random(0)
    for genes in [*(space.draw(rng) for _ in range(4)), space.floor(), space.encode(space.first_candidates()[0])]:
        config = space.config(space.decode(genes))
        schema = Schema.load(data)
        specs = table_specs(config, schema, data=data, counts=id_counts(schema, data=data))
        assert TableCollection(specs, backend="torch").nbytes("serving") == space.nbytes_of(genes)


@pytest.mark.slow
def test_the_command_and_its_dashboard(data: Path, done: tuple[Path, Any], tmp_path: Path) -> None:
    out, _ = done
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load((out / "search.yaml").read_text())["config"]))
    arguments = ["--space", "rows", "--budget", "0.4", "--trials", "3", "--retrain", "0", "--out", str(tmp_path / "s")]
    found = CliRunner().invoke(app, ["search", str(config), "--supernet", str(out / "supernet"), *arguments])
    assert found.exit_code == 0, found.output
    assert "best configuration within budget 0.4" in found.output
    pytest.importorskip("optuna_dashboard")
    with dashboard() as serve:
        address = serve(str(tmp_path / "s" / "study.journal"))
        with urllib.request.urlopen(f"{address}api/studies", timeout=30) as answer:
            studies = json.load(answer)["study_summaries"]
        with urllib.request.urlopen(f"{address}dashboard/", timeout=30) as answer:
            assert b"<title>Optuna Dashboard</title>" in answer.read()
    assert [study["study_name"] for study in studies] == ["prepared-deepfm-rows-0.4"]


@pytest.mark.slow
def test_a_new_search_is_served_while_it_runs(
    data: Path, done: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna_dashboard")
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load((done[0] / "search.yaml").read_text())["config"]))
    arguments = ["search", str(config), "--supernet", str(done[0] / "supernet"), "--space", "rows", "--budget", "0.4"]
    arguments += ["--trials", "3", "--retrain", "0", "--out", str(tmp_path / "s"), "--dashboard", "--dashboard-port"]
    found = CliRunner().invoke(app, [*arguments, "99999"])
    assert isinstance(found.exception, ConfigError)
    assert "--dashboard-port is 99999" in str(found.exception)
    assert not (tmp_path / "s").exists()

    def ask_and_interrupt() -> None:
        with urllib.request.urlopen(f"{addresses[0]}api/studies", timeout=30) as answer:
            asked.extend(json.load(answer)["study_summaries"])
        raise KeyboardInterrupt

    asked: list[Any] = []
    addresses: list[str] = []
    monkeypatch.setattr("embank.pipelines.cli.show.line", lambda text: addresses.append(text.split()[-1]))
    monkeypatch.setattr("signal.pause", ask_and_interrupt)
    found = CliRunner().invoke(app, [*arguments, "0"])
    assert found.exit_code == 0, found.output
    assert [study["study_name"] for study in asked] == ["prepared-deepfm-rows-0.4"]


def test_a_budget_below_the_floor_is_refused_before_anything_is_trained(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="the smallest candidate of this space"):
        Search(plan_of(data, tmp_path / "s", space="widths", budgets=[0.01]), tmp_path / "s").run()
    assert not (tmp_path / "s").exists()


def test_a_storage_that_can_not_be_written_is_refused_first(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'/sys/study.journal' can't be written"):
        Search(plan_of(data, tmp_path / "s", storage="/sys/study.journal"), tmp_path / "s").run()
    assert not (tmp_path / "s").exists()


def test_a_profile_needs_more_trials_than_it_measures(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"measures \d+ forms of tables.*--trials is 8; give more"):
        Search(plan_of(data, tmp_path / "s", sampler="profile"), tmp_path / "s").run()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": "wide"}, "--space is 'wide'"),
        ({"sampler": "bayes"}, "--sampler is 'bayes'"),
        ({"budgets": [2.0]}, "--budget holds 2"),
        ({"num_trials": 0}, "--trials is 0"),
        ({"workers": 0}, "--workers is 0"),
        ({"max_rows": 0}, "--max-rows is 0"),
        ({"train_seeds": (0, -1)}, "--train-seeds holds -1"),
        ({"budgets": [0.5, 0.1, 0.5]}, "--budget holds 0.5 twice"),
        ({"budgets": [0.1, 0.10000001]}, "--budget holds 0.1 twice"),
        ({"space": "full", "sampler": "profile"}, "--sampler profile measures one table at a time"),
    ],
)
def test_plans_that_can_not_be_are_refused(data: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(data, tmp_path, **settings)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"space": "wide"}, "must be a mapping with 'space: NAME'"),
        ({"space": "widths", "width": 4}, "the space has an option 'width'"),
        ({"space": "widths", "widths": "wide"}, "the space has widths 'wide'"),
        ({"space": "widths", "widths": [4, 2.5]}, "the space has widths"),
        ({"space": "rows", "row_levels": "half"}, "the space has row_levels 'half'"),
        ({"space": "full", "train.lr": 0.1}, "the space's 'train.lr' is 0.1; give a list"),
        ({"space": "full", "lr": [0.1]}, "the space has a key 'lr'"),
        ({"space": "methods", "method": ["full"]}, "space 'methods' has no option 'method'"),
    ],
)
def test_spaces_that_can_not_be_are_refused(data: Path, tmp_path: Path, space: Any, message: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(space))

    def begin() -> None:
        Search(plan_of(data, tmp_path / "s", space=str(file)), tmp_path / "s").run()

    with pytest.raises(ConfigError, match=message):
        begin()


def test_rank_correlation_is_kendalls() -> None:
    from scipy.stats import kendalltau

    pairs = [(0.1, 3.0), (0.4, 1.0), (0.4, 2.0), (0.9, 5.0), (0.2, 3.0)]
    assert kendall_tau(pairs) == pytest.approx(kendalltau(*zip(*pairs, strict=True)).statistic)
    assert kendall_tau([(1.0, 1.0)]) is None


def test_the_table_says_what_failed() -> None:
    entry = Entry(
        budget=0.1,
        name="1",
        trial=3,
        candidate={"width.a": 4},
        nbytes=100,
        score=0.7,
        results={},
        failures={2: "no memory"},
    )
    text = markdown([entry], title="t", facts=["f"], plain_nbytes=1000, pictures=[])
    assert "| 0.1 | 1 **best** | 100 | 0.1000 | 0.7000 | - | - | - |" in text
    assert "- 1 at 0.1, seed 2: no memory" in text
