"""Models and tables of plain TorchRec, from what it saves itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import Result
from torchrec import EmbeddingCollection, EmbeddingConfig
from typer.testing import CliRunner

from embank.pipelines import evaluate_saved, import_source
from embank.pipelines.cli.app import app
from embank.pipelines.importing.torch_states import open_state
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.train.trainer import Trainer
from embank.tables import Bundle, ConfigError, load_bundle
from tests.distributed.ranks import Ranks
from tests.importing.torchrec_models import BOTTOM, SIZES, TOP, batch, plain_model, save_sharded
from tests.training.runs import config, model_of, write_data
from tests.training.test_from import Notes

NAMES = {name: f"t_{name}" for name in SIZES}
MODEL = {"model": {"name": "dlrm", "bottom": BOTTOM[:-1], "top": TOP[:-1]}, "tables": {"dim": 8}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


def scores_of(bundle: Path) -> np.ndarray:
    """Of the batch whose scores `save_sharded` tells."""
    numbers_BI, kjt = batch(rows=20, seed=99)
    with torch.no_grad():
        return torch.sigmoid(model_of(Bundle(bundle))(numbers_BI, kjt)).numpy()


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_scores_as_it_did_and_trains_on(two: Ranks, data: Path, tmp_path: Path) -> None:
    (wanted, first), (_, second) = two.run(save_sharded, tmp_path / "dcp")
    chosen = config(data, **MODEL, train={"epochs": 1, "num_threads": 1})
    done = import_source(
        tmp_path / "dcp", tmp_path / "run", kind="torchrec", names=NAMES, config=chosen, order=list(SIZES)
    )
    assert np.abs(scores_of(tmp_path / "run/bundle") - wanted).max() < 1e-6
    assert [(one.name, one.error, one.missing, one.surplus) for one in done.tables] == [
        (name, 0.0, 0, 0) for name in ("genre", "item", "user")
    ]
    assert [one.name for one in done.tables if one.has_optimizer_state] == ["item", "user"]  # not that of columns
    assert done.result is not None
    assert done.result["auc"] == RunFolder(tmp_path / "run").read_metrics()[-1]["auc"]

    reporter = Notes()
    Trainer(chosen, tmp_path / "second", reporter=reporter).train(begin_with=tmp_path / "run")
    begun, before = (RunFolder(tmp_path / name).read_metrics()[0] for name in ("second", "run"))
    assert (begun["step"], begun["auc"], begun["logloss"]) == (0, before["auc"], before["logloss"])
    assert "the rows' optimizer state (rowwise_adagrad) too" in reporter.notes[0]
    assert evaluate_saved(tmp_path / "second", data=data, split="test")["auc"] != done.result["auc"]  # it has learned

    state = open_state(tmp_path / "dcp")
    (name,) = first
    assert torch.equal(
        state.read(f"optim.state.{name}.t_user.momentum1").flatten(), torch.cat([first[name], second[name]]).flatten()
    )


def test_the_rows_optimizer_state_is_in_the_checkpoint(data: Path, tmp_path: Path) -> None:
    from embank.pipelines.data.schema import Schema
    from embank.pipelines.runs.open import best_model
    from embank.pipelines.runs.state import SavedRun

    model, sums = plain_model(), torch.arange(50.0)
    key = "sparse_arch.embedding_bag_collection.embedding_bags.t_user.weight"
    torch.save(
        {"model": model.state_dict(), "optim": {"state": {key: {"t_user.momentum1": sums}}}}, tmp_path / "model.pt"
    )
    chosen = config(data, **MODEL)
    import_source(
        tmp_path / "model.pt", tmp_path / "run", kind="torchrec", names=NAMES, config=chosen, order=list(SIZES)
    )
    run = RunFolder(tmp_path / "run")
    with best_model(run, schema=Schema.load(data), data=data) as (loaded, step):
        SavedRun(run.saved()[-1]).load_model(loaded, optimizer=True)
        assert step == 0
        assert torch.equal(loaded.tables.optimizer_state()["user"]["sum"].flatten(), sums)


def test_tables_alone_of_any_collection(tmp_path: Path) -> None:
    tables = [EmbeddingConfig(name="word", embedding_dim=4, num_embeddings=6, feature_names=["word"])]
    collection = EmbeddingCollection(tables=tables)
    dcp.save({"net": {"rows": collection.state_dict()}, "step": 4}, checkpoint_id=str(tmp_path / "dcp"))
    done = import_source(tmp_path / "dcp", tmp_path / "bundle", kind="torchrec")
    packed = {spec.name: pack for spec, pack in load_bundle(tmp_path / "bundle").packed_tables()}
    assert torch.equal(packed["word"].lookup(torch.arange(6)), collection.embeddings["word"].weight)
    assert done.tables[0].nbytes == 96


def test_another_order_of_features_is_another_model(data: Path, tmp_path: Path) -> None:
    """Names can't tell the order: the default is that of the data."""
    model = plain_model()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    numbers_BI, kjt = batch(rows=20, seed=99)
    wanted = torch.sigmoid(model(numbers_BI, kjt)).detach().flatten().numpy()
    for name, order, is_same in (("right", list(SIZES), True), ("default", None, False)):
        reporter = Notes()
        import_source(
            tmp_path / "model.pt",
            tmp_path / name,
            kind="torchrec",
            names=NAMES,
            config=config(data, **MODEL),
            order=order,
            reporter=reporter,
        )
        told = "taken as in the data: genre, item, user, age, price. If it was another one, give --order"
        assert any(told in note for note in reporter.notes) != is_same
        assert (np.abs(scores_of(tmp_path / name / "bundle") - wanted).max() < 1e-6) == is_same


REFUSED = [
    ({"model": {"name": "deepfm"}}, {}, "can't be imported as model 'deepfm'.*dlrm .torchrec.models.dlrm.DLRM"),
    (
        {**MODEL, "model": {**MODEL["model"], "top": [10]}},
        {},
        "2 linear layers in.*over_arch|3 linear layers.*model.top",
    ),
    ({**MODEL, "model": {**MODEL["model"], "bottom": [7]}}, {}, r"has the shape \[6, 2\].*model.bottom"),
    ({**MODEL, "tables": {"dim": 4}}, {}, "table 'genre' has dim 4.*vectors of 8 numbers; set tables.dim"),
    (MODEL, {"names": {"user": "t_user", "genre": "t_genre"}}, "no table 'item'.*item=NAME.*; did you mean 't_item'.$"),
    (MODEL, {"names": {**NAMES, "user": "t_use"}}, "no table 't_use'.*did you mean 't_user'"),
    (MODEL, {"order": ["user", "item"]}, "lacks 'genre'"),
    (MODEL, {"order": ["user", "item", "gnre"]}, "has 'gnre'"),
]


@pytest.mark.parametrize(("sections", "how", "message"), REFUSED)
def test_refused(sections: dict, how: dict, message: str, data: Path, tmp_path: Path) -> None:
    torch.save(plain_model().state_dict(), tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=message):
        import_source(
            tmp_path / "model.pt",
            tmp_path / "run",
            kind="torchrec",
            config=config(data, **sections),
            **{"names": NAMES, **how},
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt"]


@pytest.mark.parametrize(
    ("section", "missing"), [({"name": "deepfm", "hidden_units": [4]}, "linear.bias"), (MODEL["model"], "bottom.0.wei")]
)
def test_tables_alone_are_no_model(section: dict, missing: str, data: Path, tmp_path: Path) -> None:
    state = {name: value for name, value in plain_model().state_dict().items() if "embedding_bags" in name}
    torch.save(state, tmp_path / "tables.pt")
    chosen = config(data, **{**MODEL, "model": section})
    how = {"kind": "torchrec", "names": NAMES, "config": chosen}
    with pytest.raises(ConfigError, match=rf"has tables alone: it has nothing for '{missing}.*with --tables-only"):
        import_source(tmp_path / "tables.pt", tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()
    done = import_source(tmp_path / "tables.pt", tmp_path / "run", tables_only=True, **how)
    assert (len(done.tables), done.network) == (3, 0)


def test_the_command_tells_the_order_and_wants_a_size(data: Path, tmp_path: Path) -> None:
    torch.save(plain_model().state_dict(), tmp_path / "model.pt")
    (tmp_path / "dlrm.yaml").write_text(
        f"data: {{path: {data}}}\nmodel: {{name: dlrm, bottom: {BOTTOM[:-1]}, top: {TOP[:-1]}}}\ntables: {{dim: 8}}\n"
    )
    words = ["import", tmp_path / "model.pt", "--from", "torchrec", "--config", tmp_path / "dlrm.yaml"]
    words += [word for name, theirs in NAMES.items() for word in ("--table", f"{name}={theirs}")]

    def run(*more: object) -> Result:
        return CliRunner().invoke(app, [*map(str, (*words, *more))])

    for options, tells in (([], True), (["--order", ",".join(SIZES)], False)):
        done = run("--out", tmp_path / f"run-{tells}", *options)
        assert done.exit_code == 0
        assert ("does not tell in which order" in " ".join(done.stderr.split())) == tells
    refused = run("--out", tmp_path / "small", "--method", "hash")
    assert isinstance(refused.exception, ConfigError)
    assert "--method hash needs a size; give --budget" in str(refused.exception)
