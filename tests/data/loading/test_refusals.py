"""The loader: errors that say what and where."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from tests.data.prepared import edit_part, write_prepared

from embank.pipelines.data.loading.loader import Loader
from embank.tables.errors import ConfigError, DataError


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
