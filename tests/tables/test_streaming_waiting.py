"""Batches between `map` and their lookup: a row never shows what another id has learned, whatever becomes of them."""

import copy
import pickle
import random
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.tables import DataError, IdRangeError, RowOptimizer, TableCollection, TableSpec
from embank.tables.streaming import (
    ManagedCollisionConfig,
    Streamed,
    StreamingCollection,
    StreamingConfig,
    VocabularyConfig,
    reset_rows,
)
from tests.tables.test_streaming_vocabulary import equal_state

LRU = StreamingConfig(policy="lru")
LR = 0.05


def streams(
    names: str = "ab", *, rows: int = 3, config: VocabularyConfig = LRU, others: str = ""
) -> StreamingCollection:
    """A table for each letter, those in `others` without a vocabulary."""
    specs = [
        TableSpec(name=name, num_embeddings=rows, embedding_dim=4, feature_names=[name], init_std=0.01)
        for name in names + others
    ]
    tables = TableCollection(specs, optimizer=RowOptimizer(name="sgd", lr=LR))
    return StreamingCollection(tables, dict.fromkeys(names, config))


def batch(**ids: list[int]) -> KeyedJaggedTensor:
    """Two bags of each feature, the first of one id."""
    values = torch.tensor([id_ for own in ids.values() for id_ in own])
    lengths = torch.tensor([length for own in ids.values() for length in (1, len(own) - 1)], dtype=torch.int32)
    return KeyedJaggedTensor(keys=list(ids), values=values, lengths=lengths)


def train(streaming: StreamingCollection, features: KeyedJaggedTensor | Streamed, *, push: float = 1000.0) -> None:
    """Far from initial values."""
    (streaming(features).values() * -push).sum().backward()
    streaming.tables.step()


def is_fresh(streaming: StreamingCollection, features: KeyedJaggedTensor | Streamed) -> bool:
    return bool((streaming(features).values().abs() < 1).all())


REFUSED = [
    (LRU, "", batch(a=[7, 8], b=[-1, 5]), DataError, "table 'b' was given id -1"),
    (LRU, "", batch(a=[7, 8]), DataError, "table 'b' looks up feature 'b', which the batch lacks"),
    (LRU, "c", batch(a=[7, 8], b=[7, 8], c=[0, 3]), IdRangeError, "feature 'c' has id 3, outside table 'c'"),
    (LRU, "c", batch(a=[7, 8], b=[7, 8]), DataError, "looks up feature 'c', which the batch lacks"),
    (ManagedCollisionConfig(policy="lru"), "", batch(a=[7, 8], b=[5, 2**63 - 1]), DataError, "keep for rows without"),
    (
        ManagedCollisionConfig(policy="lru"),
        "",
        batch(a=[7, 8], b=[5] * 3),
        DataError,
        "3 ids in a batch; .* 1.25 times",
    ),
]


@pytest.mark.parametrize(("config", "others", "refused", "error", "message"), REFUSED)
def test_a_refused_batch_changes_nothing(
    config: VocabularyConfig, others: str, refused: KeyedJaggedTensor, error: type[Exception], message: str
) -> None:
    streaming = streams(config=config, others=others)
    seen = {name: [1, 2] for name in "ab" + others}
    train(streaming, batch(**seen))
    before = copy.deepcopy(streaming.vocabularies.state_dict())
    with pytest.raises(error, match=message):
        streaming(refused)
    assert equal_state(streaming.vocabularies.state_dict(), before)
    fine = {name: [7, 8] if name in "ab" else [0, 1] for name in seen}
    streamed = streaming.map(batch(**fine))
    streaming(streamed)
    for name in "ab":
        assert (streaming.tables.weights()[name][streamed.mapped[name].resets].abs() < 1).all()


@pytest.mark.parametrize(
    ("of_c", "inverse", "message"),
    [
        ({"weighted": True, "fused_pooling": False}, None, "pools feature 'c' by weight, but the batch has no weights"),
        ({}, (["a", "b"], torch.tensor([[0, 1], [1, 0]])), "inverse_indices lack feature 'c'; they have a, b"),
        ({}, (["a", "b", "c"], torch.tensor([[0, 1], [1, 0], [0, 2]])), "of feature 'c' name rows 0 to 2, but the fea"),
    ],
)
def test_what_tables_refuse_besides_ids_changes_nothing(of_c: dict[str, Any], inverse: Any, message: str) -> None:
    specs = [
        TableSpec(name=name, num_embeddings=3, embedding_dim=4, feature_names=[name], **(of_c if name == "c" else {}))
        for name in "abc"
    ]
    streaming = StreamingCollection(TableCollection(specs), dict.fromkeys("ab", LRU))
    before = copy.deepcopy(streaming.vocabularies.state_dict())
    kjt = batch(a=[7, 8], b=[7, 8], c=[0, 1])
    refused = KeyedJaggedTensor(keys=kjt.keys(), values=kjt.values(), lengths=kjt.lengths(), inverse_indices=inverse)
    with pytest.raises(DataError, match=message):
        streaming.map(refused)
    assert equal_state(streaming.vocabularies.state_dict(), before)


def test_a_batch_that_is_never_looked_up_leaves_its_resets_to_the_next() -> None:
    streaming = streams()
    train(streaming, batch(a=[1, 2], b=[1, 2]))
    streaming.map(batch(a=[7, 8], b=[7, 8]))
    assert is_fresh(streaming, batch(a=[7, 8], b=[7, 8])), (
        "ids 7 and 8 have the rows of 1 and 2, and were never trained"
    )
    train(streaming, batch(a=[7, 8], b=[7, 8]))
    assert not is_fresh(streaming, batch(a=[7, 8], b=[7, 8])), "not reset again"


def test_batches_before_a_reset_still_have_the_rows() -> None:
    streaming = streams("a")
    train(streaming, batch(a=[1, 2]))
    early, _skipped, late = (streaming.map(batch(a=ids)) for ids in ([1, 2], [7, 8], [8, 7]))
    assert not is_fresh(streaming, early), "rows of ids 1 and 2, which later batches take from them"
    train(streaming, early)
    assert is_fresh(streaming, late)


def test_a_reset_that_failed_is_done_by_the_next_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    streaming = streams()
    train(streaming, batch(a=[1, 2], b=[1, 2]))
    streamed = streaming.map(batch(a=[7, 8], b=[7, 8]))

    def full(*_args: object, **_how: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("embank.tables.streaming.collection.reset_rows", full)
        with pytest.raises(OSError, match="the disk is full"):
            streaming(streamed)
    assert is_fresh(streaming, streamed)


def test_rows_that_wait_are_unknown_in_evaluation() -> None:
    """They hold what others have learned, and evaluation resets nothing: batches that wait need them."""
    streaming = streams("a")
    train(streaming, batch(a=[1, 2]))
    early, _late = streaming.map(batch(a=[1, 2])), streaming.map(batch(a=[7, 2]))
    streaming.eval()
    streamed = streaming.map(batch(a=[7, 1, 2]))
    assert streamed.mapped["a"].rows.tolist() == [0, 0, 2]
    assert (streamed.counts["a"].hits, streamed.counts["a"].misses) == (1, 2)
    rows = streaming.tables.weights()["a"].clone()
    streaming(streamed)
    assert torch.equal(streaming.tables.weights()["a"], rows)
    streaming.train()
    assert not is_fresh(streaming, early)


def test_a_checkpoint_between_map_and_lookup_holds_the_resets(tmp_path) -> None:
    streaming = streams()
    train(streaming, batch(a=[1, 2], b=[1, 2]))
    waiting = streaming.map(batch(a=[7, 8], b=[7, 8]))
    torch.save(streaming.state_dict(), tmp_path / "state.pt")
    assert is_fresh(streaming, waiting)
    other = streams()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert is_fresh(other, batch(a=[7, 8], b=[7, 8]))
    with pytest.raises(DataError, match="was not mapped by the vocabulary of table 'a' here"):
        other(waiting)


def test_batches_out_of_order_are_refused() -> None:
    streaming = streams()
    first, second = (streaming.map(batch(a=ids, b=ids)) for ids in ([1, 2], [7, 8]))
    streaming(second)
    with pytest.raises(
        DataError, match="batch 1 of table 'a' is looked up after batch 2, .*; look batches up in the order"
    ):
        streaming(first)
    streaming(second)  # the latest one may come again
    evaluated = streaming.eval().map(batch(a=[7, 8], b=[7, 8]))
    streaming.train()(batch(a=[9, 9], b=[9, 9]))
    with pytest.raises(DataError, match="batch 2 of table 'a' is looked up after batch 3"):
        streaming(evaluated)


def test_batches_of_others_are_refused() -> None:
    streaming = streams()
    streamed = streaming.map(batch(a=[1, 2], b=[1, 2]))
    for other in (streams(), copy.deepcopy(streaming), pickle.loads(pickle.dumps(streaming))):
        with pytest.raises(DataError, match="was not mapped by the vocabulary of table 'a' here.*; map it with the"):
            other(streamed)
    with pytest.raises(
        DataError, match=r"mapped by vocabularies of \['a', 'b'\], and here they are of \['a'\]; map it"
    ):
        streams("a", others="b")(streamed)
    assert is_fresh(streaming, streamed)
    streaming.vocabularies.load_state_dict(streaming.vocabularies.state_dict())
    with pytest.raises(DataError, match="or before a state was loaded into it"):
        streaming(streamed)


def test_batches_of_another_process_serve_evaluation_alone() -> None:
    """As a loader's forked worker sends them: what it learns, it learns for itself."""
    streaming = streams("a")
    train(streaming, batch(a=[1, 2]))
    worker = copy.deepcopy(streaming)
    worker.vocabulary("a").waiting.history = streaming.vocabulary("a").waiting.history  # as after a fork
    evaluated = pickle.loads(pickle.dumps(worker.eval().map(batch(a=[1, 2]))))
    assert not is_fresh(streaming, evaluated)
    learned = pickle.loads(pickle.dumps(worker.train().map(batch(a=[1, 2]))))
    with pytest.raises(DataError, match="number 2 of table 'a', was learned in another process, .* has learned 1"):
        streaming(learned)


class ByHand:
    """The slow twin: the values of every stay of an id in a row, apart from all others.

    A stay is the row and the batch that reset it for the id, 0 where nobody had it before.
    """

    def __init__(self, streaming: StreamingCollection) -> None:
        self.fresh = copy.deepcopy(streaming.tables)
        self.values = {(row, 0): value.clone() for row, value in enumerate(self.fresh.weights()["a"])}
        self.began = dict.fromkeys(range(len(self.values)), 0)

    def map(self, streamed: Streamed) -> list[tuple[int, int]]:
        """The stays that a batch looks up."""
        mapped = streamed.mapped["a"]
        reset_rows(self.fresh, "a", mapped.resets, draw=mapped.draw)
        for row in mapped.resets.tolist():
            self.began[row] = mapped.draw
            self.values[row, mapped.draw] = self.fresh.weights()["a"][row].clone()
        return [(row, self.began[row]) for row in mapped.rows.tolist()]

    def look_up(self, stays: list[tuple[int, int]]) -> Tensor:
        return torch.stack([self.values[stay] for stay in stays])

    def train(self, stays: list[tuple[int, int]]) -> None:
        """A step of SGD on the sum of (row - 1) ** 2."""
        expected = self.look_up(stays)
        for stay, value in zip(stays, expected, strict=True):
            self.values[stay] = self.values[stay] - LR * 2 * (value - 1)


@pytest.mark.parametrize("config", [LRU, StreamingConfig(policy="age", max_age=2), ManagedCollisionConfig()], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_any_course_of_batches_shows_ids_their_own_values(seed: int, config: VocabularyConfig) -> None:
    """Mapped ahead, trained on, left out, evaluated, saved and loaded, in random order."""
    chance, streaming = random.Random(seed), streams("a", rows=5, config=config)
    by_hand, waiting, num_checked = ByHand(streaming), deque[tuple[Streamed, list[tuple[int, int]]]](), 0
    for number in range(150):
        ids = [1 + chance.randrange(5) + number // 5 for _ in range(4)]
        features = KeyedJaggedTensor(keys=["a"], values=torch.tensor(ids), lengths=torch.ones(4, dtype=torch.int32))
        course = chance.choices(["map", "train", "leave out", "evaluate", "load"], [6, 4, 1, 2, 0.3])[0]
        if course == "map":
            streamed = streaming.map(features)
            waiting.append((streamed, by_hand.map(streamed)))
        elif course == "train" and waiting:
            streamed, stays = waiting.popleft()
            out = streaming(streamed).values()
            torch.testing.assert_close(out.detach(), by_hand.look_up(stays), rtol=1e-4, atol=1e-5)
            (out - 1).square().sum().backward()
            streaming.tables.step()
            by_hand.train(stays)
            num_checked += 1
        elif course == "leave out" and waiting:
            waiting.popleft()
        elif course == "evaluate":
            evaluated = streaming.eval().map(features)
            stays = [(row, by_hand.began[row]) for row in evaluated.mapped["a"].rows.tolist()]
            out = streaming(evaluated).values().detach()
            torch.testing.assert_close(out, by_hand.look_up(stays), rtol=1e-4, atol=1e-5)
            streaming.train()
        elif course == "load":
            state = copy.deepcopy(streaming.state_dict())
            streaming = streams("a", rows=5, config=config)
            streaming.load_state_dict(state)
            waiting.clear()
    assert num_checked > 20
    assert streaming.vocabulary("a").totals.resets > 10
