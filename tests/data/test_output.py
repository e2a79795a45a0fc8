"""The place of an output: what appears there while it is made is never touched, and a kill leaves what was there or
what is new."""

import errno
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embank.pipelines.data.prepare import output
from embank.pipelines.data.prepare.output import output_folder
from embank.pipelines.data.schema import SCHEMA_FILE, Schema
from embank.pipelines.data.synth import synth
from embank.pipelines.reporting import Reporter
from embank.tables.errors import DataError, WorkError
from embank.tables.storage import atomic


def write(folder: Path, text: str) -> None:
    (folder / SCHEMA_FILE).write_text(text)


def old_data(out: Path) -> None:
    out.mkdir()
    write(out, "old")


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def put_beside(out: Path, put: Callable[[], object], *, overwrite: bool = False) -> None:
    """Makes `out`, while something is put in its place."""
    with output_folder(out, overwrite=overwrite) as folder:
        write(folder, "new")
        put()


@pytest.mark.parametrize("kind", ["folder", "file", "prepared"])
def test_what_appears_while_it_is_made_is_left_alone(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    mine = {"folder": out / "thesis", "prepared": out / SCHEMA_FILE, "file": out}[kind]

    def put() -> None:
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")

    with pytest.raises(DataError, match=r"out has appeared in the meantime and was left alone.*out-1: move it"):
        put_beside(out, put)
    assert mine.read_text() == "mine"
    assert (tmp_path / "out-1" / SCHEMA_FILE).read_text() == "new"
    assert left(tmp_path) == {"out", "out-1"}


def test_overwrite_leaves_alone_what_is_no_prepared_data_by_then(tmp_path: Path) -> None:
    out = tmp_path / "out"
    old_data(out)
    with pytest.raises(DataError, match=r"holds no schema.json"):
        put_beside(out, lambda: (out / SCHEMA_FILE).rename(out / "thesis"), overwrite=True)
    assert (out / "thesis").read_text() == "old"
    assert (tmp_path / "out-1" / SCHEMA_FILE).read_text() == "new"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out", overwrite=False) as folder:
        write(folder, "new")
    assert left(tmp_path) == {"out"}


def test_one_process_at_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"another process is writing .*out\. Wait for it"):
        put_beside(out, lambda: put_beside(out, lambda: None))
    assert left(tmp_path) == set()
    assert not caplog.records, "the first one's folder is in use, not left behind"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_overwrite_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *paths: False)
    old_data(tmp_path / "out")
    with output_folder(tmp_path / "out", overwrite=True) as folder:
        write(folder, "new")
    assert (tmp_path / "out" / SCHEMA_FILE).read_text() == "new"
    assert left(tmp_path) == {"out"}


def _overwrite_and_die(out: str, call: int, can_exchange: bool) -> None:
    """Is killed after its n-th change of a name."""
    calls = []

    def dying(*paths: object, original: object) -> object:
        result = original(*paths)  # type: ignore[operator]
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    rename, exchange = os.rename, atomic._exchange
    atomic._exchange = (lambda *paths: dying(*paths, original=exchange)) if can_exchange else (lambda *paths: False)
    output.os.rename = lambda *paths: dying(*paths, original=rename)  # type: ignore[assignment]
    with output_folder(Path(out), overwrite=True) as folder:
        write(folder, "new")


@pytest.mark.parametrize(("call", "can_exchange"), [(1, True), (1, False), (2, False)])
def test_a_kill_between_renames_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, call: int, can_exchange: bool
) -> None:
    out = tmp_path / "out"
    old_data(out)
    process = multiprocessing.get_context("fork").Process(
        target=_overwrite_and_die, args=(str(out), call, can_exchange)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    if out.exists():
        assert (out / SCHEMA_FILE).read_text() == "new"
        return
    with pytest.raises(
        DataError, match=r"was killed while it replaced it. What was there before is whole, in .*out.old-\w+/out"
    ):
        Schema.load(out)
    with caplog.at_level(logging.WARNING), output_folder(out, overwrite=False) as folder:
        write(folder, "newer")
    assert "is what" in caplog.text
    assert "held before an --overwrite that was killed" in caplog.text


def test_an_error_of_the_system_has_the_name_of_the_file(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error", str(tmp_path / "disk"))

    with pytest.raises(WorkError, match=r"/disk: Input/output error. Nothing was left behind"):
        put_beside(tmp_path / "deep/out", fail)
    assert left(tmp_path) == set()


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="out is a link to nothing"), output_folder(tmp_path / "out", overwrite=False):
        pass


def test_generated_logs_leave_others_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.json").write_text("mine")
    with pytest.raises(DataError, match=r"log.json exists"):
        synth(rows=10, out=tmp_path / "log", scale=0.001)
    assert left(tmp_path) == {"log.json"}

    class Appears(Reporter):
        def start(self, phase: str, *, total: int, unit: str, done: int = 0, speed: str = "rows") -> None:
            (tmp_path / "other").write_text("mine")

    with pytest.raises(DataError, match="other has appeared in the meantime"):
        synth(rows=10, out=tmp_path / "other", scale=0.001, reporter=Appears())
    assert (tmp_path / "other").read_text() == "mine"
    assert left(tmp_path) == {"log.json", "other"}


def test_generated_logs_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match="log can't be written: no space left. Nothing was left behind"):
        synth(rows=10, out=tmp_path / "log", scale=0.001)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("made", [1, 2])
def test_a_signal_right_after_a_folder_is_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: int
) -> None:
    """The folders around the output are made first, then the temporary one beside it."""
    mkdir, calls = Path.mkdir, 0

    def interrupted(path: Path, *arguments: Any, **named: Any) -> None:
        nonlocal calls
        mkdir(path, *arguments, **named)
        calls += 1
        if calls == made:
            raise KeyboardInterrupt

    (tmp_path / "deep").mkdir()
    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "deep" / "er" / "out", overwrite=False):
        raise AssertionError("not reached")
    assert left(tmp_path / "deep") == set()
