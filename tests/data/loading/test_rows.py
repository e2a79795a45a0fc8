"""The loader: every row once, in the documented shapes, resumable to the bit."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.loading.batches import assert_matches_files, assert_same, row_numbers
from tests.data.prepared import edit_part, write_prepared
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embank.pipelines.data.loading.batch import Position
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.loading.parts import Parts

few = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


def test_batch_has_the_documented_shapes_and_types(mixed: Path) -> None:
    batch = next(Loader(mixed, "train", batch_size=32, shuffle=False, prefetch=0).epoch(0))
    assert batch.dense.shape == (32, 2)
    assert batch.dense.dtype == batch.labels.dtype == torch.float32
    assert batch.sparse.keys() == ["genres", "item", "tags", "user"]
    assert batch.sparse.values().dtype == torch.int64
    assert batch.sparse.lengths().dtype == torch.int32
    assert batch.sparse.lengths().shape == (4 * 32,)
    assert batch.groups.dtype == torch.int64


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("bags", [False, True])
def test_batches_match_the_files(tmp_path: Path, shuffle: bool, bags: bool) -> None:
    write_prepared(tmp_path / "d", rows={"train": 150}, bags={"genres": 5, "a": 3} if bags else {}, group=bags)
    loader = Loader(tmp_path / "d", "train", batch_size=32, shuffle=shuffle, buffer_rows=40)
    batches = list(loader.epoch(0))
    assert_matches_files(batches, tmp_path / "d", "train")
    assert shuffle != (row_numbers(batches) == list(range(150)))


def test_a_kjt_is_as_if_made_from_values_and_lengths_alone(mixed: Path) -> None:
    for batch in Loader(mixed, "valid", batch_size=32, shuffle=True).epoch(0):
        kjt = batch.sparse
        bare = KeyedJaggedTensor(keys=kjt.keys(), values=kjt.values(), lengths=kjt.lengths())
        assert torch.equal(kjt.offsets(), bare.offsets())
        assert kjt.offsets().dtype == bare.offsets().dtype
        assert kjt.stride() == bare.stride()
        assert kjt.length_per_key() == bare.length_per_key()
        assert kjt.offset_per_key() == bare.offset_per_key()


@few
@given(
    rows=st.integers(0, 120),
    parts=st.integers(1, 4),
    group_rows=st.integers(1, 50),
    batch_size=st.integers(1, 40),
    buffer_rows=st.integers(1, 200),
    world_size=st.integers(1, 5),
    shuffle=st.booleans(),
    prefetch=st.sampled_from([0, 2]),
)
def test_every_row_comes_once(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    parts: int,
    group_rows: int,
    batch_size: int,
    buffer_rows: int,
    world_size: int,
    shuffle: bool,
    prefetch: int,
) -> None:
    path = tmp_path_factory.mktemp("once") / "data"
    write_prepared(path, rows={"train": rows}, bags={"tags": 4}, parts=parts, row_group_rows=group_rows)
    seen: list[int] = []
    for rank in range(world_size):
        loader = Loader(
            path, "train", batch_size=batch_size, shuffle=shuffle, buffer_rows=buffer_rows, prefetch=prefetch,
            rank=rank, world_size=world_size,
        )  # fmt: skip
        batches = list(loader.epoch(3))
        assert len(batches) == loader.num_batches == -(-rows // batch_size)
        assert loader.num_rows == rows
        assert all(batch.num_global_rows == batch_size for batch in batches[:-1])
        seen += row_numbers(batches)
    assert sorted(seen) == list(range(rows))
    if not shuffle and world_size == 1:
        assert seen == list(range(rows))


@few
@given(rows=st.integers(1, 90), batch_size=st.integers(1, 40), world_size=st.integers(2, 5))
def test_ranks_share_the_batches_of_one_process(
    tmp_path_factory: pytest.TempPathFactory, rows: int, batch_size: int, world_size: int
) -> None:
    path = tmp_path_factory.mktemp("share") / "data"
    write_prepared(path, rows={"train": rows}, bags={"tags": 4}, row_group_rows=17)
    whole = list(Loader(path, "train", batch_size=batch_size, shuffle=True, buffer_rows=30).epoch(1))
    parts = [
        list(
            Loader(
                path, "train", batch_size=batch_size, shuffle=True, buffer_rows=30, rank=rank, world_size=world_size
            ).epoch(1)
        )
        for rank in range(world_size)
    ]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert row_numbers([batch]) == row_numbers(shares)
        assert {share.num_global_rows for share in shares} == {len(batch.labels)}
        assert {share.position for share in shares} == {batch.position}
        sizes = [len(share.labels) for share in shares]
        assert max(sizes) - min(sizes) <= 1


@few
@given(
    batch_size=st.integers(20, 90),
    buffer_rows=st.integers(1, 200),
    world_size=st.integers(1, 3),
    shuffle=st.booleans(),
)
@pytest.mark.slow
def test_resuming_anywhere_gives_the_rest(
    mixed: Path, batch_size: int, buffer_rows: int, world_size: int, shuffle: bool
) -> None:
    def make(prefetch: int) -> Loader:
        return Loader(
            mixed, "train", batch_size=batch_size, shuffle=shuffle, buffer_rows=buffer_rows, prefetch=prefetch,
            seed=7, rank=world_size - 1, world_size=world_size,
        )  # fmt: skip

    whole = list(make(0).epoch(2))
    assert_same(whole, list(make(2).epoch(2)))
    for index, batch in enumerate(whole):
        saved = Position(**json.loads(json.dumps(asdict(batch.position))))
        assert_same(list(make(index % 2).epoch(2, start=saved)), whole[index + 1 :])


def test_a_position_holds_for_all_ranks(mixed: Path) -> None:
    ranks = [Loader(mixed, "train", batch_size=20, shuffle=True, rank=rank, world_size=2) for rank in (0, 1)]
    first, second = (list(loader.epoch(0)) for loader in ranks)
    assert_same(list(ranks[1].epoch(0, start=first[3].position)), second[4:])


def test_resuming_reads_no_earlier_block(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(mixed, "train", batch_size=10, shuffle=True, buffer_rows=32, prefetch=0)
    whole = list(loader.epoch(0))
    reads: list[int] = []
    original = Parts._read
    monkeypatch.setattr(Parts, "_read", lambda self, piece: (reads.append(1), original(self, piece))[1])
    assert_same(list(loader.epoch(0, start=whole[-2].position)), whole[-1:])
    assert len(reads) <= 4


def test_shuffles_follow_seed_and_epoch(mixed: Path) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return row_numbers(Loader(mixed, "train", batch_size=50, shuffle=True, seed=seed, buffer_rows=64).epoch(epoch))

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_a_shuffle_moves_rows_across_row_groups(mixed: Path) -> None:
    order = np.array(row_numbers(Loader(mixed, "train", batch_size=50, shuffle=True).epoch(0)))
    correlation = np.corrcoef(order, np.arange(len(order)))[0, 1]
    assert abs(correlation) < 0.25  # 300 rows: standard error 0.058


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_without_rows_gives_a_valid_empty_batch(tmp_path: Path, rank: int) -> None:
    write_prepared(tmp_path / "d", rows={"train": 1}, bags={"tags": 4} if rank else {})
    loader = Loader(tmp_path / "d", "train", batch_size=8, shuffle=True, rank=rank, world_size=3)
    (batch,) = loader.epoch(0)
    expected = 1 if rank == 2 else 0
    assert batch.dense.shape == (expected, 1)
    assert batch.sparse.stride() == expected
    assert batch.sparse.lengths().numel() == len(batch.sparse.keys()) * expected
    assert batch.sparse.values().dtype == torch.int64
    assert [len(batch.sparse[key].values()) for key in list(batch.sparse.keys())] == batch.sparse.length_per_key()


def test_no_numeric_and_no_categorical_features(tmp_path: Path) -> None:
    write_prepared(tmp_path / "a", rows={"train": 20}, numeric=())
    write_prepared(tmp_path / "b", rows={"train": 20}, single={})
    (batch,) = Loader(tmp_path / "a", "train", batch_size=20, shuffle=True).epoch(0)
    assert batch.dense.shape == (20, 0)
    (batch,) = Loader(tmp_path / "b", "train", batch_size=20, shuffle=True).epoch(0)
    assert batch.sparse.stride() == 20
    assert batch.sparse.keys() == []


def test_large_lists_of_polars_are_read(mixed: Path, tmp_path: Path) -> None:
    write_prepared(tmp_path / "d", rows={"train": 40}, bags={"tags": 9}, parts=1)
    loader = Loader(tmp_path / "d", "train", batch_size=40, shuffle=True)
    before = list(loader.epoch(0))
    edit_part(
        tmp_path / "d/train/part-00000.parquet",
        lambda table: table.set_column(2 + 1, "tags", table["tags"].cast(pa.large_list(pa.int32()))),
    )
    after = list(Loader(tmp_path / "d", "train", batch_size=40, shuffle=True).epoch(0))
    assert_same(before, after)
