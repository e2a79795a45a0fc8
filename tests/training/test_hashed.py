"""Columns without a vocabulary from raw logs to a served bundle: training, checkpoints, evaluation, inspection,
refusals."""

import json
import random
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from torchrec import KeyedJaggedTensor

from embank.compression import METHODS
from embank.compression.multiplexing.specs import advise
from embank.pipelines.cli import show
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import build_tables, table_specs
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.export import export_run
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.inspect import inspect_saved
from embank.pipelines.sizing.advice import advise_config
from embank.pipelines.sizing.plan import plan_config
from embank.pipelines.sweep.plan import Plan
from embank.pipelines.sweep.sweep import Sweep
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.trainer import Trainer
from embank.tables import CheckpointError, ConfigError, DataError, TableCollection, load_bundle, method_class
from embank.tables.ids.token_hash import token_ids
from embank.tables.ids.token_space import NUM_TOKEN_IDS
from embank.tables.storage.checkpoint import verify_checkpoint
from tests.processes import embank, run_code
from tests.training.runs import config, raw_config, timeless, train
from tests.training.test_resume import StopAt

pytestmark = pytest.mark.slow

COLUMNS: dict[str, Any] = {
    "label": {"column": "click"},
    "categorical": ["shop"],
    "multivalued": {"words": " "},
    "numeric": {"price": "log1p"},
    "hashed": ["user", "words"],
    "split": {"by": "ratio", "ratios": [0.7, 0.15, 0.15]},
}
TABLES: dict[str, dict[str, Any]] = {
    "unified": {"dim": 8, "method": "unified", "rows": 150, "width": 4, "lookups": 2},
    "hash": {"dim": 8, "method": "hash", "num_rows": 40},
}
MODEL = {"name": "deepfm", "hidden_units": [8]}
NAMES = sorted(name for name in METHODS if not name.startswith("test_"))
WITHOUT = [name for name in NAMES if method_class(name).traits.takes_token_ids]


def write_log(path: Path, num_rows: int = 900, *, seed: int = 0) -> Path:
    """Clicks that depend on the user and a word; some users and all words are missing at times."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        user = rng.choice([None, *(f"user {rng.randrange(60)}" for _ in range(9))])
        words = rng.sample(["rouge", "grün", "blue", "a very long word indeed"], rng.randrange(4))
        clicks = (hash_of(user) + ("rouge" in words)) % 2 if rng.random() < 0.9 else rng.randrange(2)
        rows.append(
            {"click": clicks, "user": user, "shop": f"s{rng.randrange(5)}", "words": " ".join(words), "price": 1}
        )
    pl.DataFrame(rows).with_columns(pl.col("words").str.replace("a very long word indeed", "long-" * 400)).write_csv(
        path
    )
    return path


def hash_of(user: str | None) -> int:
    return 0 if user is None else int(user.split()[1])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("raw") / "log.csv")


@pytest.fixture(scope="module")
def data(log: Path) -> Path:
    prepare(COLUMNS, [log], log.with_name("data"))
    return log.with_name("data")


@pytest.fixture(scope="module", params=sorted(TABLES))
def run(data: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    path = tmp_path_factory.mktemp("runs") / str(request.param)
    train(data, path, model=MODEL, tables=TABLES[request.param], train={"epochs": 15, "table_lr": 0.1})
    return path


def test_it_learns(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["auc"] > 0.7
    assert result["plain_bytes"] is result["serving_ratio"] is None
    assert result["serving_bytes"] == load_bundle(run / "bundle").nbytes()


def test_evaluation_inspection_and_export(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_run(run, out=tmp_path / "shipped")
    ours, theirs = (evaluate_saved(path, data=data, split="test") for path in (tmp_path / "shipped", run))
    assert ours["auc"] == pytest.approx(theirs["auc"], abs=1e-6)
    for path in (run, tmp_path / "shipped"):
        values = inspect_saved(path)
        tables = {table["name"]: table for table in values["tables"]}
        assert tables["user"]["num_embeddings"] == NUM_TOKEN_IDS
        assert tables["user"]["plain_bytes"] is None
        assert tables["shop"]["plain_bytes"] == tables["shop"]["num_embeddings"] * 8 * 4
        assert tables["first_order/words"]["serving_bytes"] > 0
        show.inspection(values)
        shown = capsys.readouterr().out
        assert "no vocabulary" in shown
        assert "no plain size, as a table has no vocabulary" in shown
    show.result(run, json.loads((run / "result.json").read_text()))
    assert "no plain size" in capsys.readouterr().out


def test_the_bundle_and_the_checkpoint_say_the_hash(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads((run / "bundle" / "manifest.json").read_text())["token_hash_version"] == 1
    checkpoint = RunFolder(run).saved()[-1]
    assert verify_checkpoint(checkpoint)["identity"]["token_hash_version"] == 1
    monkeypatch.setattr("embank.tables.ids.token_space.TOKEN_HASH_VERSION", 2)
    said = "has ids of tokens by version 1 of the token hash; this embank has version 2, which gives tokens other ids"
    with pytest.raises(CheckpointError, match=f"bundle '.*bundle' {said}"):
        load_bundle(run / "bundle")
    with pytest.raises(CheckpointError, match=f"checkpoint '.*' {said}"):
        verify_checkpoint(checkpoint)
    with pytest.raises(DataError, match=f"the data of .*schema.json {said}"):
        Schema.load(data)


def test_with_a_vocabulary_the_token_hash_does_not_matter(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare({**COLUMNS, "hashed": [], "categorical": ["shop", "user"]}, [log], tmp_path / "data")
    train(tmp_path / "data", tmp_path / "run", model=MODEL, train={"epochs": 1})
    monkeypatch.setattr("embank.tables.ids.token_space.TOKEN_HASH_VERSION", 2)
    assert evaluate_saved(tmp_path / "run" / "bundle", data=tmp_path / "data", split="test")["auc"] > 0
    verify_checkpoint(RunFolder(tmp_path / "run").saved()[-1])


FRESH = """
    import csv, sys
    import torch
    from torchrec import KeyedJaggedTensor
    from embank.tables import load_bundle
    from embank.tables.ids.token_hash import token_ids

    with open(sys.argv[1], newline="") as file:
        rows = list(csv.DictReader(file))[-int(sys.argv[4]):]
    users = token_ids([row["user"] or None for row in rows])
    bags = [[word for word in row["words"].split(" ") if word] for row in rows]
    words = token_ids([word for bag in bags for word in bag])
    kjt = KeyedJaggedTensor(
        keys=["user", "words", "shop"],
        values=torch.cat([torch.from_numpy(users), torch.from_numpy(words), torch.zeros(len(rows), dtype=torch.int64)]),
        lengths=torch.tensor([1] * len(rows) + [len(bag) for bag in bags] + [1] * len(rows)),
    )
    out = load_bundle(sys.argv[2])(kjt).to_dict()
    torch.save({key: rows for key, rows in out.items() if key.startswith(("user@", "words@"))}, sys.argv[3])
"""


def test_raw_tokens_find_their_rows_in_a_fresh_process(run: Path, data: Path, log: Path, tmp_path: Path) -> None:
    """From the text of the log, without the data and without `pipelines`, the rows that evaluation reads."""
    num_rows = Schema.load(data).split("test").num_rows
    done = run_code(FRESH, log, run / "bundle", tmp_path / "out.pt", num_rows, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    served = torch.load(tmp_path / "out.pt")
    (batch,) = Loader(data, "test", batch_size=num_rows, shuffle=False).epoch(0)
    expected = load_bundle(run / "bundle")(batch.sparse).to_dict()
    assert sorted(served) == ["user@first_order/user", "user@user", "words@first_order/words", "words@words"]
    for key, rows in served.items():
        assert torch.equal(rows, expected[key])


@pytest.mark.parametrize(("method", "tier"), [("unified", "device"), ("hash", "disk")])
def test_a_run_resumes(data: Path, tmp_path: Path, method: str, tier: str) -> None:
    sections = {"model": MODEL, "tables": TABLES[method], "rows": {"tier": tier}}
    whole = train(data, tmp_path / "whole", **sections)
    with pytest.raises(InterruptedRunError):
        Trainer(config(data, **sections), tmp_path / "run", reporter=StopAt(7, signal.SIGTERM)).train()
    assert timeless(train(data, tmp_path / "run", resume=True, **sections)) == timeless(whole)


@pytest.mark.parametrize("method", sorted(TABLES))
def test_a_plan(data: Path, method: str) -> None:
    plan, loads = plan_config(config(data, model=MODEL, tables=TABLES[method]), ranks=4)
    rows = {load.table.name: load.table.num_embeddings for load in loads}
    assert set(plan.tables) == set(rows)
    assert max(rows.values()) <= 150
    assert min(load.lookups for load in loads) > 0


def test_other_logs_are_scored_when_nothing_has_a_vocabulary(log: Path, tmp_path: Path) -> None:
    columns = {**COLUMNS, "hashed": ["user", "words", "shop"], "numeric": {}}
    prepare(columns, [log], tmp_path / "data")
    prepare(columns, [write_log(tmp_path / "later.csv", seed=1)], tmp_path / "later")
    train(
        tmp_path / "data",
        tmp_path / "run",
        model=MODEL,
        tables=TABLES["unified"],
        train={"epochs": 15, "table_lr": 0.1},
    )
    for path in (tmp_path / "run", tmp_path / "run" / "bundle"):
        assert evaluate_saved(path, data=tmp_path / "later", split="train")["auc"] > 0.7


def addresses(data: Path, tables: dict[str, Any]) -> tuple[TableCollection, dict[str, list[torch.Tensor]]]:
    """The rows that every feature of the test split reads, by feature."""
    built = build_tables(
        config(data, model={"name": "dcn_v2"}, tables=tables), Schema.load(data), data=data, rows_folder=data
    )
    (batch,) = Loader(data, "test", batch_size=1000, shuffle=False).epoch(0)
    methods = {method.spec.name: method for method in built.built_methods()}
    return built, {name: list(method.address(batch.sparse[name].values())) for name, method in methods.items()}


@pytest.mark.parametrize("method", sorted(TABLES))
def test_other_columns_leave_a_feature_its_rows(log: Path, data: Path, tmp_path: Path, method: str) -> None:
    """Prepared again with features removed, added, renamed and in another order: the common one has the same rows and
    values."""
    frame = pl.read_csv(log, infer_schema=False).with_columns(
        pl.col("shop").alias("market"), pl.col("price").alias("cost")
    )
    frame.drop("shop").select(sorted(frame.drop("shop").columns)).write_csv(tmp_path / "other.csv")
    columns = {**COLUMNS, "categorical": ["market"], "multivalued": {}, "hashed": ["cost", "user"], "numeric": {}}
    prepare(columns, [tmp_path / "other.csv"], tmp_path / "other")
    assert Schema.load(tmp_path / "other").feature_names == ("market", "cost", "user")
    (before, rows), (after, other_rows) = (addresses(path, TABLES[method]) for path in (data, tmp_path / "other"))
    assert len(rows["user"]) == len(other_rows["user"]) == (2 if method == "unified" else 1)
    for ours, theirs in zip(rows["user"], other_rows["user"], strict=True):
        assert torch.equal(ours, theirs)
    assert len(torch.unique(torch.stack(rows["user"], dim=1), dim=0)) > 20
    table = "unified/shared/4" if method == "unified" else "user"
    assert torch.equal(before.weights()[table], after.weights()[table])
    assert not torch.equal(rows["user"][0], other_rows["cost"][0])


def test_rows_start_as_those_of_a_table_of_their_number(data: Path) -> None:
    """Not as those of 2**63 ids, which would be next to zero."""
    tables = {**TABLES["unified"], "placement": "private", "rows": 100, "overrides": {"words": TABLES["hash"]}}
    built, _ = addresses(data, tables)
    for name, num_rows in (("user", 100), ("words", 40)):
        assert built.weights()[name].abs().max() == pytest.approx(num_rows**-0.5, rel=0.1)


REFUSED = [
    ({"method": "hash"}, r"table 'user' has no vocabulary .* so its number of rows must be said; give num_rows=\.\.\."),
    ({"method": "unified"}, r"table 'user' has no vocabulary .* give the number of rows, rows=\.\.\."),
    (
        {"method": "hash", "budget": 0.5},
        r"table 'user' has no vocabulary .* 'tables\.budget', 0\.5, could be a share of\. Give it a number of rows: "
        r"'tables\.overrides\.user: \{method: hash, num_rows: 100000, budget: null\}'",
    ),
    (
        {"method": "hash", "num_rows": 9, "overrides": {"user": {"method": "unified", "budget": 0.5}}},
        r"table 'user' has no vocabulary .* no plain table that its budget 0\.5 could be a share of; give the number "
        r"of rows",
    ),
    (
        {"method": "unified", "rows": 100, "overrides": {"user": {"placement": "exact"}}},
        r"table 'user' has no vocabulary .* can't have the placement 'exact'; give the number of rows",
    ),
]


@pytest.mark.parametrize(("tables", "message"), REFUSED, ids=[json.dumps(case[0]) for case in REFUSED])
def test_sizes_that_a_missing_vocabulary_can_not_give(
    data: Path, tmp_path: Path, tables: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(data, tmp_path / "run", model={"name": "dcn_v2"}, tables={"dim": 8, **tables})


@pytest.mark.parametrize("method", [name for name in NAMES if name not in WITHOUT])
def test_methods_that_need_a_vocabulary_say_so(data: Path, tmp_path: Path, method: str) -> None:
    message = (
        rf"table 'user' has no vocabulary .* but method '{method}' needs one, .* hashes ids \(hash, .*unified\) "
        rf"with a number of rows"
    )
    with pytest.raises(ConfigError, match=message):
        train(data, tmp_path / "run", model=MODEL, tables={"dim": 8, "method": method})


def test_advice_knows_how_many_values_there_are(data: Path) -> None:
    schema = Schema.load(data)
    assert sorted(schema.num_values) == ["user", "words"]
    specs = table_specs(config(data, model={"name": "dcn_v2"}, tables=TABLES["unified"]), schema, data=data)
    features = {feature.name: feature for feature in advise(specs, num_values=schema.num_values).features}
    assert features["user"].num_values == schema.num_values["user"] > 50
    assert 0 < (features["user"].intra or 0) < 1


def test_a_budget_for_the_others(data: Path, tmp_path: Path) -> None:
    """The cure of the message works: rows for the columns without a vocabulary, a budget for the rest."""
    overrides = {name: {"method": "hash", "num_rows": 30, "budget": None} for name in ("user", "words")}
    tables = {"dim": 8, "method": "hash", "budget": 0.5, "plain_below": 0, "overrides": overrides}
    specs = table_specs(config(data, model=MODEL, tables=tables), Schema.load(data), data=data)
    assert [spec.budget for spec in specs if spec.name == "shop"] == [0.5]
    train(data, tmp_path / "run", model=MODEL, tables=tables, train={"epochs": 1})


def test_a_penalty_by_counts_is_refused(data: Path, tmp_path: Path) -> None:
    message = r"'train\.embedding_l2' spreads its penalty by counts, but table 'user' has none: .* Set it to 0"
    with pytest.raises(ConfigError, match=message):
        train(data, tmp_path / "run", model=MODEL, tables=TABLES["hash"], train={"embedding_l2": 1e-4})


def test_an_id_below_zero_is_refused_by_name(run: Path) -> None:
    bags = KeyedJaggedTensor(
        keys=["user", "words", "shop"],
        values=torch.tensor([-1, 2**63 - 1, 0]),
        lengths=torch.ones(3, dtype=torch.int32),
    )
    with pytest.raises(
        IndexError, match=r"feature 'user' has id -1, outside table 'user' of 9,223,372,036,854,775,808 ids"
    ):
        load_bundle(run / "bundle")(bags)
    bags.values()[0] = int(token_ids(["user 1"])[0])
    assert load_bundle(run / "bundle")(bags).values().isfinite().all()


def test_advice_takes_the_values_of_the_training_part_for_a_vocabulary(data: Path) -> None:
    advised = advise_config(config(data, tables=TABLES["unified"], model={"name": "fnn"}))
    schema = Schema.load(data)
    by_name = {table.name: table for table in advised.tables}
    sizes = {field.name: field.num_embeddings for field in schema.categorical} | schema.num_values
    assert {name: table.num_ids for name, table in by_name.items()} == sizes
    assert advised.plain_nbytes == sum(4 * 8 * num for num in sizes.values())
    assert advised.is_estimated
    user = by_name["user"].collisions
    assert user is not None
    assert user.intra == pytest.approx(1 - (1 - 1 / 150) ** (sizes["user"] - 1))
    assert user.inter is not None
    lines = pl.read_csv(data.with_name("log.csv"))["words"][: schema.split("train").num_rows]
    words = [len(line.split()) if line else 0 for line in lines.to_list()]
    assert by_name["words"].lookups == pytest.approx(2 * sum(words) / len(words))
    hashed = advise_config(config(data, tables=TABLES["hash"], model={"name": "fnn"}))
    assert {table.name: table.num_ids for table in hashed.tables} == sizes, "whatever the method"


def test_advice_prints_true_figures(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(raw_config(data, tables=TABLES["unified"], model={"name": "fnn"}))
    )
    done = embank("advise", tmp_path / "run.yaml")
    assert done.returncode == 0, done.stderr
    assert "?" not in done.stdout
    assert "0.0000 of plain" not in done.stdout
    assert "9,223,372,036,854,775,808" not in done.stdout
    assert "a plain table would have a row for each of them" in done.stdout


def test_a_sweep_on_columns_without_a_vocabulary_compares_sizes_in_rows(log: Path, tmp_path: Path) -> None:
    columns = {**COLUMNS, "hashed": ["user", "words", "shop"]}
    prepare(columns, [log], tmp_path / "data")
    raw = raw_config(tmp_path / "data", model={"name": "fm"}, train={"epochs": 1})
    settings: dict[str, Any] = {"config": raw, "models": ["fm"], "seeds": [0], "grid": {}}
    with pytest.raises(ConfigError, match="no column of .* has a vocabulary .* leave --budgets out and give sizes"):
        Sweep(Plan(methods=["hash"], budgets=[0.5], **settings), tmp_path / "out").run()
    assert not (tmp_path / "out").exists()
    methods = ["hash:num_rows=40", "hash:num_rows=10", "unified:rows=50"]
    rows = Sweep(Plan(methods=methods, budgets=[None], **settings), tmp_path / "out").run()
    assert [(row.method, row.budget, row.status) for row in rows] == [(name, None, "complete") for name in methods]
    assert rows[0].serving_bytes == sum((4 * 40 * dim + 8) for dim in (4, 1) for _ in range(3))
    assert rows[2].minus_hash is not None, "hash has two sizes, and unified's bytes are between them"
    assert rows[2].minus_hash_bytes_ratio == 1
    text = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "| hash:num_rows=40 | 0." in text
    assert "| budget |" not in text
    assert (tmp_path / "out/runs/fm/hash:num_rows=40/own/0/result.json").is_file()
