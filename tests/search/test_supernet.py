"""A candidate on a frozen supernet is what it says: the masked model, and the small model that is cut out of it."""

from pathlib import Path
from random import Random

import optuna
import pytest
import torch
from tests.search.supernets import scored, searched
from tests.training.runs import train, write_data

from embank.compression.methods.mde import ids_per_lookup
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.runs.evaluate import evaluate
from embank.pipelines.search import scores as scores_module
from embank.pipelines.search.cut import cut_model
from embank.pipelines.search.fields import MDE, UNIFORM, candidate_config, field_space
from embank.pipelines.search.retrain import different, overlap
from embank.pipelines.search.scores import Scorer
from embank.pipelines.search.supernet import open_supernet, train_supernet
from embank.search.spaces import Shape
from embank.tables import ConfigError, TableCollection

pytestmark = pytest.mark.slow

MODELS = {
    "deepfm": {"name": "deepfm", "hidden_units": [8], "batch_norm": True},
    "dcn_v2": {"name": "dcn_v2", "hidden_units": [8], "num_cross_layers": 2},
    "ipnn": {"name": "ipnn", "hidden_units": [8]},
    "fnn": {"name": "fnn", "hidden_units": [8], "batch_norm": True},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "prepared")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "supernet"
    train_supernet(searched(data), path)
    return path


@pytest.mark.parametrize("model", MODELS)
def test_a_cut_candidate_scores_as_the_masked_supernet(model: str, data: Path, tmp_path: Path) -> None:
    overrides = {"item": {"dim": 4, "method": "hash", "num_rows": 3}}
    sections = {"model": MODELS[model], "tables": {"dim": 8, "overrides": overrides}}
    with scored(tmp_path / "run", data, **sections) as (own, space, scorer):
        for seed in range(3):
            candidate = space.decode(space.draw(Random(seed)))
            shapes = space.shapes(candidate)
            small = cut_model(scorer, shapes, config=own)
            assert isinstance(small.tables, TableCollection)
            assert small.tables.nbytes("serving") == space.nbytes(candidate)
            assert evaluate(small, data, "valid")["auc"] == pytest.approx(scorer(shapes), abs=1e-6)
            assert dict(small.network.named_parameters()).keys() == dict(scorer.model.network.named_parameters()).keys()
            num = [sum(p.numel() for p in network.parameters()) for network in (small.network, scorer.model.network)]
            assert num[0] < num[1]  # dead input columns are gone


def test_the_whole_supernet_scores_as_its_model(data: Path, run: Path) -> None:
    with scored(run, data) as (_, space, scorer):
        assert scorer({}) == pytest.approx(evaluate(scorer.model, data, "valid")["auc"], abs=1e-6)
        whole = space.shapes(space.decode(space.ceiling()))
        assert scorer(whole) == scorer({})


def test_masks_leave_the_first_columns_and_share_rare_rows(data: Path, run: Path) -> None:
    with scored(run, data) as (_, _, scorer):
        held = scorer.valid
        user, genre = (next(f for f in held.fields if f.name == name) for name in ("user", "genre"))
        shapes = {"user": Shape(rows=10, width=3), "genre": Shape(rows=4, width=8)}
        values = held.masked(shapes, start=0, stop=held.num_rows)
        ids = held.ids["user"].ids_N
        counts = user.counts.double()
        sharing = [0, *range(10, user.num_ids)]
        mean = (counts[sharing, None] * user.rows_ND[sharing].double()).sum(0) / counts[sharing].sum()
        for row, number in enumerate(ids.tolist()):
            expected = user.rows_ND[number] if 0 < number < 10 else mean.float()
            torch.testing.assert_close(values[row, user.columns][:3], expected[:3])
            torch.testing.assert_close(values[row, user.first_order], expected[8])
        assert not values[:, user.columns][:, 3:].any()
        bags = torch.split(held.ids["genre"].ids_N, held.ids["genre"].lengths_V.tolist())
        shared = genre.shared_row(4)
        for row, bag in enumerate(bags):
            parts = [genre.rows_ND[i] if 0 < i < 4 else shared for i in bag.tolist()]
            expected = torch.stack(parts).sum(0) if parts else torch.zeros(9)
            torch.testing.assert_close(values[row, genre.columns], expected[:8])


def test_scores_repeat_and_leave_the_supernet_alone(data: Path, tmp_path: Path) -> None:
    with scored(tmp_path / "run", data, model=MODELS["fnn"]) as (_, space, scorer):
        before = {key: value.clone() for key, value in scorer.model.network.state_dict().items()}
        shapes = [space.shapes(space.decode(space.draw(Random(seed)))) for seed in range(3)]
        first = [scorer(s) for s in shapes]
        assert [scorer(s) for s in reversed(shapes)] == first[::-1]
        assert len(set(first)) == 3
        for key, value in scorer.model.network.state_dict().items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=0)
        assert not any(module.training for module in scorer.model.network.modules())


def test_batch_statistics_are_those_of_the_candidate(data: Path, tmp_path: Path) -> None:
    with scored(tmp_path / "run", data, model=MODELS["fnn"]) as (_, space, scorer):
        assert scorer.calibration is not None
        shapes = space.shapes(space.decode(space.floor()))
        norm = scorer.norms[0]
        with scorer.calibrated(shapes):
            linear = scorer.model.network.deep[0]
            values = scorer.calibration.masked(shapes, start=0, stop=scorer.calibration.num_rows)
            width = scorer.model.network.num_embedding_columns
            inputs = torch.cat([scorer.calibration.dense_VI, values[:, :width]], dim=1)
            torch.testing.assert_close(norm.running_mean, linear(inputs).mean(0), rtol=1e-4, atol=1e-5)
            assert not norm.training


def test_the_ladder_gives_poor_candidates_up(data: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_module, "LEAST_ROWS", 20)
    with open_supernet(run, config=searched(data)) as net:
        scorer = Scorer(net, data=data)
        assert scorer.rungs == [25, 100]
        asked: list[tuple[int, float]] = []

        def told(rung: int, value: float) -> bool:
            asked.append((rung, value))
            return False

        assert scorer({}, is_hopeless=told) == scorer({})
        assert [rung for rung, _ in asked] == [0]
        assert scorer({}, is_hopeless=lambda rung, value: True) is None


def test_held_rows_are_thinned_where_they_are_too_many(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", rows={"train": 600, "valid": 3 * 8192, "test": 100}, bags={}, group=False)
    with (
        scored(tmp_path / "run", data, tables={"dim": 4}) as (own, _, _),
        open_supernet(tmp_path / "run", config=own) as net,
    ):
        thin = Scorer(net, data=data, max_rows=8192).valid
        assert thin.num_rows == 8192
        first = next(iter(Loader(data, "valid", batch_size=8192, shuffle=False).epoch(0)))
        assert thin.labels_V.sum() == first.labels.sum()


def test_logloss_is_the_negative_score(data: Path, run: Path) -> None:
    with open_supernet(run, config=searched(data)) as net:
        value = Scorer(net, data=data, metric="logloss")({})
        assert value is not None
        assert -1.5 < value < -0.3


def test_a_candidate_is_a_configuration(data: Path, run: Path) -> None:
    own = searched(data)
    space = field_space(own, row_levels=2)
    rows, width = space.parameters["rows.user"].values[0], 4
    shapes = {"user": Shape(rows=int(rows), width=width)}
    tables = candidate_config(own, shapes).tables
    assert (tables.of("user").method, tables.of("user").options.num_rows, tables.of("user").dim) == (
        "frequency_cut",
        rows,
        4,
    )
    assert (tables.of("item").method, tables.of("item").dim, tables.alignment) == ("full", 8, "pad")


def test_another_supernet_is_refused_by_name(data: Path, run: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"has tables.dim = 8, the supernet of this configuration needs 4"),
        open_supernet(run, config=searched(data, tables={"dim": 4})),
    ):
        pass
    other = write_data(tmp_path / "other", single={"user": 60, "item": 7})
    with (
        pytest.raises(ConfigError, match="was trained on data with fingerprint"),
        open_supernet(run, config=searched(other)),
    ):
        pass
    trained = tmp_path / "trained"
    options = {"width_sampling": "log", "evolution": {"generations": 1, "num_mutants": 1, "num_crossovers": 0}}
    train(data, trained, tables={"dim": 8, "method": "optembed", "alignment": "pad", **options}, train={"epochs": 1})
    with pytest.raises(ConfigError, match=r"tables.evolution"), open_supernet(trained, config=searched(data)):
        pass


def test_what_can_not_be_searched_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match="model 'lr' has no embeddings"):
        field_space(searched(data, model={"name": "lr"}))
    overrides = {name: {"method": "full"} for name in ("user", "item", "genre")}
    with pytest.raises(ConfigError, match="every feature has an override"):
        field_space(searched(data, tables={"dim": 8, "overrides": overrides}))


def test_the_simple_candidates_keep_the_budget(data: Path) -> None:
    space = field_space(searched(data), widths=1, row_levels=3)
    for budget in (0.6, 0.2, 0.1):
        allowed = space.allowed_nbytes(budget)
        simple = space.simple_candidates(allowed)
        assert all(space.nbytes(candidate) <= allowed for candidate in simple.values())
        uniform, by_rule = (space.shapes(simple[name]) for name in (UNIFORM, MDE))
        assert len({shape.width for shape in uniform.values()}) == 1
        widths = [by_rule[spec.name].width for spec in space.tables]
        sizes = ids_per_lookup(space.tables)
        assert [width for _, width in sorted(zip(sizes, widths, strict=True))] == sorted(widths, reverse=True)
        assert len(set(widths)) > 1
    assert list(space.simple_candidates(None)) == [UNIFORM], "the rule keeps all, too, and is left out"


def test_candidates_that_are_trained_anew_differ(data: Path) -> None:
    """The search's best are often one with a row more here and there."""
    space = field_space(searched(data), row_levels=3)
    whole = space.decode(space.ceiling())
    narrow = whole | {"width.user": space.parameters["width.user"].values[0]}
    nearly = whole | {"width.genre": space.parameters["width.genre"].values[0]}
    trials = [
        optuna.trial.create_trial(value=value, user_attrs={"candidate": candidate})
        for value, candidate in ((0.9, whole), (0.8, nearly), (0.7, narrow))
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    assert overlap(space.shapes(whole), space.shapes(nearly)) > 0.9 > overlap(space.shapes(whole), space.shapes(narrow))
    assert [t.number for t in different(trials, space, num=2)] == [0, 2]
    assert [t.number for t in different(trials, space, num=3)] == [0, 1, 2]
