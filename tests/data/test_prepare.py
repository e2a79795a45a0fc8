"""`prepare` against the slow and obvious way, and its promises: order, determinism, whole output or none."""

import math
import random
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from tests.data import naive_prepare as naive

from embank.pipelines.data.prepare.prepare import prepare, prepare_from_cli
from embank.pipelines.data.schema import Schema
from embank.pipelines.data.sources.formats import text
from embank.pipelines.reporting import Reporter
from embank.tables.errors import ConfigError, DataError, WorkError

RATIOS = [0.6, 0.2, 0.2]
CONFIG: dict[str, Any] = {
    "label": {"column": "rating", "positive": ">= 4", "negative": "<= 2"},
    "categorical": ["user", "item"],
    "multivalued": {"tags": "|"},
    "numeric": {
        "price": {"transform": "log1p", "missing": "indicator"},
        "age": "standard",
        "size": "log_squared",
        "raw": "none",
    },
    "split": {"by": "hash", "key": ["user", "item"], "ratios": RATIOS, "seed": 7},
    "min_count": {"item": 3},
    "group": "user",
}


def make_rows(num_rows: int, seed: int = 0) -> list[dict[str, str | None]]:
    rng = random.Random(seed)
    rows = []
    for number in range(num_rows):
        tags = rng.sample(["red", "green", "blue", "très long, really"], rng.randrange(4))
        rows.append(
            {
                "rating": str(rng.randrange(1, 6)),
                "user": f"u{int(rng.paretovariate(1)) % 40}",
                "item": rng.choice([None, *(f"item-number-{int(rng.paretovariate(0.7)) % 90}" for _ in range(4))]),
                "tags": "|".join(tags) or None,
                "price": rng.choice([None, "-1", f"{rng.random() * 50:.3f}"]),
                "age": rng.choice([None, str(rng.randrange(90))]),
                "size": str(rng.randrange(1000)),
                "raw": str(number),
                "when": str(rng.randrange(100)),
            }
        )
    return rows


def write_csv(path: Path, rows: list[dict[str, str | None]], separator: str = ",") -> Path:
    pl.DataFrame(rows, schema=dict.fromkeys(rows[0], pl.String)).write_csv(path, separator=separator)
    return path


@pytest.fixture(name="rows", scope="module")
def _rows() -> list[dict[str, str | None]]:
    return make_rows(700)


@pytest.fixture(name="csv", scope="module")
def _csv(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str | None]]) -> Path:
    return write_csv(tmp_path_factory.mktemp("raw") / "log.csv", rows)


@pytest.fixture(name="folder", scope="module")
def _folder(csv: Path) -> Path:
    prepare(CONFIG, [csv], csv.with_name("out"))
    return csv.with_name("out")


@pytest.fixture(name="expected", scope="module")
def _expected(rows: list[dict[str, str | None]]) -> dict[str, list[dict[str, str | None]]]:
    """Raw rows of each split."""
    split: dict[str, list[dict[str, str | None]]] = {name: [] for name in naive.SPLITS}
    for row in rows:
        if row["rating"] != "3":
            key = [naive.hash_token(row["user"]), naive.hash_token(row["item"])]
            split[naive.hash_split(key, RATIOS, seed=7)].append(row)
    return split


def test_every_row_equals_the_slow_way(folder: Path, expected: dict[str, list[dict[str, str | None]]]) -> None:
    train = expected["train"]
    users = naive.vocabulary([row["user"] for row in train], 1)
    items = naive.vocabulary([row["item"] for row in train], 3)
    tags = naive.vocabulary([tag for row in train for tag in (row["tags"] or "").split("|") if tag], 1)
    for name, raw in expected.items():
        prepared = naive.read_rows(folder, name)
        assert len(prepared) == len(raw) > 50
        for column, kind in {"price": "log1p", "age": "standard", "size": "log_squared", "raw": "none"}.items():
            want = naive.numbers([row[column] for row in raw], [row[column] for row in train], kind, "mean")
            assert [row[column] for row in prepared] == pytest.approx(want, rel=1e-6, abs=1e-6), column
        assert [row["price_missing"] for row in prepared] == [float(row["price"] is None) for row in raw]
        for row, got in zip(raw, prepared, strict=True):
            assert got["label"] == (int(row["rating"] or 0) >= 4)
            assert got["user"] == users.get(row["user"], 0)
            assert got["item"] == items.get(row["item"], 0)
            assert got["tags"] == [tags.get(tag, 0) for tag in (row["tags"] or "").split("|") if tag]
            assert got["group"] % 2**64 == naive.hash_token(row["user"])


def test_vocabulary_holds_tokens_kinds_and_training_counts(
    folder: Path, expected: dict[str, list[dict[str, str | None]]]
) -> None:
    counts = Counter(row["item"] for row in expected["train"])
    saved = naive.read_vocabulary(folder, "item")
    assert saved[0] == (None, "unknown", sum(count for count in counts.values() if count < 3))
    assert [kind for _, kind, _ in saved].count("missing") == 1
    assert all(count == counts[token] >= 3 for token, _, count in saved[1:])
    assert all(kind == ("missing" if token is None else "token") for token, kind, _ in saved[1:])
    assert len(saved) == 1 + sum(count >= 3 for count in counts.values())


def test_schema_says_what_was_written(folder: Path, expected: dict[str, list[dict[str, str | None]]]) -> None:
    schema = Schema.load(folder)
    assert schema == Schema.from_json(schema.to_json())
    assert (schema.source, schema.label, schema.group) == ("csv", "rating", "user")
    assert [(f.name, f.multivalued, f.min_count) for f in schema.categorical] == [
        ("user", False, 1),
        ("item", False, 3),
        ("tags", True, 1),
    ]
    assert all(len(naive.read_vocabulary(folder, f.name)) == f.num_embeddings for f in schema.categorical)
    for name, raw in expected.items():
        split = schema.split(name)
        assert split.num_rows == len(raw)
        assert split.num_positive == sum(int(row["rating"] or 0) >= 4 for row in raw)
    standard = {f.name: f for f in schema.numeric}["age"]
    assert standard.mean is not None
    assert standard.std is not None
    assert math.isclose(standard.mean, np.mean([float(r["age"]) for r in expected["train"] if r["age"]]))


def test_parts_have_the_promised_types_and_no_nulls(folder: Path) -> None:
    file = pq.ParquetFile(folder / "train" / "part-00000.parquet")
    types = {field.name: str(field.type) for field in file.schema_arrow}
    assert types["label"] == "int8"
    assert types["user"] == "int32"
    assert types["tags"].startswith("list<")
    assert "int32" in types["tags"]
    assert types["price"] == "float"
    assert types["group"] == "int64"
    assert not any(field.nullable for field in file.schema_arrow)


@pytest.mark.parametrize("block_bytes", [300, 5_000])
def test_output_does_not_depend_on_chunks(
    csv: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    prepare(CONFIG, [csv], tmp_path / "out")
    assert naive.folder_bytes(tmp_path / "out") == naive.folder_bytes(folder)


def test_two_files_equal_one(rows: list[dict[str, str | None]], folder: Path, tmp_path: Path) -> None:
    first, second = write_csv(tmp_path / "a.csv", rows[:200]), write_csv(tmp_path / "b.csv", rows[200:])
    prepare(CONFIG, [first, second], tmp_path / "out")
    assert naive.folder_bytes(tmp_path / "out") == naive.folder_bytes(folder)


def test_tsv_and_parquet_give_the_same_data(rows: list[dict[str, str | None]], folder: Path, tmp_path: Path) -> None:
    tsv = write_csv(tmp_path / "log.tsv", rows, separator="\t")
    frame = pl.DataFrame(rows, schema=dict.fromkeys(rows[0], pl.String))
    numbers = ["rating", "price", "age", "size", "raw"]
    frame.with_columns(pl.col(numbers).cast(pl.Float64)).write_parquet(tmp_path / "log.parquet", row_group_size=100)
    for name, path in (("tsv", tsv), ("parquet", tmp_path / "log.parquet")):
        schema = prepare(CONFIG, [path], tmp_path / name, format=name)
        assert schema.fingerprint == Schema.load(folder).fingerprint
        for split in naive.SPLITS:
            assert naive.read_rows(tmp_path / name, split) == naive.read_rows(folder, split)


def test_row_groups_and_parts_are_bounded(csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embank.pipelines.data.prepare.parts_writer.PART_ROWS", 100)
    schema = prepare({**CONFIG, "row_group_rows": 40}, [csv], tmp_path / "out")
    parts = sorted((tmp_path / "out" / "train").glob("part-*.parquet"))
    files = [pq.ParquetFile(part).metadata for part in parts]
    assert [file.num_rows for file in files[:-1]] == [80] * (len(files) - 1)
    assert [files[0].row_group(i).num_rows for i in range(files[0].num_row_groups)] == [40, 40]
    assert sum(file.num_rows for file in files) == schema.splits[0].num_rows


def test_split_by_ratio_keeps_the_order_of_rows(csv: Path, tmp_path: Path) -> None:
    config = {**CONFIG, "label": {"column": "rating", "positive": ">= 4"}, "split": {"by": "ratio", "ratios": RATIOS}}
    schema = prepare(config, [csv], tmp_path / "out")
    assert [split.num_rows for split in schema.splits] == [420, 140, 140]
    order = [row["raw"] for split in naive.SPLITS for row in naive.read_rows(tmp_path / "out", split)]
    assert order == list(range(700))


def test_split_by_time_puts_cuts_between_times(csv: Path, rows: list[dict[str, str | None]], tmp_path: Path) -> None:
    config = {**CONFIG, "label": {"column": "rating", "positive": ">= 4"}}
    config["split"] = {"by": "time", "column": "when", "ratios": RATIOS}
    prepare(config, [csv], tmp_path / "out")
    times = {}
    for split in naive.SPLITS:
        times[split] = [int(rows[int(row["raw"])]["when"] or 0) for row in naive.read_rows(tmp_path / "out", split)]
    assert max(times["train"]) < min(times["valid"]) <= max(times["valid"]) < min(times["test"])
    assert abs(len(times["train"]) - 420) < 10


def test_split_by_time_reads_dates(tmp_path: Path) -> None:
    rows = [{"y": str(i % 2), "c": "a", "t": f"2024-01-{1 + i // 4:02d} 10:{i % 4:02d}"} for i in range(40)]
    path = write_csv(tmp_path / "log.csv", list(reversed(rows)))  # type: ignore[arg-type]
    config = {"label": {"column": "y"}, "categorical": ["c", "t"], "split": {"by": "time", "column": "t"}}
    schema = prepare(config, [path], tmp_path / "out")
    assert [split.num_rows for split in schema.splits] == [32, 4, 4]
    tokens = [token for token, _, _ in naive.read_vocabulary(tmp_path / "out", "t") if token]
    assert max(tokens) == "2024-01-08 10:03"


def test_split_by_column_and_by_row_number(tmp_path: Path) -> None:
    rows = [{"y": str(i % 2), "c": str(i), "s": ("train", "test", "valid")[i // 2 % 3]} for i in range(60)]
    path = write_csv(tmp_path / "log.csv", rows)  # type: ignore[arg-type]
    config: dict[str, Any] = {"label": {"column": "y"}, "categorical": ["c"], "split": {"by": "column", "column": "s"}}
    schema = prepare(config, [path], tmp_path / "a")
    assert [split.num_rows for split in schema.splits] == [20, 20, 20]
    schema = prepare({**config, "split": {"by": "hash", "ratios": RATIOS}}, [path], tmp_path / "b")
    want = Counter(naive.hash_split([naive.mix64(i)], RATIOS) for i in range(60))
    assert {split.name: split.num_rows for split in schema.splits} == want


def test_rows_can_be_longer_than_a_block_and_cells_may_hold_newlines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 16)
    lines = [f'{i % 2},"a, ""quoted""\nsecond line {i}",{i % 3}' for i in range(30)]
    (tmp_path / "log.csv").write_text("\ufeffy,c,d\r\n" + "\r\n".join(lines) + "\r\n\r\n\r\n", encoding="utf-8")
    config = {"label": {"column": "y"}, "categorical": ["c", "d"], "split": {"by": "ratio", "ratios": RATIOS}}
    schema = prepare(config, [tmp_path / "log.csv"], tmp_path / "out")
    assert [split.num_rows for split in schema.splits] == [18, 6, 6]
    assert 'a, "quoted"\nsecond line 3' in [token for token, _, _ in naive.read_vocabulary(tmp_path / "out", "c")]


def test_quoted_empty_cells_are_missing_like_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("y,c,x\n" + '1,"",\n0,,""\n1,b,2\n' * 10)
    config = {
        "label": {"column": "y"},
        "categorical": ["c"],
        "numeric": ["x"],
        "split": {"by": "hash", "ratios": RATIOS},
    }
    prepare(config, [tmp_path / "log.csv"], tmp_path / "out")
    assert [kind for _, kind, _ in naive.read_vocabulary(tmp_path / "out", "c")] == ["unknown", "missing", "token"]


def test_list_columns_of_parquet_become_bags(tmp_path: Path) -> None:
    tags = [["a", "b"], [], None, ["b", None, ""], ["c"]] * 8
    frame = pl.DataFrame(
        {"y": [0, 1] * 20, "tags": tags, "n": [[1, 2]] * 40}, schema_overrides={"n": pl.List(pl.Int64)}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    config = {"label": {"column": "y"}, "multivalued": {"tags": None, "n": None}, "split": {"by": "ratio"}}
    prepare(config, [tmp_path / "log.parquet"], tmp_path / "out", format="parquet")
    got = [naive.decode(tmp_path / "out", "tags", row["tags"]) for row in naive.read_rows(tmp_path / "out", "train")]
    assert got[:5] == [["a", "b"], [], [], ["b"], ["c"]]
    assert naive.decode(tmp_path / "out", "n", naive.read_rows(tmp_path / "out", "test")[0]["n"]) == ["1", "2"]


def test_parquet_numbers_become_tokens_by_their_value(tmp_path: Path) -> None:
    columns = {"y": [0, 1] * 10, "f": [3.0, 2.5, None, float("nan")] * 5, "i": [7, 8] * 10, "b": [True, None] * 10}
    pl.DataFrame(columns).write_parquet(tmp_path / "log.parquet")
    config = {"label": {"column": "y"}, "categorical": ["f", "i", "b"], "split": {"by": "ratio"}}
    prepare(config, [tmp_path], tmp_path / "out", format="parquet")
    tokens = {name: {token for token, _, _ in naive.read_vocabulary(tmp_path / "out", name)[1:]} for name in "fib"}
    assert tokens == {"f": {"3", "2.5", None}, "i": {"7", "8"}, "b": {"true", None}}


class Recorder(Reporter):
    """Writes down what `prepare` tells; interrupts when asked to."""

    def __init__(self, interrupt_in: str | None = None) -> None:
        self.stages: list[str] = []
        self.units = self.total = 0
        self._interrupt_in = interrupt_in

    def start(self, phase: str, *, total: int, unit: str, done: int = 0, speed: str = "rows") -> None:
        assert self.units == self.total
        self.stages.append(phase)
        self.units, self.total = 0, total

    def advance(self, done: int, *, per_s: float, loss: float | None = None) -> None:
        self.units = done
        if self.stages[-1] == self._interrupt_in:
            raise KeyboardInterrupt


def test_progress_adds_up(csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 3_000)
    recorder = Recorder()
    prepare(CONFIG, [csv], tmp_path / "out", reporter=recorder)
    assert recorder.stages == ["reading", "ranking", "writing"]
    assert recorder.units == recorder.total


@pytest.mark.parametrize("stage", ["reading", "ranking", "writing"])
def test_ctrl_c_leaves_nothing(csv: Path, tmp_path: Path, stage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(CONFIG, [csv], tmp_path / "out", reporter=Recorder(interrupt_in=stage))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(name="small_disk")
def _small_disk() -> Iterator[int]:
    """No file may grow beyond 4 KiB: the write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_is_reported_and_leaves_nothing(csv: Path, tmp_path: Path, small_disk: int) -> None:
    with pytest.raises(WorkError, match=r"no space left while writing .*/out .*MiB are free.* Nothing was left behind"):
        prepare(CONFIG, [csv], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_while_saving_a_vocabulary(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "log.csv"
    path.write_text("y,c\n" + "".join(f"{i % 2},{naive.mix64(i):032x}\n" for i in range(300)))
    config = {"label": {"column": "y"}, "categorical": ["c"], "split": {"by": "ratio"}}
    request.getfixturevalue("small_disk")
    with pytest.raises(WorkError, match="no space left") as caught:
        prepare(config, [path], tmp_path / "out")
    assert "vocab/c.parquet" in str(caught.value.__cause__)
    assert list(tmp_path.iterdir()) == [path]


def test_overwrite_only_replaces_prepared_data(csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    prepare(CONFIG, [csv], out)
    with pytest.raises(DataError, match=r"out is not empty\. Give another --out, or --overwrite"):
        prepare(CONFIG, [csv], out)
    before = naive.folder_bytes(out)
    prepare(CONFIG, [csv], out, overwrite=True)
    assert naive.folder_bytes(out) == before
    assert list(tmp_path.iterdir()) == [out]
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"holds no schema\.json, so it is no prepared data and is not overwritten"):
        prepare(CONFIG, [csv], tmp_path / "precious", overwrite=True)
    inside = write_csv(out / "log.csv", make_rows(30))
    with pytest.raises(DataError, match=r"log\.csv lies in .*out, which --overwrite would delete"):
        prepare(CONFIG, [inside], out, overwrite=True)
    with pytest.raises(DataError, match=r"log\.csv is a file"):
        prepare(CONFIG, [csv], inside)


def test_what_a_killed_run_left_is_named(csv: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "out.tmp-abc").mkdir()
    prepare(CONFIG, [csv], tmp_path / "out")
    assert "out.tmp-abc was left behind by a run that was killed" in caplog.text
    with pytest.raises(DataError, match=r"can't create a folder beside .*log\.csv/deep/out: .*Give another --out"):
        prepare(CONFIG, [csv], csv / "deep" / "out")


def test_failed_overwrite_keeps_the_old_folder(csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(CONFIG, [csv], out)
    before = naive.folder_bytes(out)
    with pytest.raises(KeyboardInterrupt):
        prepare(CONFIG, [csv], out, overwrite=True, reporter=Recorder(interrupt_in="writing"))
    assert naive.folder_bytes(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_saved_config_makes_the_same_folder(csv: Path, folder: Path, tmp_path: Path) -> None:
    prepare_from_cli("csv", [csv], tmp_path / "out", folder / "config.yaml")
    assert naive.folder_bytes(tmp_path / "out") == naive.folder_bytes(folder)


def test_generic_formats_need_a_configuration(csv: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"format 'csv' needs a configuration that names label, features and split"):
        prepare(None, [csv], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"there is no format 'criteoo'\. Did you mean 'criteo'\?"):
        prepare(None, [csv], tmp_path / "out", format="criteoo")
