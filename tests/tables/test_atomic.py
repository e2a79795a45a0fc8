"""Files and folders are there whole or not at all, and one process at a time holds a lock."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from embank.pipelines.locks import hold_lock, is_locked
from embank.tables.errors import ConfigError, EmbankError, WorkError
from embank.tables.storage import atomic
from embank.tables.storage.atomic import (
    exchange_folder,
    publish_file,
    remove_folder,
    replace_text,
    replacing,
    temporary_beside,
    temporary_folder,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    replace_text(path, "first", cure="make room")
    replace_text(path, "second é", cure="make room")
    assert path.read_text(encoding="utf-8") == "second é"
    assert names(tmp_path) == ["note.txt"]


def test_what_was_there_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note.txt"
    replace_text(path, "first", cure="make room")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(WorkError, match=r"note.txt' can't be written: no space left. What it held is untouched; make"):
        replace_text(path, "second", cure="make room")
    assert path.read_text() == "first"
    assert names(tmp_path) == ["note.txt"]


@pytest.mark.parametrize(
    ("number", "cls", "cure"),
    [
        (errno.EIO, WorkError, "mend that and resume"),
        (errno.EACCES, ConfigError, "make it writable and resume"),
        (errno.EROFS, ConfigError, "mount its file system for writing and resume"),
        (errno.ENOENT, ConfigError, "make the folder around it and resume"),
    ],
)
def test_a_path_that_can_not_be_used_is_bad_input_as_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, cls: type[EmbankError], cure: str
) -> None:
    """Commands ended with exit code 1, as of a full disk."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(cls, match=f"note.txt' can't be written: .* is untouched; {cure}$") as caught:
        replace_text(tmp_path / "note.txt", "new", cure="make room and resume")
    assert type(caught.value) is cls


def spoiled(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_an_error_of_the_block_leaves_no_temporary(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        spoiled(tmp_path / "plot.png")
    assert names(tmp_path) == []


@pytest.mark.parametrize("has_links", [True, False])
def test_a_new_file_never_replaces_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not has_links:
        monkeypatch.setattr(atomic.os, "link", refuse)
    path, temporary = tmp_path / "log", temporary_beside(tmp_path / "log")
    temporary.write_text("new")
    publish_file(temporary, path, overwrite=False)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["log"]
    temporary.write_text("newer")
    if has_links:
        with pytest.raises(FileExistsError):
            publish_file(temporary, path, overwrite=False)
    publish_file(temporary, path, overwrite=True)
    assert path.read_text() == "newer"
    assert names(tmp_path) == ["log"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_folders_change_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *paths: False)
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    exchange_folder(tmp_path / "new", tmp_path / "place")
    assert names(tmp_path) == ["place"]
    assert names(tmp_path / "place") == ["new"]
    remove_folder(tmp_path / "place")
    assert names(tmp_path) == []


def test_a_lock_keeps_a_second_holder_out(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not is_locked(path)
    with hold_lock(path, held="somebody is at it"):
        assert is_locked(path)
        with pytest.raises(ConfigError, match="^somebody is at it$"), hold_lock(path, held="somebody is at it"):
            pass
    assert not is_locked(path)


def interrupting(call: Callable[..., None]) -> Callable[..., None]:
    """A call of the system that a signal comes right after."""

    def interrupted(*arguments: object, **named: object) -> None:
        call(*arguments, **named)
        raise KeyboardInterrupt

    return interrupted


def test_a_signal_right_after_the_making_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", interrupting(Path.mkdir))
    with pytest.raises(KeyboardInterrupt), temporary_folder("made-", parent=tmp_path):
        raise AssertionError("not reached")
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["mkdir", "first rename", "second rename"])
def test_a_signal_while_folders_change_places_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    monkeypatch.setattr(atomic, "_exchange", lambda *paths: False)
    rename = os.rename
    if call == "mkdir":
        monkeypatch.setattr(Path, "mkdir", interrupting(Path.mkdir))
    else:
        moved = "new" if call == "second rename" else "place"
        monkeypatch.setattr(
            os,
            "rename",
            lambda source, to: (interrupting(rename) if Path(source) == tmp_path / moved else rename)(source, to),
        )
    with pytest.raises(KeyboardInterrupt):
        exchange_folder(tmp_path / "new", tmp_path / "place")
    if call == "second rename":
        assert names(tmp_path) == ["place"]
        assert names(tmp_path / "place") == ["new"]
    else:
        assert names(tmp_path) == ["new", "place"]
        assert names(tmp_path / "place") == ["place"]
