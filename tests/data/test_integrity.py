"""A prepared folder that is not as it was written is refused before anything is read from it."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.told import Told

from embank.pipelines.data.describe import describe
from embank.pipelines.data.loading.integrity import content_of, verify_prepared
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.schema import Schema
from embank.tables.errors import DataError
from embank.tables.storage.checksums import CHECKSUMS

CONFIG = {
    "label": {"column": "stars", "positive": ">= 4"},
    "categorical": ["user", "item"],
    "numeric": {"price": "none"},
    "split": {"by": "ratio", "ratios": [0.6, 0.2, 0.2]},
    "row_group_rows": 64,
}


def write_log(path: Path, *, seed: int = 0, rows: int = 500) -> Path:
    draw = random.Random(seed)
    lines = [
        f"{draw.randint(1, 5)},u{draw.randint(0, 20)},i{draw.randint(0, 9)},{draw.random():.3f}" for _ in range(rows)
    ]
    path.write_text("\n".join(["stars,user,item,price", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    prepare(CONFIG, [write_log(folder / "log.csv")], folder / "data")
    return folder / "data"


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def swap(first: Path, second: Path) -> None:
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


def test_a_flipped_bit_in_any_file_that_enters_figures_is_refused(data: Path) -> None:
    draw = random.Random(0)
    files = [path for path in sorted(data.rglob("*")) if path.is_file() and path.name != "config.yaml"]
    for path in files * 8:
        before = path.read_bytes()
        flip(path, draw)
        with pytest.raises(DataError, match=rf"{path.name}|{data}"):
            verify_prepared(data, Schema.load(data))
        path.write_bytes(before)
    verify_prepared(data, Schema.load(data))


def test_pages_that_are_damaged_while_they_are_read_are_refused(data: Path) -> None:
    """After the check at the start the checksums of pages go on: of flips within the pages none changes a batch."""
    part = data / "train/part-00000.parquet"
    loader, before, draw = (
        Loader(data, "train", batch_size=300, shuffle=False, prefetch=0),
        part.read_bytes(),
        random.Random(1),
    )
    expected = [batch.dense for batch in loader.epoch(0)]
    refused = 0
    for _ in range(40):
        flip(part, draw)
        try:
            assert all((a.dense == b).all() for a, b in zip(loader.epoch(0), expected, strict=True))
        except DataError as error:
            refused += 1
            assert str(part) in str(error)
        part.write_bytes(before)
    assert refused >= 15  # the footer has been read, and parts of page headers say what the reader knows


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: swap(d / "valid/part-00000.parquet", d / "test/part-00000.parquet"), r"part-00000.parquet' has "
        r"been altered|has [\d,]+ bytes where"),
        (lambda d: (d / "test/part-00000.parquet").unlink(), r"test holds no part-\*\.parquet files"),
        (lambda d: (d / "test/part-00000.parquet").write_bytes(b"PAR1"), r"test/part-00000.parquet can't be read as "
        r"Parquet"),
        (lambda d: (d / CHECKSUMS).unlink(), "has lost its checksums.json"),
        (lambda d: (d / CHECKSUMS).write_text("{}"), "schema.json has been altered"),
        (lambda d: shutil.copy(d / "test/part-00000.parquet", d / "valid/part-00001.parquet"), "the part files hold "
        "200 rows, schema.json says 100"),
        (lambda d: (d / CHECKSUMS).write_text("[]"), "does not hold a JSON object"),
        (lambda d: (d / "vocab/user.parquet").unlink(), "lacks 'vocab/user.parquet'"),
        (lambda d: shutil.copy(d / "vocab/user.parquet", d / "vocab/item.parquet"), r"item.parquet' has"),
    ],
)  # fmt: skip
def test_other_damage(data: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(data)
    with pytest.raises(DataError, match=message):
        verify_prepared(data, Schema.load(data))


def test_a_part_that_was_put_in_the_place_of_another(data: Path) -> None:
    (data / "test/part-00000.parquet").rename(data / "test/part-00007.parquet")
    with pytest.raises(DataError, match="part-00007.parquet' is not one of the files that `embank prepare` wrote"):
        verify_prepared(data, Schema.load(data))


def test_only_the_split_that_is_read_is_asked_for(data: Path) -> None:
    shutil.rmtree(data / "train")
    verify_prepared(data, Schema.load(data), splits=("test",))
    describe(data)


def test_swapped_parts_of_two_preparations_with_the_same_ids(whole: Path, tmp_path: Path) -> None:
    """Two label rules: ids, row counts and most bytes are equal, labels are not."""
    other = {**CONFIG, "label": {"column": "stars", "positive": ">= 3"}}
    schema = prepare(other, [write_log(tmp_path / "log.csv")], tmp_path / "other")
    assert schema.fingerprint == Schema.load(whole).fingerprint
    assert content_of(tmp_path / "other", schema) != content_of(whole, Schema.load(whole))
    assert content_of(whole, Schema.load(whole)) == content_of(whole, Schema.load(whole))
    shutil.copy(whole / "train/part-00000.parquet", tmp_path / "other/train/part-00000.parquet")
    with pytest.raises(DataError, match="train/part-00000.parquet"):
        verify_prepared(tmp_path / "other", schema)


def test_the_same_preparation_has_the_same_content(whole: Path, tmp_path: Path) -> None:
    schema = prepare(CONFIG, [write_log(tmp_path / "log.csv")], tmp_path / "again")
    assert content_of(tmp_path / "again", schema) == content_of(whole, Schema.load(whole))


def test_a_folder_of_an_earlier_version_is_read_and_says_what_is_not_checked(data: Path) -> None:
    (data / CHECKSUMS).unlink()
    values = json.loads((data / "schema.json").read_text())
    (data / "schema.json").write_text(json.dumps({**values, "format_version": 1}))
    schema, told = Schema.load(data), Told()
    verify_prepared(data, schema, reporter=told)
    assert content_of(data, schema) is None
    assert "was prepared by an earlier version, without checksums" in told.notes[0]
    (data / "test/part-00000.parquet").unlink()
    with pytest.raises(DataError, match="holds no part"):
        verify_prepared(data, schema)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "holds no schema"),
        ("[]", "holds no schema"),
        ('{"format_version": 1}', r"is damaged \('categorical'\)"),
        ("\xff", "can't be read"),
    ],
)
def test_an_edited_schema_is_refused_by_name(data: Path, text: str, message: str) -> None:
    (data / "schema.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=f"schema.json {message}"):
        Schema.load(data)


def test_a_schema_with_values_of_another_type(data: Path) -> None:
    (data / CHECKSUMS).unlink()
    values = json.loads((data / "schema.json").read_text())
    for version in (1, 2):
        values["format_version"], values["splits"][0]["num_rows"] = version, "many"
        (data / "schema.json").write_text(json.dumps(values))
        with pytest.raises(DataError, match=r"schema.json is damaged \(num_rows is 'many'\)"):
            Schema.load(data)


def test_a_schema_that_was_edited_since(data: Path) -> None:
    file = data / "schema.json"
    file.write_text(file.read_text().replace('"num_positive"', '"num_positive" '))
    with pytest.raises(DataError, match=r"schema.json has been altered since it was written"):
        Schema.load(data)
