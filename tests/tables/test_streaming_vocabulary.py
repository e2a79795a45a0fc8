"""Streaming vocabularies by themselves: against a slow twin, their counts, their state, their refusals."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embank.tables import CheckpointError, ConfigError, DataError
from embank.tables.ids.hashing import integer_ids
from embank.tables.streaming import (
    IdVocabulary,
    ManagedCollisionConfig,
    StreamCounts,
    StreamingConfig,
    StreamingVocabulary,
)
from embank.tables.streaming.sorted_columns import SortedColumns, smallest
from tests.tables.slow_vocabulary import SlowVocabulary

POLICIES = [{"policy": "lru"}, {"policy": "lfu"}, {"policy": "age", "max_age": 3}]
MANAGED = ["lfu", "lru", "distance_lfu"]


def drifting(batch: int, *, size: int = 40, seed: int = 0) -> Tensor:
    """Ids whose range moves on, some of them hot, spread over all 63 bits."""
    generator = torch.Generator().manual_seed(1000 * seed + batch)
    ids = torch.randint(0, 30, (size,), generator=generator) + batch // 2
    hot = torch.randint(0, 4, (size,), generator=generator)
    return integer_ids(torch.where(torch.rand(size, generator=generator) < 0.4, hot, ids))


def with_a_rush(batch: int) -> Tensor:
    """The same, and one id that half of the batch asks for: even counts of a long past give way to it."""
    return torch.cat([drifting(batch, size=20), integer_ids(torch.full((20,), 1000 + batch // 3))])


def build(**options: object) -> StreamingVocabulary:
    return StreamingConfig(**options).build(name="t", capacity=8)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    admit_after=st.integers(1, 4),
    capacity=st.integers(2, 9),
    candidates=st.none() | st.integers(0, 6),
    batches=st.lists(st.lists(st.integers(0, 14), max_size=12), max_size=25),
)
def test_equals_the_slow_twin(
    policy: dict, admit_after: int, capacity: int, candidates: int | None, batches: list[list[int]]
) -> None:
    config = StreamingConfig(admit_after=admit_after, candidates=candidates, **policy)
    fast, slow = config.build(name="t", capacity=capacity), SlowVocabulary(config, capacity)
    totals = StreamCounts()
    for batch in batches:
        mapped = fast(torch.tensor(batch, dtype=torch.int64))
        rows, resets, counts = slow.learn(batch)
        assert mapped.rows.tolist() == rows
        assert mapped.resets.tolist() == resets
        assert mapped.counts == counts
        totals = totals + counts
    assert fast.totals == totals
    assert fast.num_ids == len(slow.row_of) == totals.admissions - totals.evictions


@pytest.mark.parametrize("policy", POLICIES)
def test_equals_the_slow_twin_over_a_long_drifting_stream(policy: dict) -> None:
    config = StreamingConfig(admit_after=2, candidates=10, **policy)
    fast, slow = config.build(name="t", capacity=12), SlowVocabulary(config, 12)
    for batch in range(150):
        ids = with_a_rush(batch)
        mapped = fast(ids)
        assert (mapped.rows.tolist(), mapped.resets.tolist(), mapped.counts) == slow.learn(ids.tolist())
    for name in ("hits", "misses", "admissions", "evictions", "resets"):
        assert getattr(fast.totals, name) > 4, f"the stream never tried {name}"


def test_admission_by_count() -> None:
    vocabulary = build(admit_after=3)
    assert vocabulary(torch.tensor([7, 7])).rows.tolist() == [0, 0]
    assert vocabulary(torch.tensor([7, 9])).rows.tolist() == [1, 0], "the third time, over batches"
    assert vocabulary(torch.tensor([9, 9])).rows.tolist() == [2, 2], "and for all of the batch"
    assert vocabulary.totals == StreamCounts(lookups=6, hits=3, misses=3, admissions=2)


def test_lfu_protects_what_is_used_more() -> None:
    vocabulary = StreamingConfig(policy="lfu").build(name="t", capacity=3)
    vocabulary(torch.tensor([1, 1, 2]))
    assert vocabulary(torch.tensor([3])).rows.tolist() == [0], "a count of 1 does not displace a count of 1"
    mapped = vocabulary(torch.tensor([3]))
    assert (mapped.rows.tolist(), mapped.resets.tolist()) == ([2], [2]), "a count of 2 displaces id 2"
    assert vocabulary(torch.tensor([1, 2, 3])).rows.tolist() == [1, 0, 2]


def test_age_makes_room_without_need_and_does_not_make_room_for_need() -> None:
    vocabulary = StreamingConfig(policy="age", max_age=2).build(name="t", capacity=3)
    vocabulary(torch.tensor([1, 2]))
    assert vocabulary(torch.tensor([3, 1])).rows.tolist() == [0, 1], "there is no room"
    assert vocabulary(torch.tensor([1])).counts.evictions == 0
    assert vocabulary(torch.tensor([1])).counts == StreamCounts(lookups=1, hits=1, evictions=1), "id 2 is 3 batches old"
    mapped = vocabulary(torch.tensor([3]))
    assert (mapped.rows.tolist(), mapped.resets.tolist()) == ([2], [2])


def test_a_batch_never_evicts_its_own_ids() -> None:
    vocabulary = StreamingConfig(policy="lru").build(name="t", capacity=3)
    vocabulary(torch.tensor([1, 2]))
    assert vocabulary(torch.tensor([1, 2, 3])).rows.tolist() == [1, 2, 0]


@pytest.mark.parametrize("config", [StreamingConfig(admit_after=2), ManagedCollisionConfig(policy="lru")])
def test_evaluation_changes_nothing(config: StreamingConfig) -> None:
    vocabulary = config.build(name="t", capacity=8)
    for batch in range(5):
        vocabulary(drifting(batch))
    before, seen = copy.deepcopy(vocabulary.state_dict()), drifting(4)
    vocabulary.eval()
    for batch in range(5, 9):
        mapped = vocabulary(drifting(batch))
        assert not mapped.resets.numel()
        assert mapped.counts.hits == int((mapped.rows > 0).sum())
        assert (mapped.counts.admissions, mapped.counts.evictions) == (0, 0)
    assert equal_state(vocabulary.state_dict(), before)
    assert int(vocabulary(seen).rows.max()) > 0
    vocabulary.train()
    vocabulary(drifting(9))
    assert not equal_state(vocabulary.state_dict(), before)


def equal_state(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(equal_state(one[k], other[k]) for k in one)
        )
    if isinstance(one, list):
        return isinstance(other, list) and all(map(equal_state, one, other))
    return one == other


CONFIGS = [
    *(StreamingConfig(admit_after=2, candidates=5, **policy) for policy in POLICIES),
    *(ManagedCollisionConfig(policy=policy) for policy in MANAGED),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_state_goes_on_bit_for_bit(config: StreamingConfig, tmp_path) -> None:
    whole, first = (config.build(name="t", capacity=8) for _ in range(2))
    for batch in range(10):
        whole(drifting(batch))
        first(drifting(batch))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = config.build(name="t", capacity=8)
    second(drifting(99))  # what it knew is gone
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for batch in range(10, 30):
        one, other = whole(drifting(batch)), second(drifting(batch))
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.resets, other.resets)
        assert (one.counts, one.draw) == (other.counts, other.draw)
    assert equal_state(whole.state_dict(), second.state_dict())
    assert whole.totals == second.totals


def test_another_vocabularys_state_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"the saved vocabulary of table 't' has .*'admit_after': 2.*; make it with the"
    ):
        build(admit_after=1).load_state_dict(build(admit_after=2).state_dict())
    with pytest.raises(CheckpointError, match="'capacity': 8"):
        StreamingConfig().build(name="t", capacity=9).load_state_dict(build().state_dict())


@pytest.mark.parametrize("policy", MANAGED)
def test_managed_collisions_keep_the_promises_of_the_interface(policy: str) -> None:
    """What each row holds, followed from outside: distinct ids have distinct rows, and a row that changes hands is
    reset."""
    vocabulary = ManagedCollisionConfig(policy=policy).build(name="t", capacity=12)
    owner: dict[int, int] = {}
    totals = StreamCounts()
    for batch in range(60):
        ids = with_a_rush(batch)
        mapped = vocabulary(ids)
        totals = totals + mapped.counts
        pairs = {(row, id_) for row, id_ in zip(mapped.rows.tolist(), ids.tolist(), strict=True) if row}
        assert len({row for row, _ in pairs}) == len(pairs)
        for row, id_ in pairs:
            assert (row in mapped.resets.tolist()) == (row in owner and owner[row] != id_)
        for row in mapped.resets.tolist():
            assert row in owner
        owner |= dict(pairs)
        assert mapped.counts.hits + mapped.counts.misses == 40
        assert vocabulary.num_ids == totals.admissions - totals.evictions
    assert vocabulary.totals == totals
    assert totals.evictions >= 10


@pytest.mark.parametrize("policy", MANAGED)
def test_what_torchrec_does_not_give(policy: str) -> None:
    """An id without a row never adds up its counts over batches, and a batch beyond 1.25 times the first is cut."""
    vocabulary = ManagedCollisionConfig(policy=policy).build(name="t", capacity=3)
    vocabulary(torch.tensor([1, 1, 1, 2, 2, 2]))
    rows = [int(vocabulary(torch.tensor([3])).rows) for _ in range(10)]
    assert (max(rows) == 0) == (policy == "lfu"), "seen ten times, and under lfu still behind ids with a count of 3"
    with pytest.raises(
        DataError, match=r"8 ids in a batch; .* leave out what is beyond 1.25 times the first batch \(6 ids\)"
    ):
        vocabulary(torch.arange(8))
    with pytest.raises(DataError, match="was given id 9223372036854775807, which TorchRec's managed collisions keep"):
        vocabulary(torch.tensor([2**63 - 1]))
    assert build()(torch.tensor([2**63 - 1])).rows.tolist() == [1], "ours takes all ids"


def test_torchrecs_other_module_has_no_training_on_a_cpu() -> None:
    """The day this fails, `HashZchManagedCollisionModule` can be offered too."""
    from torchrec import JaggedTensor
    from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule

    module = HashZchManagedCollisionModule(zch_size=8, device=torch.device("cpu"), total_num_buckets=1)
    ids = JaggedTensor(values=torch.tensor([3]), lengths=torch.ones(1, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="Expected readonly to be true"):
        module({"t": ids})


@pytest.mark.parametrize("config", [StreamingConfig(), ManagedCollisionConfig()])
def test_empty_batches_and_refused_ids(config: StreamingConfig) -> None:
    vocabulary: IdVocabulary = config.build(name="t", capacity=8)
    mapped = vocabulary(torch.empty(0, dtype=torch.int64))
    assert (mapped.rows.numel(), mapped.resets.numel(), mapped.counts) == (0, 0, StreamCounts())
    assert vocabulary(torch.tensor([[5], [6]], dtype=torch.int32)).rows.shape == (2,)
    with pytest.raises(DataError, match="table 't' was given id -3; ids of a streaming vocabulary are 0 or more"):
        vocabulary(torch.tensor([4, -3]))
    with pytest.raises(DataError, match=r"ids of table 't' are torch.float32; they must be integers"):
        vocabulary(torch.tensor([1.0]))
    with pytest.raises(DataError, match=r"ids of table 't' are torch.bool; they must be integers"):
        vocabulary(torch.tensor([True]))
    with pytest.raises(DataError, match=r"ids of table 't' are a list; give a tensor of integers"):
        vocabulary([1])
    assert vocabulary.step == 2, "a refused batch counts for nothing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"admit_after": 0}, "admit_after is 0; it is a count of at least 1"),
        ({"policy": "fifo"}, "no eviction policy 'fifo'; use 'lfu', 'lru' or 'age'"),
        ({"policy": "age"}, "the policy is 'age' and max_age is None; 'age' needs a max_age"),
        ({"max_age": 5}, "the policy is 'lru' and max_age is 5; 'age' needs a max_age, the others take none"),
        ({"policy": "age", "max_age": 0}, "max_age is 0; it is a number of batches of at least 1"),
        ({"candidates": -1}, "candidates is -1; it must be 0 or more"),
        ({"admit_after": 1.5}, "has admit_after 1.5; it must be a whole number"),
        ({"admit_after": True}, "has admit_after True; it must be a whole number"),
        ({"admit_after": "2"}, "has admit_after '2'; it must be a whole number"),
        ({"admit_after": 2**70}, rf"admit_after is {2**70}; it is an int64, at most {2**63 - 1}"),
        ({"candidates": 2.5}, "has candidates 2.5; it must be a whole number or None"),
        ({"candidates": 2**63}, "candidates is 9223372036854775808; it is an int64"),
        ({"policy": "age", "max_age": float("nan")}, "has max_age nan; it must be a whole number or None"),
        ({"policy": "age", "max_age": 2**70}, "max_age is .*; it is an int64"),
        ({"policy": ["lru"]}, r"no eviction policy '\['lru'\]'"),
    ],
)
def test_refused_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StreamingConfig(**options)


def test_numbers_of_numpy_are_numbers() -> None:
    config = StreamingConfig(admit_after=np.int64(2), candidates=np.int32(5))  # type: ignore[arg-type]
    assert (type(config.admit_after), type(config.candidates)) == (int, int)


def test_other_refusals() -> None:
    with pytest.raises(ConfigError, match="no policy 'age'; use 'lfu', 'lru' or 'distance_lfu', or StreamingConfig"):
        ManagedCollisionConfig(policy="age")  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match="table 't' has 1 row; a streaming vocabulary needs the unknown row and one more"
    ):
        StreamingConfig().build(name="t", capacity=1)


def test_bytes_are_those_of_rows_index_and_candidates() -> None:
    vocabulary = build(admit_after=2)
    assert vocabulary.nbytes() == 8 * 3 * 8
    vocabulary(torch.tensor([1, 1, 2, 3]))
    assert vocabulary.nbytes() == 8 * 3 * 8 + 8 * 2 * 1 + 8 * 3 * 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20), st.data())
def test_smallest_is_the_head_of_a_sort(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(pairs)))
    triples = [(*pair, place) for place, pair in enumerate(pairs)]
    keys = torch.tensor(triples, dtype=torch.int64).reshape(-1, 3).unbind(1)
    assert smallest(keys, count).tolist() == [place for *_, place in sorted(triples)[:count]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 20), max_size=8)), max_size=12))
def test_sorted_columns_are_a_dict(changes: list[tuple[bool, set[int]]]) -> None:
    columns, twin = SortedColumns(1), dict[int, int]()
    for is_insert, keys in changes:
        chosen = [key for key in keys if (key in twin) != is_insert]
        tensor = torch.tensor(chosen, dtype=torch.int64)
        if is_insert:
            columns.insert(tensor, tensor * 7 + len(twin))
            twin |= {key: key * 7 + len(twin) for key in chosen} if chosen else {}
        else:
            columns.remove(columns.find(tensor)[0][: len(chosen)])
            for key in chosen:
                del twin[key]
        assert columns.keys.tolist() == sorted(twin)
        assert columns.columns[0].tolist() == [twin[key] for key in sorted(twin)]
        places, found = columns.find(torch.arange(21))
        assert found.tolist() == [key in twin for key in range(21)]
        assert columns.keys[places[found]].tolist() == sorted(twin)
