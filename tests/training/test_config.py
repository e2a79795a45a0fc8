"""Configurations: what is accepted, and what every mistake is answered with."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from embank.compression import METHODS
from embank.compression.methods.full import Full
from embank.pipelines.config.run import load_config, parse_config, to_plain
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import initial_network, table_specs
from embank.tables import BudgetError, ConfigError
from tests.training.runs import raw_config, write_data

YAML = """
data: {path: data/criteo, batch_size: 4096}
model: {name: dlrm, bottom: [512, 256, 64], top: [512, 256]}
tables:
  dim: 16
  method: hash
  budget: 0.1
  overrides: {C3: {method: full, dim: 8}}
train: {epochs: 1, lr: 1e-3, table_optimizer: rowwise_adagrad, table_lr: 0.02, seed: 0, patience: 3}
rows: {backend: fbgemm, tier: device}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(YAML)
    return path


def test_the_documented_configuration(file: Path) -> None:
    config = load_config(file)
    assert config.model["name"] == "dlrm"
    assert config.train.lr == 0.001
    assert config.tables.of("C1").method == "hash"
    assert (config.tables.of("C3").method, config.tables.of("C3").dim, config.tables.of("C3").budget) == (
        "full",
        8,
        None,
    )
    assert parse_config(to_plain(config)) == config


def test_overrides_in_order(file: Path) -> None:
    config = load_config(
        file, overrides=["train.lr=0.5", "train.lr=0.25", "tables.overrides.C4.dim=32", "tables.budget=null"]
    )
    assert config.train.lr == 0.25
    assert (config.tables.of("C4").dim, config.tables.of("C4").method) == (32, "hash")
    assert config.tables.default.budget is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate=1", "unknown key 'train.learning_rate'. Known keys here: epochs,"),
        ("train.epoch=1", "unknown key 'train.epoch'. Did you mean 'epochs'? Known keys here: "),
        ("dta.path=x", "unknown key 'dta'. Did you mean 'data'? Known keys here: "),
        ("model.name=deepfn", "deepfm"),
        ("model.botom=[1]", "unknown key 'model.botom'. Did you mean 'bottom'? Known keys here: "),
        ("tables.method=hsh", "there is no method 'hsh'; did you mean 'hash'?"),
        ("tables.num_row=5", "unknown key 'tables.num_row'. Did you mean 'num_rows'? Known keys here: "),
        (
            "tables.overrides.C3.dims=4",
            "unknown key 'tables.overrides.C3.dims'. Did you mean 'dim'? Known keys here: ",
        ),
        ("tables.dim=0", "tables.dim is 0: it must be at least 1."),
        ("data.batch_size=0", "data.batch_size is 0: it must be at least 1."),
        ("data.batch_size=many", "data.batch_size is 'many': input should be a valid integer"),
        ("train.lr=-1", "train.lr is -1.0: it must be 0 or more."),
        ("train.lr=.nan", "train.lr is nan: it must be a finite number."),
        *(
            (f"train.{key}=.inf", f"train.{key} is inf: it must be a finite number.")
            for key in ("lr", "table_lr", "search_lr", "weight_decay", "embedding_l2")
        ),
        ("train.clip_grad_norm=.nan", "train.clip_grad_norm is nan: it must be a finite number."),
        ("train.lr=Infinity", "train.lr is 'Infinity': it must be a finite number."),
        ("train.table_lr=1e999", "train.table_lr is inf: it must be a finite number."),
        ("tables={method: pep, pull: .inf}", "tables.pull is inf: it must be a finite number."),
        ("tables={method: optembed, evolution: {mutation: -.inf}}", "tables.evolution.mutation is -inf: it must be a"),
        (
            "tables.overrides.C3={method: autosrh, l1: .inf}",
            "tables.overrides.C3.l1 is inf: it must be a finite number.",
        ),
        ("model={name: deepfm, dropout: .nan}", "model.dropout is nan: it must be a finite number."),
        ("train.table_optimizer=adam", "which the fbgemm backend lacks on a CPU"),
        ("rows.tier=tape", "config.yaml with --set rows.tier=tape: rows.tier is 'tape': "),
        ("train.lr", "is not of the form KEY=VALUE"),
        ("data.path.x=1", "'data.path' is a value, not a section"),
    ],
)
def test_mistakes_are_named(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(file, overrides=[override])
    assert message in str(error.value)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file '.*missing.yaml'; give the path"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must be a mapping with the keys data, model, tables, train, rows"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("data: {path: [")
    with pytest.raises(ConfigError, match="is not valid YAML: line 1"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "empty.yaml").write_text("model: {name: lr}")
    with pytest.raises(ConfigError, match="empty.yaml: key 'data' is missing; it is required"):
        load_config(tmp_path / "empty.yaml")


def test_a_default_budget_is_kept_by_all_tables_together(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", single={"user": 5000, "item": 20}, bags={"genre": 3000})
    schema = Schema.load(data)
    config = parse_config(raw_config(data, tables={"dim": 8, "method": "hash", "budget": 0.1}))
    specs = {spec.name: spec for spec in table_specs(config, schema, data=data)}
    assert (specs["item"].method, specs["user"].method) == ("full", "hash")
    assert specs["first_order/user"].embedding_dim == 1
    from embank.tables import TableCollection

    tables = TableCollection(list(specs.values()))
    assert tables.nbytes("serving") <= 0.1 * tables.plain_nbytes
    assert tables.nbytes("serving") > 0.099 * tables.plain_nbytes
    small = parse_config(raw_config(data, tables={"dim": 8, "method": "hash", "budget": 0.002}))
    assert {spec.method for spec in table_specs(small, schema, data=data) if spec.name != "first_order/item"} == {
        "hash"
    }
    tiny = parse_config(raw_config(data, tables={"dim": 8, "method": "hash", "budget": 0.0002}))
    with pytest.raises(BudgetError, match="the budget of 6 tables is 0.0002, .* but their floor is"):
        table_specs(tiny, schema, data=data)
    typo = parse_config(raw_config(data, tables={"overrides": {"usr": {"dim": 4}}}))
    with pytest.raises(
        ConfigError, match=r"'tables.overrides.usr' names a feature that .* lacks. Did you mean 'user'\?"
    ):
        table_specs(typo, schema, data=data)


def test_numbers_with_an_exponent(file: Path) -> None:
    """YAML 1.1 reads 1e5 as text: a number where one is wanted, a name where a name is wanted."""
    file.write_text(YAML.replace("data/criteo", "1e5").replace("4096", "1e3"))
    config = load_config(file, overrides=["rows.directory=2e5", "tables.init_std=1e-2", "train.patience=2e0"])
    assert (config.data.path, config.rows.directory) == ("1e5", "2e5")
    assert (config.data.batch_size, config.train.lr, config.train.patience) == (1000, 0.001, 2)
    assert config.tables.default.init_std == 0.01
    model = parse_config(raw_config(Path("data"), model={"name": "deepfm", "dropout": "5e-1"})).model
    assert model["dropout"] == 0.5


@pytest.mark.parametrize("method", sorted(name for name in METHODS if not name.startswith("test_")))
def test_a_configuration_with_every_default_filled_in_is_the_same(tmp_path: Path, method: str) -> None:
    data = write_data(tmp_path / "data", single={"user": 50})
    config = parse_config(raw_config(data, tables={"dim": 8, "method": method}))
    assert parse_config(to_plain(config)) == config


def test_options_must_not_be_named_like_keys_of_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Options:
        dim: int = 3

    class Clashing(Full):
        Config = Options

    monkeypatch.setattr("embank.pipelines.config.tables.method_class", lambda name: Clashing)
    data = write_data(tmp_path / "data", single={"user": 50})
    with pytest.raises(ConfigError, match="tables.method is 'clashing', whose option 'dim' is a key of every table"):
        parse_config(raw_config(data, tables={"method": "clashing"}))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=true", "train.epochs is True: it must be a number."),
        ("train.lr=false", "train.lr is False: it must be a number."),
        ("train.compile=1", "train.compile is 1: it must be true or false"),
        ("tables.dim=true", "tables.dim is True: it must be a number."),
        ("tables.plain_below=true", "tables.plain_below is True: it must be a number of ids"),
        ("tables.alignment=zeros", "tables.alignment is 'zeros': it must be project or pad."),
        ("model.bottom=[512, true]", "model.bottom is [512, True]: it must be a number."),
        ("train.warmth=1", "unknown key 'train.warmth'. Known keys here: epochs,"),
    ],
)
def test_booleans_are_no_numbers_and_far_words_no_hints(file: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(file, overrides=[override])
    assert str(error.value).startswith(f"{file} with --set {override}: {expected}")


def test_padded_fields_add_nothing_to_the_network(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", single={"user": 50, "item": 20})
    tables = {"dim": 8, "overrides": {"user": {"dim": 3}}}
    projected = parse_config(raw_config(data, model={"name": "deepfm", "hidden_units": [4]}, tables=tables))
    padded = parse_config(to_plain(projected) | {"tables": {**tables, "alignment": "pad"}})
    schema = Schema.load(data)
    inputs = initial_network(padded, schema).inputs
    assert (inputs.dims[inputs.names.index("user")], inputs.padded_dim) == (3, 8)
    num = [sum(p.numel() for p in initial_network(c, schema).parameters()) for c in (projected, padded)]
    assert num[0] - num[1] == 3 * 8 + 5 * 4  # the projection, and the first layer's weights of columns that are zero


def test_what_never_comes_may_be_infinite() -> None:
    """As runs have it that were trained before anybody looked."""
    raw = {"data": {"path": "data/clicks"}, "model": {"name": "fm"}}
    config = parse_config({**raw, "train": {"clip_grad_norm": math.inf, "checkpoint_minutes": math.inf}})
    assert (config.train.clip_grad_norm, config.train.checkpoint_minutes) == (math.inf, math.inf)
