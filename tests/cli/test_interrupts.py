"""Signals and the system's refusals end a command with one message, exit code 1 and nothing half done."""

import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from embank.pipelines.cli.messages import messages
from embank.pipelines.cli.signals import signals_unwind
from embank.pipelines.train.launch import LostRankError
from embank.tables.errors import DataError


def ended(work: Callable[[], object], capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and message of a command that does this work."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught, messages(debug=False, arguments=arguments):
        work()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    return int(caught.value.code or 0), capsys.readouterr().err


def kill(number: int) -> None:
    os.kill(os.getpid(), number)


AGAIN = "Nothing was left behind; start it again with the same command"


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "SIGTERM")])
@pytest.mark.parametrize(
    "arguments",
    [
        ("prepare", "--out", "x"),
        ("evaluate", "x"),
        ("data", "get", "x"),
        ("export", "x"),
        ("train", "--out", "nowhere"),
    ],
)
def test_a_signal_is_one_message(
    capsys: pytest.CaptureFixture[str], number: int, name: str, arguments: Sequence[str]
) -> None:
    assert ended(lambda: kill(number), capsys, *arguments) == (1, f"embank: {name}: {AGAIN}\n")


def test_a_signal_says_how_to_go_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run, swept = tmp_path / "run", tmp_path / "swept"
    run.mkdir()
    swept.mkdir()
    (swept / "sweep.yaml").touch()
    for name in ("config.yaml", "environment.json"):
        (run / name).touch()
    said = "is whole; go on with the same command and --resume"
    assert said in ended(lambda: kill(signal.SIGINT), capsys, "train", "a.yaml", f"--out={run}")[1]
    assert said in ended(lambda: kill(signal.SIGINT), capsys, "sweep", "a.yaml", "--out", str(swept))[1]
    (run / "result.json").touch()
    assert "is complete" in ended(lambda: kill(signal.SIGINT), capsys, "train", "a.yaml", "--out", str(run))[1]


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "SIGTERM")])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_waits_for_imports_unless_it_comes_again(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    number: int,
    name: str,
    times: int,
) -> None:
    """Half of a library is worse than none: torch's second half crashed, and what swallowed the exception ran on."""
    module = f"half_imported_{number}_{times}"
    kills = f"    for _ in range({times}):\n        os.kill(os.getpid(), {number})\n"
    (tmp_path / f"{module}.py").write_text(
        f"import os\nwhole = False\ntry:\n{kills}    whole = True\nexcept KeyboardInterrupt:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        assert importlib.import_module(module).whole
        time.sleep(30)
        raise AssertionError("the signal was lost")

    if times == 1:
        assert ended(work, capsys, "train", "--out", "nowhere") == (1, f"embank: {name}: {AGAIN}\n")
    else:
        with signals_unwind():
            assert not importlib.import_module(module).whole, "the second one is raised at once"


def test_what_to_do_after_a_signal_is_said_without_imports(tmp_path: Path) -> None:
    """What was interrupted may have been the import of torch, which can't be begun again."""
    script = (
        "import os, signal, sys\nfrom embank.pipelines.cli.messages import messages\n"
        f"with messages(debug=False, arguments=('train', '--out', {str(tmp_path)!r})):\n"
        "    sys.modules['torch'] = None\n    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"embank: interrupted: {AGAIN}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_failure_that_a_signal_overtakes_is_still_told(capsys: pytest.CaptureFixture[str], number: int) -> None:
    """torchrun sends SIGTERM to the ranks that are left, while they are on their way to say what they have lost."""

    def work() -> None:
        try:
            raise LostRankError("rank 1 lost the connection to another rank")
        finally:
            kill(number)

    assert ended(work, capsys) == (1, "embank: rank 1 lost the connection to another rank\n")


def test_a_signal_during_the_message_changes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from embank.pipelines.cli import show

    shown = show.error

    def slow(message: str) -> None:
        kill(signal.SIGTERM)
        kill(signal.SIGINT)
        shown(message)

    monkeypatch.setattr(show, "error", slow)

    def work() -> None:
        raise DataError("the column is empty")

    assert ended(work, capsys) == (2, "embank: the column is empty\n")


def test_a_refusal_of_the_system_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl")

    expected = "embank: 'runs/a/metrics.jsonl': no space left. Free some space and run the same command again\n"
    assert ended(full, capsys) == (1, expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_prepare_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    log = tmp_path / "log.csv"
    log.write_text("y,a\n" + "".join(f"{i % 2},{i % 977}\n" for i in range(400_000)))
    config = tmp_path / "columns.yaml"
    config.write_text("{label: {column: y}, categorical: [a], split: {by: ratio}}")
    out = tmp_path / "deep" / "out"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "embank",
            "prepare",
            "--format",
            "csv",
            "--input",
            str(log),
            "--config",
            str(config),
            "--out",
            str(out),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("deep/out.tmp-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert said.splitlines()[-1].endswith(AGAIN)
    assert len(said.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "columns.yaml"}
