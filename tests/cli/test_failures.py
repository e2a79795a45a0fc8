"""What the command line says about failures that are nobody's `EmbankError`."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from embank.pipelines.cli.app import main
from embank.pipelines.cli.failures import explain
from embank.pipelines.cli.watched import ended
from embank.tables.errors import ConfigError, WorkError

LONG = "n" * 300


def _refuses(capsys: pytest.CaptureFixture[str], path: str) -> None:
    """The command of `sys.argv` ends with exit code 2 and names the path, in words of ours."""
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 2, said
    assert path in said
    assert "Errno" not in said


@pytest.mark.parametrize(
    "words", [["evaluate", "run"], ["sweep", "c.yaml"], ["data", "describe", "d"], ["lm", "eval", "r"]]
)
def test_what_is_one_processs_work_is_refused_to_several(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sys.argv", ["embank", *words])
    named = words if words[0] == "lm" else words[:1]
    _refuses(capsys, f"`embank {' '.join(named[:2])}` runs in one process")
    monkeypatch.setattr("sys.argv", ["embank", *words[: 2 if words[0] in ("lm", "data") else 1], "--help"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert "Usage:" in capsys.readouterr().out


def test_errors_of_ours_speak_for_themselves() -> None:
    assert explain(ConfigError("wrong")) == ("wrong", 2)
    assert explain(WorkError("full")) == ("full", 1)


def test_the_folder_of_torchs_compiler_is_told_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has given this path to a command."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch may have set it
    message, code = explain(OSError(errno.EROFS, "Read-only file system", "cache/torchinductor_me"))
    assert (
        "where torch keeps what it compiles: Read-only file system. Point the variable TORCHINDUCTOR_CACHE" in message
    )
    assert code == 2
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/proc/x")
    assert "TORCHINDUCTOR_CACHE_DIR" in explain(OSError(errno.ENOENT, "No such file", "/proc/x/dynamo"))[0]
    assert "TORCHINDUCTOR_CACHE_DIR" not in explain(OSError(errno.ENOENT, "No such file", "a/b"))[0]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENAMETOOLONG, "the name is too long"),
        (errno.EACCES, "it may not be read or written (no permission)"),
        (errno.EISDIR, "it is a folder where a file is needed"),
        (errno.ENOTDIR, "a part of this path is a file, not a folder"),
        (errno.ELOOP, "it is a link that leads back to itself"),
        (errno.ENOENT, "there is no such file or folder"),
    ],
)
def test_paths_that_can_not_be_used(number: int, words: str) -> None:
    message, code = explain(OSError(number, os.strerror(number), "a/b"))
    assert (message, code) == (f"'a/b': {words}. Give another path.", 2)


def test_memory_panics_and_the_unexpected() -> None:
    assert explain(MemoryError())[0].startswith("out of memory: ")
    assert explain(MemoryError())[1] == 1
    assert explain(pl.exceptions.PanicException("could not build the thread pool"))[0].startswith("out of threads: ")
    assert explain(KeyError("x")) == ("KeyError: 'x' (run with --debug for the traceback)", 1)


@pytest.mark.parametrize("path", [LONG, "/dev/null", "loop", "dangling", "folder", "file/in/a/file"])
@pytest.mark.parametrize("role", ["--input", "--config", "--out"])
def test_every_path_of_prepare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str, role: str
) -> None:
    """Exit code 2 and the path's name, whatever is wrong with it."""
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text("click,user\n" + "0,a\n1,b\n" * 50)
    Path("columns.yaml").write_text("{label: {column: click}, categorical: [user], split: {by: ratio}}")
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")
    Path("folder").mkdir()
    Path("file").touch()
    arguments = {"--input": "log.csv", "--config": "columns.yaml", "--out": "out"} | {role: path}
    if role == "--out" and path in ("folder", "dangling"):
        return  # an empty folder will do, and a link to nowhere becomes what it points to or is refused
    monkeypatch.setattr(
        sys, "argv", ["embank", "prepare", "--format", "csv", *(word for pair in arguments.items() for word in pair)]
    )
    _refuses(capsys, path[:30])


@pytest.mark.parametrize("command", ["train", "evaluate", "inspect", "export", "describe", "diagnose", "plan"])
@pytest.mark.parametrize("path", [LONG, "/dev/null", "loop", "folder", "file/in/a/file"])
def test_every_path_of_other_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    Path("file").touch()
    arguments = {
        "train": ["train", path, "--out", "out"],
        "plan": ["plan", path, "--ranks", "2"],
        "evaluate": ["evaluate", path, "--data", path],
        "export": ["export", path, "--out", "out"],
        "describe": ["data", "describe", path],
    }.get(command, [command, path])
    monkeypatch.setattr(sys, "argv", ["embank", *arguments])
    _refuses(capsys, path[:90])


def test_a_child_that_a_library_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(0) == 0
    assert ended(2 << 8) == 2
    assert ended(signal.SIGTERM) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == ""
    assert ended(signal.SIGABRT) == 1
    assert "out of memory: " in (said := capsys.readouterr().err)
    assert "(A library ended the process: SIGABRT.)" in said
    assert ended(1 << 8) == 1
    assert capsys.readouterr().err == ""
    assert ended(1 << 8, has_said=False) == 1
    assert "out of memory: " in capsys.readouterr().err
    assert ended(0, has_said=False) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
@pytest.mark.parametrize("end", ["raise MemoryError", "import os; os._exit(1)"])
def test_an_end_without_a_word_is_explained(end: str) -> None:
    run = f"from embank.pipelines.cli.watched import watched; watched(lambda: exec({end!r}))"
    done = subprocess.run(
        f'ulimit -v 4000000; exec {sys.executable} -c "{run}"', shell=True, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "this process may use 3,906 MiB of address space (`ulimit -v`)" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_a_limit_of_address_space(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("click,user\n" + "0,a\n1,b\n" * 50)
    (tmp_path / "columns.yaml").write_text("{label: {column: click}, categorical: [user], split: {by: ratio}}")
    command = "prepare --format csv --input log.csv --config columns.yaml --out out"
    done = subprocess.run(
        f"ulimit -v 600000; ulimit -c 0; exec {sys.executable} -m embank {command}",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    # Which allocation fails first differs by machine, and some libraries hide why they fail.
    assert "586 MiB of address space (`ulimit -v`)" in done.stderr
    assert "again" not in done.stderr
