"""Programs of TorchRec's users, the collections' import changed: the same losses from the same values."""

from collections.abc import Iterator

import pytest
import torch

from tests.distributed import programs
from tests.distributed.ranks import Ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def groups(two: Ranks) -> Iterator[dict[int, Ranks]]:
    one = Ranks(1)
    yield {1: one, 2: two}
    one.close()


@pytest.mark.parametrize(
    ("optimizer", "ranks"), [("sgd", 1), ("rowwise_adagrad", 1), ("adagrad", 2), ("rowwise_adagrad", 2)]
)
def test_click_models(groups: dict[int, Ranks], ranks: int, optimizer: str) -> None:
    expected = groups[ranks].run(programs.click_model, "torchrec", optimizer, {})
    found = groups[ranks].run(programs.click_model, "embank", optimizer, {})
    assert len(set(expected[0][0])) == programs.NUM_STEPS
    for (theirs, _), (mine, _) in zip(expected, found, strict=True):
        assert mine == pytest.approx(theirs, abs=5e-7, rel=0)


def test_what_methods_hold_besides_rows_is_averaged(groups: dict[int, Ranks]) -> None:
    how = {"method": {"a": "dhe", "b": "hash"}}
    (losses, dense), (others, same) = groups[2].run(programs.click_model, "embank", "rowwise_adagrad", how)
    assert losses != others
    names = [name for name in dense if ".methods.a." in name]
    assert names
    assert all(torch.equal(dense[name], same[name]) for name in dense)


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_towers(groups: dict[int, Ranks], ranks: int) -> None:
    expected = groups[ranks].run(programs.two_towers, "torchrec")
    found = groups[ranks].run(programs.two_towers, "embank")
    for (theirs, _), (mine, _) in zip(expected, found, strict=True):
        assert mine == pytest.approx(theirs, abs=5e-7, rel=0)
    assert list(found[0][1]) == list(expected[0][1])
    for name, value in expected[0][1].items():
        torch.testing.assert_close(found[0][1][name], value, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(("wrapper", "ranks"), [("dmp", 1), ("dmp", 2), ("ddp", 2)])
def test_sequences(groups: dict[int, Ranks], ranks: int, wrapper: str) -> None:
    expected = groups[ranks].run(programs.sequences, "torchrec", wrapper)
    found = groups[ranks].run(programs.sequences, "embank", wrapper)
    assert len(set(expected[0])) == programs.NUM_STEPS
    for theirs, mine in zip(expected, found, strict=True):
        assert mine == pytest.approx(theirs, abs=5e-7, rel=0)


@pytest.mark.parametrize(("ranks", "kind"), [(2, "drop in"), (1, "collection")])
def test_a_wrapped_model_is_saved_and_loaded(groups: dict[int, Ranks], ranks: int, kind: str) -> None:
    for saved, before, after in groups[ranks].run(programs.reloaded, kind):
        assert not torch.equal(saved, before)
        assert torch.equal(saved, after)


def test_parameters_of_methods_are_refused_in_the_backward_pass(groups: dict[int, Ranks]) -> None:
    for told in groups[2].run(programs.mistaken):
        assert "apply_optimizer_in_backward was given 'methods.a." in told
        assert "Give it the rows alone" in told
