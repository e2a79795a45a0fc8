"""Folders of files, and partition folders whose names are columns."""

import datetime as dt
import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.dataset as ds
import pytest
from tests.data import naive_prepare as naive

from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.schema import Schema
from embank.pipelines.data.sources.formats.base import TextOptions
from embank.pipelines.data.sources.formats.generic import open_parquet
from embank.tables.errors import DataError
from embank.tables.ids.token_hash import token_id

CONFIG: dict[str, Any] = {
    "label": {"column": "click"},
    "categorical": ["dt", "item"],
    "numeric": ["row"],
    "split": {"by": "ratio"},  # the order of rows stays
}


def frame(first_row: int, num_rows: int = 10, **more: Any) -> pl.DataFrame:
    rows = range(first_row, first_row + num_rows)
    return pl.DataFrame(
        {"click": [row % 2 for row in rows], "item": [f"i{row % 3}" for row in rows], "row": rows, **more}
    )


def write(path: Path, content: pl.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (content.write_csv if ".csv" in path.suffixes else content.write_parquet)(path)


def tokens_by_row(out: Path, name: str) -> list[str | None]:
    rows = [row for split in naive.SPLITS for row in naive.read_rows(out, split)]
    assert [int(row["row"]) for row in rows] == list(range(len(rows)))
    return [naive.decode(out, name, row[name]) for row in rows]


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_keys_of_partitions_are_columns(tmp_path: Path, format: str) -> None:
    for number, folder in enumerate(
        ("dt=2024-01-01/hour=9", "dt=2024-01-01/hour=10", "dt=__HIVE_DEFAULT_PARTITION__/hour=a%2Fb")
    ):
        write(tmp_path / f"in/{folder}/part-0.{format}", frame(10 * number))
        write(tmp_path / f"in/{folder}/_temporary/0/part-0.{format}", frame(0))
    for ignored in ("_SUCCESS", "dt=2024-01-01/hour=9/.part-0.crc", f"_metadata.{format}", "README.txt"):
        (tmp_path / "in" / ignored).write_text("no data")
    config = {**CONFIG, "categorical": ["dt", "hour", "item"]}
    prepare(config, [tmp_path / "in"], tmp_path / "out", format=format)
    days, hours = tokens_by_row(tmp_path / "out", "dt"), tokens_by_row(tmp_path / "out", "hour")
    assert days == ["2024-01-01"] * 20 + [None] * 10
    assert hours == ["9"] * 10 + ["10"] * 10 + ["a/b"] * 10
    prepare(config, [tmp_path / "in"], tmp_path / "again", format=format)
    assert naive.folder_bytes(tmp_path / "again") == naive.folder_bytes(tmp_path / "out")


def test_a_missing_key_is_a_missing_value(tmp_path: Path) -> None:
    write(tmp_path / "in/dt=__HIVE_DEFAULT_PARTITION__/a.parquet", frame(0, 20))
    write(tmp_path / "in/dt=x y%3D/a.parquet", frame(20, 20))
    prepare(CONFIG, [tmp_path / "in"], tmp_path / "out", format="parquet")
    assert tokens_by_row(tmp_path / "out", "dt") == [None] * 20 + ["x y="] * 20


def test_a_key_in_every_role(tmp_path: Path) -> None:
    """The label, a number, the group, the time and the split of a row."""
    for number, day in enumerate(["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"]):
        write(tmp_path / f"in/dt={day}/y={number % 2}/price={number}.5/a.parquet", frame(10 * number).drop("click"))
    config = {
        "label": {"column": "y"},
        "categorical": ["item"],
        "numeric": ["row", "price"],
        "group": "dt",
        "split": {"by": "time", "column": "dt", "ratios": [0.5, 0.25, 0.25]},
    }
    prepare(config, [tmp_path / "in"], tmp_path / "out", format="parquet")
    rows = [row for split in naive.SPLITS for row in naive.read_rows(tmp_path / "out", split)]
    assert [row["label"] for row in rows] == [int(row) // 10 % 2 for row in range(40)]
    assert [row["price"] for row in rows] == [row // 10 + 0.5 for row in range(40)]
    assert len({row["group"] for row in rows}) == 4
    assert [len(naive.read_rows(tmp_path / "out", split)) for split in naive.SPLITS] == [20, 10, 10]


def test_partitions_and_files_of_them_as_inputs(tmp_path: Path) -> None:
    """What a path holds above what is given counts too, as days of a log are given one by one."""
    write(tmp_path / "in/dt=1/a.parquet", frame(0))
    write(tmp_path / "in/dt=2/a.parquet", frame(10))
    prepare(CONFIG, [tmp_path / "in/dt=1", tmp_path / "in/dt=2/a.parquet"], tmp_path / "out", format="parquet")
    assert tokens_by_row(tmp_path / "out", "dt") == ["1"] * 10 + ["2"] * 6 + ["2"] * 4


def test_a_key_that_is_also_a_column_must_agree(tmp_path: Path) -> None:
    write(tmp_path / "in/dt=01/a.parquet", frame(0, dt=[1] * 10))
    write(tmp_path / "in/dt=02/a.parquet", frame(10, dt=["02"] * 10))
    prepare(CONFIG, [tmp_path / "in"], tmp_path / "out", format="parquet")
    assert tokens_by_row(tmp_path / "out", "dt")[:16] == ["1"] * 10 + ["02"] * 6
    write(tmp_path / "in/dt=02/a.parquet", frame(10, dt=["02"] * 7 + ["03"] * 3))
    with pytest.raises(DataError) as caught:
        prepare(CONFIG, [tmp_path / "in"], tmp_path / "other", format="parquet")
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "in/dt=02/a.parquet, row 8: column 'dt' is '03', and the folder's name says '02'. Leave the column out of the "
        "files, or "
        "rename the folder."
    )
    prepare({**CONFIG, "categorical": ["item"]}, [tmp_path / "in"], tmp_path / "unused", format="parquet")


def test_what_polars_and_pyarrow_write(tmp_path: Path) -> None:
    """polars leaves the keys in the files, spelled otherwise than in the names; pyarrow takes them out."""
    keys = ["dt", "c", "n", "b", "ts"]
    written = frame(0, 40).with_columns(
        dt=pl.Series([dt.date(2024, 1, 1 + row // 10) for row in range(40)]),
        c=pl.Series(["a/b", "x y", None, "é=1"] * 10),
        n=pl.Series([1.5, 2.0, None, 3.0] * 10),
        b=pl.Series([True, False, None, True] * 10),
        ts=pl.Series([dt.datetime(2024, 1, 1, row // 20) for row in range(40)]),
    )
    written.write_parquet(tmp_path / "polars", partition_by=keys, mkdir=True)
    ds.write_dataset(
        written.with_columns(pl.col("ts").dt.to_string("%Y-%m-%d %H:%M:%S")).to_arrow(),
        tmp_path / "pyarrow",
        format="parquet",
        partitioning=keys,
        partitioning_flavor="hive",
    )
    cells = [("a/b", "1.5", "true"), ("x y", "2", "false"), (None, None, None), ("é=1", "3", "true")]
    expected = {
        row: (f"2024-01-0{1 + row // 10}", *cells[row % 4], f"2024-01-01 0{row // 20}:00:00") for row in range(40)
    }
    config = {
        **CONFIG,
        "categorical": keys,
        "split": {"by": "hash", "key": ["row"], "ratios": [0.6, 0.2, 0.2]},
        "min_count": 1,
    }
    for writer in ("polars", "pyarrow"):
        prepare({**config, "hashed": keys}, tmp_path / writer, tmp_path / f"{writer}-out", format="parquet")
        rows = [row for split in naive.SPLITS for row in naive.read_rows(tmp_path / f"{writer}-out", split)]
        assert {int(row["row"]): tuple(row[key] for key in keys) for row in rows} == {
            row: tuple(map(token_id, tokens)) for row, tokens in expected.items()
        }


def test_folders_that_are_no_partitions(tmp_path: Path) -> None:
    write(tmp_path / "in/dt=1/a.parquet", frame(0))
    write(tmp_path / "in/old/a.parquet", frame(10))
    with pytest.raises(DataError, match=r"in/old/a\.parquet lies in a folder that is no partition \(NAME=VALUE\), so"):
        prepare(CONFIG, [tmp_path / "in"], tmp_path / "out", format="parquet")
    (tmp_path / "in/old/a.parquet").rename(tmp_path / "in/b.parquet")
    with pytest.raises(
        DataError, match=r"in/b\.parquet lies in no folder dt=VALUE, as other files do, so its rows have"
    ):
        prepare(CONFIG, [tmp_path / "in"], tmp_path / "out", format="parquet")
    assert (
        prepare({**CONFIG, "categorical": ["item"]}, [tmp_path / "in"], tmp_path / "out", format="parquet")
        .splits[0]
        .num_rows
        == 16
    )


def test_folders_without_data(tmp_path: Path) -> None:
    (tmp_path / "in/dt=1").mkdir(parents=True)
    for format, shown in (("parquet", r"\*\.parquet or \*\.parq or \*\.pq"), ("csv", r"\*\.csv or \*\.csv\.gz")):
        with pytest.raises(DataError, match=rf"the folder .*in holds no {shown} file\. Check --input"):
            prepare(CONFIG, [tmp_path / "in"], tmp_path / "out", format=format)
    write(tmp_path / "in/dt=%ff/a.parquet", frame(0))
    with pytest.raises(DataError, match=r"dt=%ff is not UTF-8 when it is percent-decoded\. Rename it"):
        prepare(CONFIG, [tmp_path / "in"], tmp_path / "out", format="parquet")


def test_a_file_that_is_given_twice(tmp_path: Path) -> None:
    write(tmp_path / "in/dt=1/a.parquet", frame(0))
    write(tmp_path / "in/dt=2/a.parquet", frame(10))
    (tmp_path / "link").symlink_to(tmp_path / "in/dt=2/a.parquet")
    for more in (tmp_path / "in/dt=1", tmp_path / "link"):
        with pytest.raises(DataError, match=r"is given twice \(as .*a\.parquet\), so that its rows would count twice"):
            prepare(CONFIG, [tmp_path / "in", more], tmp_path / "out", format="parquet")


def test_the_current_folder_is_no_part_of_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone works in a folder called `lr=3`, and names files in it."""
    work = tmp_path / "lr=3"
    write(work / "in" / "dt=2024-01-01" / "part-0.csv", frame(0))
    write(work / "plain.csv", frame(0, dt=["a"] * 10, lr=["own"] * 10))
    monkeypatch.chdir(work)
    prepare(format="csv", inputs=Path("in"), config=CONFIG, out=tmp_path / "out")
    assert set(tokens_by_row(tmp_path / "out", "dt")) == {"2024-01-01"}
    config = CONFIG | {"categorical": ["dt", "item", "lr"]}
    prepare(format="csv", inputs=Path("plain.csv"), config=config, out=tmp_path / "plain")
    assert set(tokens_by_row(tmp_path / "plain", "lr")) == {"own"}, "not the 3 of the folder's name, nor a refusal"


@pytest.mark.parametrize("with_column", [(1,), (0, 2), (0, 1, 2)])
def test_some_files_hold_the_key_as_a_column(tmp_path: Path, with_column: tuple[int, ...]) -> None:
    """Tokens are the folders' names, whichever file comes first."""
    for number in range(3):
        more = {"dt": [dt.date(2024, 1, number + 1)] * 10} if number in with_column else {}
        write(tmp_path / f"in/dt=2024-01-0{number + 1}/a.parquet", frame(10 * number, **more))
    prepare(CONFIG, tmp_path / "in", tmp_path / "out", format="parquet")
    assert tokens_by_row(tmp_path / "out", "dt") == [f"2024-01-0{row // 10 + 1}" for row in range(30)]


@pytest.mark.parametrize("odd", [0, 1])
def test_a_conflict_is_refused_in_any_file(tmp_path: Path, odd: int) -> None:
    for number in range(2):
        more = {"dt": ["2024-09-09"] * 10} if number == odd else {}
        write(tmp_path / f"in/dt=2024-01-0{number + 1}/a.parquet", frame(10 * number, **more))
    with pytest.raises(
        DataError, match=rf"a\.parquet, row 1: column 'dt' is '2024-09-09', and .* '2024-01-0{odd + 1}'\. Leave the"
    ):
        prepare(CONFIG, tmp_path / "in", tmp_path / "out", format="parquet")


@pytest.mark.parametrize("where", ["both", "outside"])
def test_a_file_outside_the_partitions_has_its_own_column(tmp_path: Path, where: str) -> None:
    inside = {"dt": [dt.date(2024, 1, 1)] * 10} if where == "both" else {}
    write(tmp_path / "in/dt=2024-01-01/a.parquet", frame(0, **inside))
    write(tmp_path / "plain.parquet", frame(10, dt=[dt.date(2024, 1, 2 - row % 2) for row in range(10)]))
    prepare(CONFIG, [tmp_path / "in", tmp_path / "plain.parquet"], tmp_path / "out", format="parquet")
    schema_size = {field.name: field.num_embeddings for field in Schema.load(tmp_path / "out").categorical}["dt"]
    assert schema_size == 3, "the unknown value and two days"
    assert tokens_by_row(tmp_path / "out", "dt")[:16] == ["2024-01-01"] * 10 + ["2024-01-02", "2024-01-01"] * 3
    write(tmp_path / "other.parquet", frame(20))
    with pytest.raises(DataError, match=r"other\.parquet lies in no folder dt=VALUE, as other files do, so its rows"):
        prepare(
            CONFIG,
            [tmp_path / "plain.parquet", tmp_path / "in", tmp_path / "other.parquet"],
            tmp_path / "bad",
            format="parquet",
        )


def test_types_that_spell_one_value_in_two_ways_are_refused_beside_folders(tmp_path: Path) -> None:
    """Once one file lacked the key, all of them were text before they were compared."""
    write(tmp_path / "in/dt=1/a.parquet", frame(0))
    write(tmp_path / "in/y.parquet", frame(10, dt=[True] * 10))
    write(tmp_path / "in/z.parquet", frame(20, dt=[1] * 10))
    with pytest.raises(DataError, match=r"z\.parquet, row 1: column 'dt' holds numbers, and booleans at .*y\.parquet"):
        prepare(CONFIG, tmp_path / "in", tmp_path / "out", format="parquet")


def test_keys_alone_are_read(tmp_path: Path) -> None:
    """Polars writes a key as the files' first column too; here one of them lacks it."""
    write(tmp_path / "in/dt=1/a.parquet", frame(0, dt=["1"] * 10).select("dt", "row"))
    write(tmp_path / "in/dt=2/a.parquet", frame(10).select("row"))
    source = open_parquet([tmp_path / "in"], TextOptions())
    assert [chunk.frame["dt"].to_list() for chunk in source.chunks(["dt"])] == [["1"] * 10, ["2"] * 10]
    assert source.types("dt") == {}


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in/a=1/a=2/p.parquet", frame(0, dt=["x"] * 10))
    with pytest.raises(
        DataError, match=r"p\.parquet lies in two folders that say what its 'a' is, a=1 and one in it\."
    ):
        prepare(CONFIG, tmp_path / "in", tmp_path / "out", format="parquet")


def test_suffixes_in_capitals_are_read(tmp_path: Path) -> None:
    for number, name in enumerate(["a.csv", "b.CSV", "c.Csv.gz", "d.CSV.GZ"]):
        content = frame(10 * number, dt=["x"] * 10).write_csv().encode()
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(gzip.compress(content) if number > 1 else content)
    assert sum(split.num_rows for split in prepare(CONFIG, tmp_path / "in", tmp_path / "out").splits) == 40
    write(tmp_path / "in/old/E.CSV", frame(0))
    with pytest.raises(DataError, match=r"old/E\.CSV lies in a folder that is no partition"):
        prepare(CONFIG, tmp_path / "in", tmp_path / "other")


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("csv", "c.csv.bz2"),
        ("csv", "c.csv.gz.zip"),
        ("csv", "C.CSV.ZST"),
        ("parquet", "c.parquet.gz"),
        ("parquet", "c.pq.zip"),
    ],
)
def test_packed_files_are_not_left_out_in_silence(tmp_path: Path, format: str, name: str) -> None:
    write(tmp_path / f"in/dt=1/a.{format}", frame(0))
    (tmp_path / "in/dt=1" / name).write_bytes(b"packed")
    with pytest.raises(DataError, match=rf"dt=1/{name} can't be read as it is packed, so its rows would be left out"):
        prepare(CONFIG, tmp_path / "in", tmp_path / "out", format=format)


def test_other_data_in_a_folder_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "in/a.csv", frame(0, dt=["x"] * 10))
    for name in ("b.parquet", "c.csv.bak", "notes.txt", "_old.csv.bz2", ".a.csv.crc"):
        (tmp_path / "in" / name).write_text("other")
    prepare(CONFIG, tmp_path / "in", tmp_path / "out")
    assert [record.getMessage() for record in caplog.records if "left out" in record.getMessage()] == [
        f"{tmp_path}/in: files that are named like data are left out (b.parquet, c.csv.bak); *.csv or *.csv.gz files "
        "are read"
    ]
