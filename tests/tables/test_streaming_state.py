"""Saved vocabularies: what is damaged or of other tables is refused before anything is loaded."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.tables import CheckpointError, TableCollection, TableSpec
from embank.tables.streaming import ManagedCollisionConfig, StreamingCollection, StreamingConfig, StreamingVocabulary
from tests.tables.test_streaming_vocabulary import equal_state


def build() -> StreamingVocabulary:
    return StreamingConfig(admit_after=2, candidates=2).build(name="t", capacity=8)


def damaged(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """A state of 8 rows, 3 of them given out, and a candidate, with a change."""
    vocabulary = build()
    vocabulary(torch.tensor([5, 5, 6, 6, 7]))
    state = copy.deepcopy(vocabulary.state_dict())
    change(state["_extra_state"])
    return state


def column(place: int, *values: float, dtype: torch.dtype = torch.int64) -> Callable[[dict[str, Any]], object]:
    """Another column in a state: ids, counts and last batches of rows, then those of candidates."""
    return lambda saved: saved["state"]["tensors"].__setitem__(place, torch.tensor(values, dtype=dtype))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (column(0, -1, 5, 5, *[-1] * 5), "an id has two rows, or is negative"),
        (column(0, -1, -7, 5, *[-1] * 5), "an id has two rows, or is negative"),
        (column(0, 5, 6, *[-1] * 6), "the unknown row, or a row that was never given out, has an id"),
        (column(0, -1, 5, 6, 9, *[-1] * 4), "the unknown row, or a row that was never given out, has an id"),
        (column(0, -1, 5, 6), r"columns have the lengths \[3, 8, 8, 1, 1, 1\], not three times 8"),
        (column(0, *[-1.0] * 8, dtype=torch.float32), "its tensors are not six columns of int64"),
        (column(1, *[-2] * 8), "counts or batches are negative"),
        (column(2, *[9] * 8), "ids were seen after batch 1"),
        (column(3, 6), "candidates are not in ascending order, or have rows"),
        (column(3, 7, 8), "columns have the lengths"),
        (lambda saved: saved["state"].update(num_used=-4), "num_used is -4; it must be a count of rows from 1 to 8"),
        (lambda saved: saved["state"].update(num_used=2.0), "num_used is 2.0"),
        (lambda saved: saved["state"].pop("num_used"), "num_used is None"),
        (lambda saved: saved["state"]["tensors"].pop(), "its tensors are not six columns"),
        (lambda saved: saved.update(state=[]), "its tensors are not six columns"),
        (lambda saved: saved.pop("facts"), "it lacks facts"),
        (lambda saved: saved.clear(), "it lacks facts, step, totals, state"),
        (lambda saved: saved.update(step=-1), "step -1 and totals .* must be counts, 0 or more"),
        (lambda saved: saved["totals"].pop("hits"), "and totals .* must be counts"),
        (lambda saved: saved["totals"].update(hits="2"), "and totals .* must be counts"),
        (lambda saved: saved.update(waiting=[5]), "its waiting resets are no list of numbers and rows"),
        (lambda saved: saved.update(waiting=[{"draw": 2, "rows": torch.tensor([1])}]), r"of the batches \[2\], .* 1"),
        (lambda saved: saved.update(waiting=[{"draw": 1, "rows": torch.tensor([8])}]), r"of rows outside 1 .. 7"),
        (lambda saved: saved.update(waiting=[{"draw": 1, "rows": torch.tensor([1, 1])}]), "of no distinct rows"),
    ],
)
def test_a_damaged_state_is_refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
    vocabulary = build()
    vocabulary(torch.tensor([9]))
    before = copy.deepcopy(vocabulary.state_dict())
    with pytest.raises(
        CheckpointError, match=rf"the saved vocabulary of table 't' is damaged: .*{message}.*\. Load what"
    ):
        vocabulary.load_state_dict(damaged(change))
    assert equal_state(vocabulary.state_dict(), before), "nothing was loaded"


def test_a_state_from_before_resets_were_saved_is_taken() -> None:
    build().load_state_dict(damaged(lambda saved: saved.pop("waiting")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("_mch_sorted_raw_ids"), "its tensors are not .*_mch_sorted_raw_ids"),
        (
            lambda state: state.update(_mch_sorted_raw_ids=torch.ones(8)),
            r"_mch_sorted_raw_ids is not torch.int64 \[8\]",
        ),
        (lambda state: state["_mch_sorted_raw_ids"][:2].fill_(5), "an id has two rows or is negative"),
        (lambda state: state["_mch_sorted_raw_ids"][:1].fill_(-5), "an id has two rows or is negative"),
        (lambda state: state["_mch_remapped_ids_mapping"].fill_(3), "its rows are not each of the table's once"),
    ],
)
def test_a_damaged_state_of_managed_collisions_is_refused(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    vocabulary = ManagedCollisionConfig().build(name="t", capacity=8)
    vocabulary(torch.tensor([5, 6]))
    saved = copy.deepcopy(vocabulary.state_dict())
    change(saved["_extra_state"]["state"])
    with pytest.raises(CheckpointError, match=f"the saved vocabulary of table 't' is damaged: {message}"):
        vocabulary.load_state_dict(saved)
    assert vocabulary.num_ids == 2


def test_vocabularies_are_loaded_all_or_none() -> None:
    def twins(*names: str) -> StreamingCollection:
        tables = [TableSpec(name=name, num_embeddings=8, embedding_dim=4, feature_names=[name]) for name in "ab"]
        return StreamingCollection(TableCollection(tables), dict.fromkeys(names, StreamingConfig()))

    both, one = twins("a", "b"), twins("a")
    message = "the state_dict has vocabularies of the tables a, and here they are of the tables a, b; make the"
    for here, there in ((both, one), (both.vocabularies, one.vocabularies)):
        with pytest.raises(CheckpointError, match=message):
            here.load_state_dict(there.state_dict())
    with pytest.raises(
        CheckpointError, match="has vocabularies of the tables a, b, and here they are of the tables a;"
    ):
        one.load_state_dict(both.state_dict())
    assert one.load_state_dict(both.state_dict(), strict=False).unexpected_keys
    assert both.load_state_dict({}, strict=False).missing_keys
    kjt = KeyedJaggedTensor(keys=["a", "b"], values=torch.tensor([7, 8]), lengths=torch.tensor([1, 1]))
    both(kjt)
    before, saved = both.tables.weights()["a"].clone(), copy.deepcopy(twins("a", "b").state_dict())
    saved["tables.embedding_bags.a.weight"] += 1
    saved["vocabularies.b._extra_state"]["step"] = -1
    with pytest.raises(CheckpointError, match="the saved vocabulary of table 'b' is damaged"):
        both.load_state_dict(saved)
    assert torch.equal(both.tables.weights()["a"], before)
    assert both.vocabulary("a").step == 1


def test_a_state_is_whole_while_a_thread_maps() -> None:
    tables = TableCollection([TableSpec(name="a", num_embeddings=64, embedding_dim=2, feature_names=["a"])])
    streaming = StreamingCollection(tables, {"a": StreamingConfig(admit_after=1, policy="lru")})
    generator, stop = torch.Generator().manual_seed(0), threading.Event()

    def map_on() -> None:
        while not stop.is_set():
            values = torch.randint(1000, (100,), generator=generator)
            streaming.map(KeyedJaggedTensor(keys=["a"], values=values, lengths=torch.ones(100, dtype=torch.int32)))

    thread = threading.Thread(target=map_on)
    thread.start()
    try:
        states = [streaming.vocabularies.state_dict() for _ in range(60)]
    finally:
        stop.set()
        thread.join()
    for state in states:
        streaming.vocabularies.load_state_dict(state)
    assert copy.deepcopy(streaming).vocabulary("a").step == streaming.vocabulary("a").step
