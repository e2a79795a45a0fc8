"""Published layouts, on files that these tests write as the data sets' own."""

import gzip
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.data import naive_prepare as naive

from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.sources.formats import avazu, kdd12, text
from embank.pipelines.data.sources.formats.registry import FORMATS
from embank.tables.errors import ConfigError, DataError

ML_FEATURES = ["user_id", "item_id", "age", "gender", "occupation", "zip_code", "release_year"]


def write(path: Path, rows: Sequence[Sequence[object]], separator: str, encoding: str = "utf-8") -> Path:
    lines = [separator.join("" if cell is None else str(cell) for cell in row) + "\n" for row in rows]
    path.write_bytes("".join(lines).encode(encoding))
    return path


def error(path: Path, name: str, out: Path, config: dict[str, Any] | None = None) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        prepare(config, [path], out, format=name)
    assert not out.exists()
    return str(caught.value).replace(f"{path.parent}/", "")


def criteo_rows(num_rows: int, seed: int = 0) -> list[list[object]]:
    rng = random.Random(seed)
    rows: list[list[object]] = []
    for _ in range(num_rows):
        counts = [rng.choice([None, -1, 0, rng.randrange(2000)]) for _ in range(13)]
        tokens = [rng.choice([None, *[f"{rng.randrange(40):08x}"] * 5]) for _ in range(26)]
        rows.append([rng.randrange(2), *counts, *tokens])
    return rows


def test_criteo(tmp_path: Path) -> None:
    rows = criteo_rows(200)
    raw = write(tmp_path / "train.txt", rows, "\t")
    (tmp_path / "day_0.gz").write_bytes(gzip.compress(raw.read_bytes()))
    schema = prepare(None, [raw], tmp_path / "out", format="criteo")
    assert [split.num_rows for split in schema.splits] == [160, 20, 20]
    assert schema.feature_names == tuple(f"C{i}" for i in range(1, 27))
    assert tuple(field.name for field in schema.numeric) == tuple(f"I{i}" for i in range(1, 14))
    tokens = {name: [token for token, _, _ in naive.read_vocabulary(tmp_path / "out", name)] for name in ("C1", "C26")}
    for row, got in zip(rows[160:180], naive.read_rows(tmp_path / "out", "valid"), strict=True):
        assert got["label"] == row[0]
        for i in range(1, 14):
            count = row[i]
            want = math.log(1 + count) if isinstance(count, int) and count > 0 else 0.0
            assert got[f"I{i}"] == pytest.approx(want, rel=1e-6)
        for name, cell in (("C1", row[14]), ("C26", row[39])):
            assert got[name] == 0 if cell not in tokens[name] else tokens[name][got[name]] == cell
    prepare(None, [tmp_path / "day_0.gz"], tmp_path / "gz", format="criteo")
    assert naive.folder_bytes(tmp_path / "gz") == naive.folder_bytes(tmp_path / "out")


def test_criteo_takes_a_minimum_count_and_another_split(tmp_path: Path) -> None:
    raw = write(tmp_path / "train.txt", criteo_rows(300), "\t")
    config = {"min_count": {"default": 2, "C2": 9}, "split": {"by": "hash", "ratios": [0.7, 0.2, 0.1]}}
    schema = prepare(config, [raw], tmp_path / "out", format="criteo")
    assert [field.min_count for field in schema.categorical[:3]] == [2, 9, 2]
    assert min(count for _, _, count in naive.read_vocabulary(tmp_path / "out", "C2")[1:]) >= 9
    assert len(schema.numeric) == 13


def test_criteo_errors(tmp_path: Path) -> None:
    rows = criteo_rows(20)
    rows[6] = rows[6][1:]
    raw = write(tmp_path / "test.txt", rows, "\t")
    said = error(raw, "criteo", tmp_path / "out")
    assert said.startswith(
        "test.txt, line 7: the line has 39 cells, but 40 are expected (label, I1, I2, I3, I4, I5, ... (40"
    )
    assert said.endswith("(Criteo's test.txt has no label and can't be used for training or testing.)")
    said = error(raw, "criteo", tmp_path / "out", {"min_cuont": 3})
    assert said.startswith(
        "the configuration: unknown key 'min_cuont'. Did you mean 'min_count'? Known keys here: label,"
    )
    assert "has no column 'C27', which the configuration names under categorical" in error(
        raw, "criteo", tmp_path / "out", {"categorical": ["C27"]}
    )


def avazu_rows(num_rows: int) -> list[list[object]]:
    rng = random.Random(0)
    hours = sorted(f"1410{21 + rng.randrange(3)}{rng.randrange(24):02d}" for _ in range(num_rows))
    rows: list[list[object]] = [list(avazu.HEADER)]
    for number, hour in enumerate(hours):
        rows.append([10**15 + number, rng.randrange(2), hour, *[f"{rng.randrange(9):08x}" for _ in avazu.PLAIN]])
    return rows


def test_avazu(tmp_path: Path) -> None:
    rows = avazu_rows(400)
    assert len(rows[0]) == 24
    raw = tmp_path / "train.gz"
    raw.write_bytes(gzip.compress(write(tmp_path / "train.csv", rows, ",").read_bytes()))
    schema = prepare(None, [raw], tmp_path / "out", format="avazu")
    assert len(schema.feature_names) == 23
    assert not set(schema.feature_names) & {"id", "time", "click"}
    prepared = [row for split in naive.SPLITS for row in naive.read_rows(tmp_path / "out", split)]
    assert [row["label"] for row in prepared] == [row[1] for row in rows[1:]]
    hours = [naive.decode(tmp_path / "out", "hour", row["hour"]) for row in prepared[:50]]
    assert hours == [str(int(str(row[2])[6:])) for row in rows[1:51]]
    days = {naive.decode(tmp_path / "out", "weekday", row["weekday"]) for row in prepared}
    assert days <= {"2", "3", "4", "?"}  # 2014-10-21 was a Tuesday
    starts = [sum(split.num_rows for split in schema.splits[:i]) for i in (1, 2)]
    for start in starts:
        assert str(rows[start][2]) < str(rows[start + 1][2])


def test_avazu_errors(tmp_path: Path) -> None:
    rows = avazu_rows(30)
    test_file = write(tmp_path / "test.csv", [[cell for i, cell in enumerate(row) if i != 1] for row in rows], ",")
    assert error(test_file, "avazu", tmp_path / "out") == (
        "test.csv has no column 'click': it is Avazu's test file, whose labels are secret. Give the training file "
        "(train.gz); `prepare` makes validation and test splits of it."
    )
    rows[4][2] = "14103299"
    wrong = write(tmp_path / "train.csv", rows, ",")
    assert error(wrong, "avazu", tmp_path / "out") == (
        "train.csv, line 5: column 'hour' is '14103299'; expected YYMMDDHH, such as 14102100. Mend the line."
    )
    rows[0][3] = "C01"
    wrong = write(tmp_path / "train.csv", rows, ",")
    assert error(wrong, "avazu", tmp_path / "out").startswith(
        "train.csv, line 1: the header has no column 'C1'. Did you mean 'C01'? It has: id, click, hour, C01,"
    )


KDD_ROWS: list[list[object]] = [
    [clicks, impressions, 1000 + i, i % 7, i % 3, 1 + i % 3, 1, i, i % 5, i % 4, i % 4, i % 11]
    for i, (clicks, impressions) in enumerate([(0, 1), (1, 1), (2, 5), (0, 3)] * 40)
]


@pytest.mark.parametrize("max_rows", [7, 10**6])
def test_kdd12(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_rows: int) -> None:
    monkeypatch.setattr(kdd12, "MAX_ROWS", max_rows)
    monkeypatch.setattr(text, "BLOCK_BYTES", 500)
    raw = write(tmp_path / "training.txt", KDD_ROWS, "\t")
    schema = prepare({"split": {"by": "ratio"}}, [raw], tmp_path / "out", format="kdd12")
    assert (sum(s.num_rows for s in schema.splits), sum(s.num_positive for s in schema.splits)) == (400, 120)
    prepared = naive.read_rows(tmp_path / "out", "train")
    assert [row["label"] for row in prepared[:12]] == [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    urls = naive.decode(tmp_path / "out", "DisplayURL", [row["DisplayURL"] for row in prepared[:12]])
    assert urls == ["1000", "1001", *["1002"] * 5, *["1003"] * 3, "1004", "1005"]
    assert schema.feature_names == kdd12.FEATURES
    assert prepared[0]["group"] % 2**64 == naive.hash_token("0")


def test_kdd12_errors(tmp_path: Path) -> None:
    rows = [list(row) for row in KDD_ROWS]
    rows[9][0] = 4
    raw = write(tmp_path / "training.txt", rows, "\t")
    assert error(raw, "kdd12", tmp_path / "out") == (
        "training.txt, line 10: 4 clicks in 1 impressions; an impression is needed, and no more clicks than "
        "impressions. "
        "Mend the line."
    )
    rows[9][0] = "many"
    raw = write(tmp_path / "training.txt", rows, "\t")
    assert "line 10: column 'click' is 'many'; expected a count." in error(raw, "kdd12", tmp_path / "out")
    raw = write(tmp_path / "test.txt", [row[2:] for row in KDD_ROWS], "\t")
    assert error(raw, "kdd12", tmp_path / "out").endswith(
        "(Track 2's test.txt has no click and impression counts and can't be used.)"
    )


USERS = [
    (f"{u}", 20 + u % 9, "MF"[u % 2], ["writer", "doctor", "other"][u % 3], f"{10000 + u % 5}") for u in range(1, 31)
]
ITEMS = [
    (f"{i}", f"Caf\u00e9 {i}, the film ({1980 + i % 9})", ["Action", "Children's", "Sci-Fi"][: i % 4])
    for i in range(1, 41)
]


def ratings(num_rows: int) -> list[tuple[str, str, str, str]]:
    rng = random.Random(1)
    pairs = rng.sample([(u, i) for u in range(1, 31) for i in range(1, 41)], num_rows)
    return [(str(u), str(i), str(rng.randrange(1, 6)), str(880000000 + rng.randrange(999))) for u, i in pairs]


def write_100k(folder: Path) -> Path:
    folder.mkdir()
    write(folder / "u.data", ratings(600), "\t")
    write(folder / "u.user", USERS, "|", "latin-1")
    names = [
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        *["x"] * 10,
        "Sci-Fi",
        "Thriller",
        "War",
        "Western",
    ]
    items = [
        [key, title, "01-Jan-1995", "", f"http://{key}", *[int(name in genres) for name in names]]
        for key, title, genres in ITEMS
    ]
    write(folder / "u.item", items, "|", "latin-1")
    return folder


def write_recbole(folder: Path) -> Path:
    folder.mkdir()
    header = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    write(folder / "ml-100k.inter", [header, *ratings(600)], "\t")
    header_user = ("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token")
    write(folder / "ml-100k.user", [header_user, *USERS], "\t")
    items = [(key, title[:-7], title[-5:-1], " ".join(genres)) for key, title, genres in ITEMS]
    header_item = ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")
    write(folder / "ml-100k.item", [header_item, *items], "\t")
    write(folder / "ml-100k.kg", [("a", "b")], "\t")
    return folder


def write_1m(folder: Path) -> Path:
    folder.mkdir()
    write(folder / "ratings.dat", ratings(600), "::")
    write(folder / "users.dat", [(user, sex, age, job, code) for user, age, sex, job, code in USERS], "::")
    write(folder / "movies.dat", [(key, title, "|".join(genres)) for key, title, genres in ITEMS], "::", "latin-1")
    return folder


def write_25m(folder: Path) -> Path:
    folder.mkdir()
    write(folder / "ratings.csv", [("userId", "movieId", "rating", "timestamp"), *ratings(600)], ",")
    items = [(key, f'"{title}"', "|".join(genres) or "(no genres listed)") for key, title, genres in ITEMS]
    write(folder / "movies.csv", [("movieId", "title", "genres"), *items], ",")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("writer", [write_100k, write_recbole, write_1m, write_25m])
def test_movielens_layouts_hold_the_same_data(tmp_path: Path, writer: Any) -> None:
    folder = writer(tmp_path / "raw")
    ratings_file = next(
        file
        for file in folder.iterdir()
        if file.name in ("u.data", "ratings.dat", "ratings.csv") or file.suffix == ".inter"
    )
    schema = prepare(None, [folder], tmp_path / "out", format="movielens")
    has_users = writer is not write_25m
    features = ML_FEATURES if has_users else ["user_id", "item_id", "release_year"]
    assert schema.feature_names == (*features, "genres")
    assert (schema.group, schema.label) == ("user_id", "rating")
    users, items = {row[0]: row for row in USERS}, {row[0]: row for row in ITEMS}
    want: dict[str, list[Any]] = {name: [] for name in naive.SPLITS}
    for user, item, rating, _ in ratings(600):
        if rating != "3":
            split = naive.hash_split([naive.hash_token(user), naive.hash_token(item)], [0.8, 0.1, 0.1])
            want[split].append((user, item, int(rating in "45")))
    for split, expected in want.items():
        got = naive.read_rows(tmp_path / "out", split)
        assert [row["label"] for row in got] == [label for _, _, label in expected]
        for row, (user, item, _) in list(zip(got, expected, strict=True))[:25]:
            cells = {name: naive.decode(tmp_path / "out", name, row[name]) for name in schema.feature_names}
            assert cells["user_id"] in (user, "?")
            assert cells["release_year"] == items[item][1][-5:-1]
            assert cells["genres"] == items[item][2]
            if has_users and cells["zip_code"] != "?":
                assert [cells[name] for name in ML_FEATURES[2:6]] == [str(cell) for cell in users[user][1:]]
    prepare(None, [ratings_file], tmp_path / "again", format="movielens")
    assert naive.folder_bytes(tmp_path / "again") == naive.folder_bytes(tmp_path / "out")


def test_no_ratings_are_left_out(tmp_path: Path) -> None:
    """Of two files one was read."""
    first, second = write_25m(tmp_path / "first"), write_25m(tmp_path / "second")
    parts = write_recbole(tmp_path / "parts")
    for part in ("train", "test"):
        shutil.copy(parts / "ml-100k.inter", parts / f"ml-100k.{part}.inter")
    (parts / "ml-100k.inter").unlink()
    inputs = ([first, second], [first / "ratings.csv", second / "ratings.csv"], [parts])
    for given in inputs:
        with pytest.raises(DataError, match="there are 2 MovieLens ratings files: .*Name one of them with --input"):
            prepare(None, given, tmp_path / "out", format="movielens")
    both = [first, first / "ratings.csv"]  # one file
    assert prepare(None, both, tmp_path / "out", format="movielens").splits[0].num_rows > 100


def test_movielens_errors(tmp_path: Path) -> None:
    folder = write_100k(tmp_path / "raw")
    (folder / "u.item").unlink()
    assert "u.data needs u.item beside it, and there is none. Unpack the whole data set." in error(
        folder, "movielens", tmp_path / "out"
    )
    (folder / "u.data").unlink()
    assert "no MovieLens ratings file among" in error(folder, "movielens", tmp_path / "out")
    assert "there is no file u.data" in error(folder / "u.data", "movielens", tmp_path / "out")
    folder = write_1m(tmp_path / "1m")
    (folder / "users.dat").write_text("1::M::1\n")
    assert "line 1: the line has 3 cells, but 5 are expected (user_id, gender, age, occupation, zip_code)" in error(
        folder, "movielens", tmp_path / "out"
    )


def test_every_format_has_a_summary() -> None:
    assert list(FORMATS) == ["criteo", "avazu", "kdd12", "movielens", "csv", "tsv", "parquet"]
    assert all(entry.summary and entry.name == name for name, entry in FORMATS.items())
