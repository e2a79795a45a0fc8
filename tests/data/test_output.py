"""The place of an output: what appears there while it is made is never touched, and a kill leaves what was there or
what is new."""

import errno
import json
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
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.schema import SCHEMA_FILE, Schema
from embank.pipelines.data.synth import synth
from embank.pipelines.reporting import Reporter
from embank.tables.errors import ConfigError, DataError, WorkError
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


LISTED = {SCHEMA_FILE: {}, "config.yaml": {}, "train/part-00000.parquet": {}}


def sealed_data(out: Path, *, listed: object = LISTED) -> None:
    """Old data with its checksums, or (None) as an earlier version left it."""
    old_data(out)
    (out / "train").mkdir()
    for name in ("config.yaml", "train/part-00000.parquet"):
        (out / name).write_text("old")
    if listed is not None:
        (out / "checksums.json").write_text(listed if isinstance(listed, str) else json.dumps(listed))


@pytest.mark.parametrize("listed", [LISTED, None, "damaged"], ids=["listed", "earlier version", "damaged"])
@pytest.mark.parametrize("kind", ["file", "link", "linked folder", "part"])
def test_overwrite_deletes_nothing_but_prepared_data(tmp_path: Path, listed: object, kind: str) -> None:
    out = tmp_path / "out"
    sealed_data(out, listed=listed)
    mine = {"file": out / "runs/model.bin", "part": out / "train/part-mine.parquet"}.get(kind, out / "runs")
    mine.parent.mkdir(exist_ok=True)
    if kind in ("file", "part"):
        mine.write_text("trained for days")
    else:
        mine.symlink_to(tmp_path if kind == "linked folder" else out / "config.yaml")
    with pytest.raises(DataError) as caught:
        put_beside(out, lambda: None, overwrite=True)
    assert str(caught.value) == (
        f"{mine} is not one of the files that `embank prepare` wrote to {out}, and --overwrite would delete it. "
        "Move it to another place, or give another --out."
    )
    assert os.path.lexists(mine)
    if mine.is_file() or mine.is_symlink():
        mine.unlink()
    put_beside(out, lambda: None, overwrite=True)
    assert (out / SCHEMA_FILE).read_text() == "new"
    assert left(tmp_path) == {"out"}


def test_overwrite_looks_again_for_what_has_come_in_the_meantime(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sealed_data(out)
    with pytest.raises(
        DataError, match=r"out has appeared in the meantime and was left alone \(.*model\.bin is not one"
    ):
        put_beside(out, lambda: (out / "model.bin").write_text("trained for days"), overwrite=True)
    assert (out / "model.bin").read_text() == "trained for days"
    assert (tmp_path / "out-1" / SCHEMA_FILE).read_text() == "new"


@pytest.mark.parametrize("given", ["ln.parquet", "folder/part-00000.parquet", "out", "OUT/config.yaml"])
def test_overwrite_deletes_no_input_whatever_leads_to_it(tmp_path: Path, given: str) -> None:
    out = tmp_path / "out"
    sealed_data(out)
    (tmp_path / "ln.parquet").symlink_to("out/train/part-00000.parquet")
    (tmp_path / "folder").symlink_to("out/train")
    (tmp_path / "OUT").symlink_to("out")
    for place in (out, tmp_path / "OUT"):
        verb = "is" if given == "out" else "lies in"
        expected = rf"the input {tmp_path / given} {verb} {out}, which --overwrite would delete\. Give another --out"
        with (
            pytest.raises(DataError, match=expected),
            output_folder(place, overwrite=True, inputs=[tmp_path / given]),
        ):
            raise AssertionError("not reached")
    assert (out / "train/part-00000.parquet").read_text() == "old"


def test_a_raw_file_behind_a_link_survives(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("click,item\n" + "".join(f"{row % 2},i{row % 3}\n" for row in range(60)))
    config = {"label": "click", "categorical": ["item"], "split": {"by": "ratio"}}
    prepare(config, log, tmp_path / "out")
    log.rename(tmp_path / "out" / "raw.csv")
    log.symlink_to("out/raw.csv")
    with pytest.raises(DataError, match=r"the input .*log\.csv lies in .*out, which --overwrite would delete"):
        prepare(config, log, tmp_path / "out", overwrite=True)
    assert log.is_file()


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("holds", ["data", "nothing"])
def test_an_output_that_is_a_link_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool, holds: str
) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *paths: False)
    real, link = tmp_path / "disk" / "real", tmp_path / "out"
    real.parent.mkdir()
    link.symlink_to(real)
    sealed_data(real) if holds == "data" else real.mkdir()
    put_beside(link, lambda: None, overwrite=True)
    assert link.readlink() == real
    assert (real / SCHEMA_FILE).read_text() == "new"
    assert left(tmp_path) == {"disk", "out"}
    assert left(real.parent) == {"real"}


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


@pytest.mark.parametrize(("number", "cls"), [(errno.EACCES, ConfigError), (errno.EIO, WorkError)])
def test_a_path_that_takes_no_files_is_bad_input(tmp_path: Path, number: int, cls: type[Exception]) -> None:
    with (
        pytest.raises(cls, match="out: .* Nothing was left behind; mend it or give another --out"),
        output_folder(tmp_path / "out", overwrite=False),
    ):
        raise OSError(number, os.strerror(number))
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


def test_overwrite_deletes_neither_what_it_is_like_nor_files_behind_links_in_folders(tmp_path: Path) -> None:
    log, out = tmp_path / "log.csv", tmp_path / "out"
    log.write_text("click,item\n" + "".join(f"{row % 2},i{row % 3}\n" for row in range(60)))
    config = {"label": "click", "categorical": ["item"], "split": {"by": "ratio"}}
    prepare(config, log, out)
    (tmp_path / "like").symlink_to(out)
    with pytest.raises(DataError, match=r"the input .*like is .*out, which --overwrite would delete"):
        prepare(None, log, out, like=tmp_path / "like", overwrite=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.parquet").symlink_to(out / "train" / "part-00000.parquet")
    with pytest.raises(DataError, match=r"the input .*in/a\.parquet lies in .*out, which --overwrite would delete"):
        prepare({**config, "label": "label"}, tmp_path / "in", out, format="parquet", overwrite=True)
    assert (out / "train" / "part-00000.parquet").is_file()
