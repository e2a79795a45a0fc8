"""Folders that are there whole or not at all, with several writers and where the system refuses."""

import errno
import os
from pathlib import Path

import pytest

from embank.tables import CheckpointError, ConfigError, WorkError
from embank.tables.storage import atomic
from embank.tables.storage.atomic import temporary_beside
from embank.tables.storage.new_folder import new_folder


def test_two_writers_of_one_path_do_not_mix(tmp_path: Path) -> None:
    """The second is done first: its folder stays as it is, and the first one is told, not mixed into it."""
    out = tmp_path / "out"

    def write_two() -> None:
        with new_folder(out, kind="note") as first:
            (first / "first.txt").write_text("first")
            with new_folder(out, kind="note") as second:
                (second / "second.txt").write_text("second")
            assert [path.name for path in out.iterdir()] == ["second.txt"]

    with pytest.raises(CheckpointError, match="out' exists already, and a note is never written over anything"):
        write_two()
    assert [path.name for path in out.iterdir()] == ["second.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert temporary_beside(out) != temporary_beside(out)


@pytest.mark.parametrize("is_there", [False, True])
def test_nothing_is_left_of_what_failed(is_there: bool, tmp_path: Path) -> None:
    if is_there:
        (tmp_path / "p/q").mkdir(parents=True)
    with pytest.raises(LookupError), new_folder(tmp_path / "p/q/r", kind="note"):
        raise LookupError
    assert sorted(path.name for path in tmp_path.rglob("*")) == (["p", "q"] if is_there else [])


def test_the_cure_is_of_what_went_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught, new_folder(tmp_path / ("n" * 250), kind="note"):
        pass
    assert str(caught.value).endswith("File name too long. Nothing was left behind; choose another folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_name_that_could_not_be_made_durable_is_said_as_that(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is there, whole, and by this writer: nobody has taken its place."""

    def sync(path: Path) -> None:
        if path == tmp_path:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic, "sync_entry", sync)
    out = tmp_path / "out"
    with pytest.raises(WorkError) as caught, new_folder(out, kind="note") as temporary:
        (temporary / "note.txt").write_text("whole")
    assert str(caught.value) == (
        f"'{out}' is written as a whole, but its name could not be made durable: {os.strerror(number)}. It can be read "
        "now; look whether it is still there if the machine goes down before long"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "note.txt").read_text() == "whole"


@pytest.mark.parametrize("way", ["replaced", "published", "exchanged"])
def test_files_and_folders_in_the_place_of_others_say_so_too(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They said that nothing was written."""
    own, place = tmp_path / "own", tmp_path / "place"
    for path in (own, place):
        if way == "exchanged":
            path.mkdir()
            (path / "note.txt").write_text(path.name)
        else:
            path.write_text(path.name)

    def sync(path: Path) -> None:
        if path == tmp_path:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(atomic, "sync_entry", sync)
    write = {
        "replaced": lambda: atomic.replace_text(place, "own", cure="mend it"),
        "published": lambda: atomic.publish_file(own, place, overwrite=True),
        "exchanged": lambda: atomic.exchange_folder(own, place),
    }[way]
    with pytest.raises(WorkError, match="is written as a whole, but its name could not be made durable"):
        write()
    assert (place / "note.txt" if way == "exchanged" else place).read_text() == "own"
