"""The loader: every row once, resumable to the bit, threads that end, errors that say what and where."""

import json
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.prepared import edit_part, write_prepared
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embank.pipelines.data.loading.batch import Batch, Position
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.loading.parts import Parts
from embank.tables.errors import ConfigError, DataError

few = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name == "embank-loader"] == []


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 + 70 rows, two single-valued and two multi-valued features, a group key."""
    path = tmp_path_factory.mktemp("mixed") / "data"
    write_prepared(
        path,
        rows={"train": 300, "valid": 70},
        bags={"genres": 5, "tags": 9},
        numeric=("row", "age"),
        group=True,
        parts=3,
    )
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """100 rows of single-valued features."""
    write_prepared(tmp_path / "plain", rows={"train": 100})
    return tmp_path / "plain"


def row_numbers(batches: Iterable[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.dense[:, 0]]


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.position == b.position
        assert torch.equal(a.dense, b.dense)
        assert torch.equal(a.labels, b.labels)
        assert (a.groups is None and b.groups is None) or torch.equal(a.groups, b.groups)
        assert torch.equal(a.sparse.values(), b.sparse.values())
        assert torch.equal(a.sparse.lengths(), b.sparse.lengths())


def assert_matches_files(batches: list[Batch], path: Path, split: str) -> None:
    """The slow twin: compare every batch, row by row, with the rows that pyarrow reads."""
    table = pa.concat_tables([pq.read_table(part) for part in sorted((path / split).glob("*.parquet"))])
    rows = table.to_pylist()
    for batch in batches:
        bags = {key: jagged.to_dense() for key, jagged in batch.sparse.to_dict().items()}
        for place, number in enumerate(row_numbers([batch])):
            row = rows[number]
            assert row["label"] == batch.labels[place]
            if batch.groups is not None:
                assert row["group"] == batch.groups[place]
            for key, values in bags.items():
                expected = row[key] if isinstance(row[key], list) else [row[key]]
                assert values[place].tolist() == expected


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


def test_address_runs_on_the_loader_thread(mixed: Path) -> None:
    threads = []

    def address(kjt: KeyedJaggedTensor) -> list[int]:
        threads.append(threading.current_thread().name)
        return kjt.length_per_key()

    loader = Loader(mixed, "train", batch_size=100, shuffle=False, address=address)
    plain = Loader(mixed, "train", batch_size=100, shuffle=False)
    for ours, theirs in zip(loader.epoch(0), plain.epoch(0), strict=True):
        assert ours.sparse == theirs.sparse.length_per_key()
    assert set(threads) == {"embank-loader"}


# Threads


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_an_error_on_the_thread_reaches_the_consumer_after_the_good_batches(plain: Path, prefetch: int) -> None:
    calls = []

    def address(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("hash table is full at batch 3")
        return kjt

    loader = Loader(plain, "train", batch_size=10, shuffle=False, address=address, prefetch=prefetch)
    batches = loader.epoch(0)
    assert [next(batches).labels.numel() for _ in range(2)] == [10, 10]
    with pytest.raises(RuntimeError, match="hash table is full at batch 3"):
        next(batches)
    assert len(calls) == 3


@pytest.mark.parametrize("how", ["break", "close", "raise", "let go"])
def test_leaving_early_stops_the_threads(plain: Path, how: str) -> None:
    loader = Loader(plain, "train", batch_size=2, shuffle=True, buffer_rows=10)
    batches = loader.epoch(0)
    began = time.perf_counter()
    if how == "raise":
        with pytest.raises(KeyboardInterrupt):
            _interrupted(loader)
    else:
        for _ in batches:
            break
        if how == "close":
            batches.close()  # type: ignore[attr-defined]
    del batches
    assert time.perf_counter() - began < 2.0
    assert len(list(loader.epoch(0))) == 50  # and the loader still works


def _interrupted(loader: Loader) -> None:
    for batch in loader.epoch(0):
        assert len(batch.labels) == 2
        raise KeyboardInterrupt


def test_ctrl_c_while_waiting_for_a_batch(plain: Path) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")

    def slow(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        time.sleep(0.5)
        return kjt

    loader = Loader(plain, "train", batch_size=2, shuffle=True, address=slow)
    main = threading.get_ident()
    timer = threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT))
    began = time.perf_counter()
    timer.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            list(loader.epoch(0))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.perf_counter() - began < 2.0  # not the 25 seconds of the whole epoch


def test_an_epoch_that_is_never_started_starts_no_thread(plain: Path) -> None:
    iterator = Loader(plain, "train", batch_size=2, shuffle=True).epoch(0)
    assert "embank-loader" not in [thread.name for thread in threading.enumerate()]
    del iterator


def test_the_thread_stays_within_its_bound(plain: Path) -> None:
    made = []

    def address(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        made.append(1)
        return kjt

    batches = Loader(plain, "train", batch_size=2, shuffle=False, address=address, prefetch=2).epoch(0)
    next(batches)
    time.sleep(0.2)
    assert len(made) <= 1 + 2 + 1  # taken, waiting, in the making
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_seconds_are_counted(plain: Path, prefetch: int) -> None:
    def slow(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        time.sleep(0.01)
        return kjt

    loader = Loader(plain, "train", batch_size=10, shuffle=True, address=slow, prefetch=prefetch)
    list(loader.epoch(0))
    assert loader.seconds_waited > 0.05
    assert 0 < loader.seconds_busy < 5


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number of at least 1"),
        ({"buffer_rows": 0}, "buffer_rows is 0"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"world_size": 0}, "world_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of world_size 2; use a rank from 0 to 1"),
    ],
)
def test_bad_arguments(plain: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Loader(plain, "train", **{"batch_size": 4, "shuffle": True, **arguments})


def test_bad_positions(plain: Path) -> None:
    loader = Loader(plain, "train", batch_size=10, shuffle=True)
    position = next(loader.epoch(1)).position
    with pytest.raises(ConfigError, match=r"can't start epoch 0 at a position of epoch 1; use epoch\(1\)"):
        loader.epoch(0, start=position)
    with pytest.raises(ConfigError, match=r"another order of rows. Resume with the same data, split, batch_size"):
        Loader(plain, "train", batch_size=5, shuffle=True).epoch(1, start=position)
    with pytest.raises(ConfigError, match="epoch is -1"):
        loader.epoch(-1)
    assert list(loader.epoch(1, start=replace(position, batch=loader.num_batches))) == []


def set_cell(path: Path, column: str, row: int, value: object) -> None:
    def edit(table: pa.Table) -> pa.Table:
        cells = table[column].to_pylist()
        cells[row] = value
        place = table.column_names.index(column)
        return table.set_column(place, column, pa.array(cells, table.schema.field(column).type))

    edit_part(path, edit)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "item",
            7,
            "row 21: feature 'item' has id 7, but its saved vocabulary has 7 ids \\(0 to 6\\).*prepare the data",
        ),
        ("user", -1, "row 21: feature 'user' has id -1, but its saved vocabulary has 50 ids"),
        ("tags", [1, 99], "row 21: feature 'tags' has id 99, but its saved vocabulary has 4 ids"),
        ("tags", [1, None], "list in column 'tags' has a null inside"),
        ("tags", None, "row 21: column 'tags' is null"),
        ("item", None, "row 21: column 'item' is null"),
        ("row", float("nan"), "row 21: numeric column 'row' is nan, expected a finite number"),
        ("row", float("-inf"), "row 21: numeric column 'row' is -inf"),
        ("label", 2, "row 21: label is 2, expected 0 or 1"),
        ("label", -1, "row 21: label is -1"),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_bad_values_name_file_row_and_column(
    tmp_path: Path, column: str, value: object, message: str, shuffle: bool
) -> None:
    write_prepared(tmp_path / "d", rows={"train": 42}, bags={"tags": 4}, parts=1)
    part = tmp_path / "d/train/part-00000.parquet"
    set_cell(part, column, 21, value)
    loader = Loader(tmp_path / "d", "train", batch_size=4, shuffle=shuffle)
    with pytest.raises(DataError, match=f"{part}.*{message}"):
        list(loader.epoch(0))


def test_missing_folder_split_and_parts(tmp_path: Path, plain: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        Loader(tmp_path / "nowhere", "train", batch_size=1, shuffle=False)
    with pytest.raises(DataError, match="no split 'valid'; this data has train"):
        Loader(plain, "valid", batch_size=1, shuffle=False)
    (plain / "train/part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"the part files hold \d+ rows, schema.json says 100"):
        Loader(plain, "train", batch_size=1, shuffle=False)
    (plain / "train/part-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"train holds no part-\*.parquet files"):
        Loader(plain, "train", batch_size=1, shuffle=False)


def test_a_column_that_is_missing_or_of_another_type(plain: Path) -> None:
    part = plain / "train/part-00000.parquet"
    original = part.read_bytes()
    edit_part(part, lambda table: table.drop_columns("item"))
    with pytest.raises(DataError, match=r"part-00000.parquet has no column 'item'"):
        Loader(plain, "train", batch_size=1, shuffle=False)
    part.write_bytes(original)
    edit_part(part, lambda table: table.set_column(1, "user", table["user"].cast(pa.int64())))
    with pytest.raises(DataError, match="column 'user' has type int64, expected int32"):
        Loader(plain, "train", batch_size=1, shuffle=False)


def test_a_truncated_part(plain: Path) -> None:
    part = plain / "train/part-00000.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"part-00000.parquet can't be read as Parquet"):
        Loader(plain, "train", batch_size=1, shuffle=False)
    part.write_bytes(content)
    loader = Loader(plain, "train", batch_size=1, shuffle=False)
    part.write_bytes(content[:8])
    with pytest.raises(DataError, match="row group 0 can't be read"):
        list(loader.epoch(0))


def test_batches_are_made_on_one_thread_and_nothing_else_is(mixed: Path) -> None:
    """A second team of OpenMP's threads would keep those of the step from waiting awake."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen: list[int] = []

        def address(features: KeyedJaggedTensor) -> KeyedJaggedTensor:
            seen.append(torch.get_num_threads())
            return features

        batches = list(Loader(mixed, "train", batch_size=32, shuffle=True, address=address).epoch(0))
        assert seen == [1] * len(batches)
        assert torch.get_num_threads() == 3
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3]
    finally:
        torch.set_num_threads(before)
