"""What a SPACE.yaml may hold: every value is tried before a search begins."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.search.supernets import plan_of
from tests.training.runs import write_data

from embank.pipelines.search.configspace import ConfigSpace, config_space
from embank.pipelines.search.search import Search
from embank.pipelines.sweep.feasible import Feasibility
from embank.tables import BudgetError, ConfigError

HASH = {"tables.method": ["hash"], "tables.dim": [8], "tables.codec": ["fp32"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "prepared")


def full_space(data: Path, tmp_path: Path, options: dict[str, Any], **settings: Any) -> ConfigSpace:
    plan = plan_of(data, tmp_path / "s", space="full", sampler="tpe", budgets=[0.9], **settings)
    space = config_space(replace(plan, options={**HASH, **options}), budget=0.9, shapes=tmp_path / "none")
    assert isinstance(space, ConfigSpace)
    return space


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train.lr": [-1, 0.01]}, r"'train.lr' holds -1, which can't be tried: train.lr is -1.0: it must be 0 or"),
        ({"train.lr": [0.01, "fast"]}, "'train.lr' holds 'fast', which can't be tried: train.lr is 'fast'"),
        ({"tables.method": ["hash", "nope"]}, "'tables.method' holds 'nope', which can't be tried: .*no method 'nope'"),
        ({"model.name": ["deepfm", "nope"]}, "'model.name' holds 'nope', which can't be tried: .*'nope'"),
        ({"train.straight_through": ["int2", "nope"]}, "'train.straight_through' holds 'nope', .*no codec 'nope'"),
        ({"tables.codec": ["fp32", "int5"]}, "'tables.codec' holds 'int5', which can't be tried: .*no codec 'int5'"),
        ({"tables.dim": [8, 0]}, "'tables.dim' holds 0, which can't be tried: tables.dim is 0"),
        ({"tables.dim": [[4]]}, r"'tables.dim' holds \[4\], which can't be tried: tables.dim is"),
        ({"tables.method": [["hash"]]}, r"'tables.method' holds \['hash'\], which is no name; give a list of names"),
        ({"model.name": ["deepfm", 5]}, "'model.name' holds 5, which is no name"),
        ({"tables.num_codebooks": [2]}, "'tables.num_codebooks' holds 2, .*unknown key"),
    ],
)
def test_a_value_that_the_configuration_refuses_is_named_before_anything_is_written(
    data: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    file, out = tmp_path / "mine.yaml", tmp_path / "s"
    file.write_text(yaml.safe_dump({"space": "full", **HASH, **options}))
    plan = plan_of(data, out, space=str(file), sampler="random", budgets=[], num_trials=5)
    with pytest.raises(ConfigError, match=f"the space '.*mine.yaml': {message}"):
        Search(plan, out).run()
    assert not out.exists()


def test_values_of_another_method_or_model_are_tried_with_it(data: Path, tmp_path: Path) -> None:
    """The configuration has method 'full' and model 'deepfm', which lack these keys."""
    options = {
        "tables.method": ["mgqe"],
        "tables.num_codebooks": [1],
        "model.name": ["dcn_v2"],
        "model.num_cross_layers": [1, 2],
    }
    space = full_space(data, tmp_path, options)
    config = space.config(space.first_candidates()[0])
    assert (config.model["name"], config.tables.default.options.num_codebooks) == ("dcn_v2", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tables.budget": [0.1, 0.5]}, "has the key tables.budget, which is not tuned: give budgets with --budget"),
        ({"budget": [0.1, 0.5]}, "has the key budget, which is not tuned: give budgets with --budget"),
        (
            {"train.monitor": ["auc", "logloss"]},
            "has the key train.monitor, .*: trials are compared by one metric; give",
        ),
        (
            {"train.seed": [0, 1]},
            "has the key train.seed, .* several seeds is the luckiest; give seeds with --train-se",
        ),
        ({"tables.overrides": [{"user": {"dim": 2}}]}, "has the key tables.overrides, .*: its tables are left as they"),
        ({"tables.overrides.user.dim": [2]}, "has the key tables.overrides.user.dim, which is not tuned: its tables"),
        (
            {"train": [{"epochs": 1}]},
            "has the whole section train, with train.seed in it; give single keys, as train.K",
        ),
        ({"data.path": ["a", "b"]}, "has a key 'data.path'; it knows those of the configuration's sections model, tab"),
    ],
)
def test_what_a_search_sets_itself_or_compares_by_is_no_key_of_a_space(
    data: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^the space {message}"):
        full_space(data, tmp_path, options)


@pytest.mark.parametrize(
    ("options", "key", "takers", "others"),
    [
        ({"tables.method": ["mgqe", "hash"]}, "tables.num_codebooks", "tables.method mgqe", "hash"),
        ({"tables.method": ["hash", "mgqe"]}, "tables.num_codebooks", "tables.method mgqe", "hash"),
        ({"tables.method": ["dpq", "searched", "mgqe"]}, "tables.num_codebooks", "tables.method dpq, mgqe", "searched"),
        ({"model.name": ["dcn_v2", "deepfm"]}, "model.num_cross_layers", "model.name dcn_v2", "deepfm"),
        ({"model.name": ["deepfm", "dcn_v2"]}, "model.num_cross_layers", "model.name dcn_v2", "deepfm"),
    ],
)
def test_an_option_that_some_methods_or_models_of_the_space_lack_is_refused(
    data: Path, tmp_path: Path, options: dict[str, Any], key: str, takers: str, others: str
) -> None:
    """In any order of them: a trial may try any two values together."""
    said = f"the space: '{key}' is an option of {takers} and not of {others}, which the space has as well; leave those"
    for with_key in ({**options, key: [1]}, {key: [1], **options}):
        with pytest.raises(ConfigError, match=said):
            full_space(data, tmp_path, with_key)


def test_values_of_an_option_are_tried_with_each_method_that_has_it(data: Path, tmp_path: Path) -> None:
    """A table need not be shared with `memcom`, and must be with `unified`."""
    both: dict[str, Any] = {"tables.method": ["memcom", "unified"], "tables.table": ["a", "b"]}
    assert full_space(data, tmp_path, both).choices["tables.table"] == ("a", "b")
    for methods in (["memcom", "unified"], ["unified", "memcom"]):
        with pytest.raises(ConfigError, match="'tables.table' holds None, which can't be tried: tables.table is None"):
            full_space(data, tmp_path, {"tables.method": methods, "tables.table": ["a", None]})
    alone = {"tables.method": ["memcom"], "tables.table": ["a", None]}
    assert full_space(data, tmp_path, alone).choices["tables.table"] == ("a", None)


def test_the_profiles_shapes_alone_can_be_searched(data: Path, tmp_path: Path) -> None:
    options = {"tables.method": ["searched"], "train.lr": [0.01, 0.1]}
    assert full_space(data, tmp_path, options).needs_shapes
    with pytest.raises(ConfigError, match="'train.lr' holds -1"):
        full_space(data, tmp_path, {**options, "train.lr": [0.01, -1]})


def test_values_that_are_lists(data: Path, tmp_path: Path) -> None:
    """Candidates hold their JSON text, the configuration the list; the first has its own."""
    space = full_space(data, tmp_path, {"model.hidden_units": [[16], [32, 16], [8], [16]]})
    parameter = space.parameters["model.hidden_units"]
    assert parameter.values == ("[16]", "[32, 16]", "[8]")
    first = space.first_candidates()[0]
    assert first["model.hidden_units"] == "[8]", "as in the configuration"
    chosen = space.config({**first, "model.hidden_units": "[32, 16]"})
    assert list(chosen.model["hidden_units"]) == [32, 16]
    assert space.decode(space.encode(first)) == first
    assert len(space.checksum()) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": 0.5}, "the space's 'shares' is 0.5; give a list of numbers above 0 and at most 1, for example"),
        ({"shares": [0.5, 2]}, r"the space's 'shares' is \[0.5, 2\]; give a list of numbers"),
        ({"shares": [True]}, r"the space's 'shares' is \[True\]; give a list of numbers"),
        ({"methods": "hash"}, r"the space's 'methods' is 'hash'; give a list of names of methods, for example \['full"),
        ({"methods": []}, r"the space's 'methods' is \[\]; give a list of names"),
        ({"methods": [["hash"]]}, r"the space's 'methods' is \[\['hash'\]\]; give a list of names"),
        ({"codecs": "int8"}, r"the space's 'codecs' is 'int8'; give a list of names of codecs, for example \['fp32'"),
        ({"codecs": ["int5"]}, "there is no codec 'int5'"),
        ({"codecs": ["fp32", "dedup"]}, "the space: 'codecs' holds 'dedup' and features .*; leave it out of 'codecs'"),
        ({"methods": ["hush"]}, "there is no method 'hush'"),
    ],
)
def test_spaces_of_methods_that_can_not_be_are_refused(
    data: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    plan = replace(plan_of(data, tmp_path / "s", space="methods", sampler="tpe"), options=options)
    with pytest.raises(ConfigError, match=message):
        config_space(plan, budget=None, shapes=tmp_path / "none")


@pytest.mark.parametrize("budgets", [[0.3], [1.0, 0.3]])
def test_a_method_of_one_size_leaves_nothing_behind(data: Path, tmp_path: Path, budgets: list[float]) -> None:
    out = tmp_path / "s"
    plan = plan_of(data, out, space="full", sampler="random", budgets=budgets, num_trials=3)
    with pytest.raises(BudgetError, match="method 'full' has one size, more than budget 0.3"):
        Search(replace(plan, options={"tables.method": ["full"]}), out).run()
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("budgets", "front"), [([0.004, 0.002], False), ([0.004, 0.002], True)])
def test_a_budget_that_no_candidate_keeps_is_an_error_with_the_smallest_floor(
    data: Path, tmp_path: Path, budgets: list[float], front: bool
) -> None:
    """Said after the trials, since only trying tells what methods reach; a budget of that floor is kept."""
    out = tmp_path / "s"
    sampler = "nsga2" if front else "random"
    plan = plan_of(data, out, space="full", sampler=sampler, budgets=budgets, front=front, num_trials=3)
    options = {**HASH, "tables.dim": [4, 8], "train.lr": [0.01], "train.table_lr": [0.05, 0.1]}
    with pytest.raises(BudgetError, match=r"none of its 3 candidates keeps budget 0.00[24]\. The small") as told:
        Search(replace(plan, options=options), out).run()
    assert not (out / "results.md").exists()
    said = str(told.value)
    assert "tables.method hash" in said
    floor, dim = float(said.split("is budget ")[1].split(",")[0]), int(re.search(r"tables.dim (\d)", said)[1])
    for budget, reaches in ((floor, True), (0.98 * floor, False)):
        space = config_space(replace(plan, options=options, front=False), budget=budget, shapes=tmp_path / "none")
        assert isinstance(space, ConfigSpace)
        candidates = [space.decode(genes) for genes in product(*(group.genes for group in space.groups))]
        candidate = next(candidate for candidate in candidates if candidate["tables.dim"] == dim)
        assert (Feasibility(data).refusal(space.config(candidate)) is None) == reaches


def test_a_budget_of_less_than_a_byte_leaves_nothing_behind(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    plan = plan_of(data, out, space="full", sampler="random", budgets=[0.0001], num_trials=3)
    with pytest.raises(BudgetError, match="the budget is 0.0001, less than one of the plain tables' 2,376 bytes"):
        Search(replace(plan, options=HASH), out).run()
    assert not out.exists()


def test_a_budget_with_a_codec_whose_bytes_only_rows_tell(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    plan = plan_of(data, out, space="full", sampler="random", budgets=[0.5], num_trials=3)
    said = (
        "the space: 'tables.codec' holds 'dedup' and there is a budget, but .*; leave it out of 'tables.codec', or sea"
    )
    for codecs in (["dedup"], ["fp32", "dedup"]):
        with pytest.raises(ConfigError, match=said):
            Search(replace(plan, options={**HASH, "tables.codec": codecs}), out).run()
    assert not out.exists()


@pytest.mark.slow
def test_without_a_budget_such_a_codec_is_one_of_several(data: Path, tmp_path: Path) -> None:
    """The first candidate in the codec of the fewest bits is one whose bytes are known."""
    out, codecs = tmp_path / "s", ["fp32", "dedup"]
    options = {**HASH, "tables.codec": codecs, "train.lr": [0.01], "train.table_lr": [0.05]}
    plan = replace(plan_of(data, out, space="full", budgets=[None], num_trials=2), options=options)
    space = config_space(plan, budget=None, shapes=tmp_path / "none")
    assert [candidate["tables.codec"] for candidate in space.first_candidates()] == ["fp32"]
    (study,) = Search(plan, out).run().values()
    assert [trial.user_attrs["candidate"]["tables.codec"] for trial in study.trials] == codecs
    assert all(trial.values for trial in study.trials)
