"""What is told of children that fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from embank.pipelines.sweep.children import ChildLog

TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 1, in <module>
RuntimeError: boom
"""


def test_a_child_is_not_given_the_words_of_an_earlier_start(tmp_path: Path) -> None:
    """Whatever that start has left: half a line of a full disk, no mark of its own."""
    path, begun = tmp_path / "logs" / "run.log", "== begun 2026-01-02 03:04:05\n"
    path.parent.mkdir()
    for before in (
        "",
        f"{begun}step 1\nembank: no space left on device\n",
        "embank: no space left",
        "embank: old\n" * 9,
    ):
        for after, code, said in (
            (f"\n{begun}{TRACEBACK}", 1, "RuntimeError: boom"),
            (f"\n{begun}step 1\nembank: it is full\n\nwarning: leaked objects\n", 1, "it is full"),
            (f"\n{begun}embank: RuntimeError: none left\nask for less\n", 1, "RuntimeError: none left ask for less"),
            (f"\n{begun}embank: warning: old\n{TRACEBACK}", 1, "RuntimeError: boom"),
            (f"\n{begun}", 3, "exit code 3"),
            ("", 1, "exit code 1"),
            (TRACEBACK, -9, "killed by SIGKILL, perhaps for want of memory"),
        ):
            path.write_text(before)
            log = ChildLog(path)
            with path.open("a") as file:
                file.write(after)
            assert log.last_words(code=code) == said
    assert ChildLog(tmp_path / "new" / "none.log").last_words(code=1) == "exit code 1"


@pytest.mark.parametrize(
    "after",
    [
        "embank: warning: 3 files are left\n",
        "Exception ignored in: <function close at 0x7f>\nTraceback (most recent call last):\nOSError: closed\n",
        "/usr/lib/resource_tracker.py:254: UserWarning: leaked semaphores\n  warnings.warn(\n",
        TRACEBACK,
    ],
)
def test_what_follows_a_message_is_none_of_it(after: str, tmp_path: Path) -> None:
    log = ChildLog(tmp_path / "run.log")
    log.path.write_text(f"step 1\nembank: the loss is nan:\nlower train.lr\n{after}")
    assert log.last_words(code=1) == "the loss is nan: lower train.lr"


CHILD = """
import sys
from pathlib import Path
from embank.pipelines.cli import show
from embank.pipelines.sweep.children import ChildLog

ChildLog(Path(sys.argv[1])).take_output()
show.err.print("embank: warning: two files")
show.error(sys.argv[2])
show.err.print("embank: warning: three files")
print("/usr/lib/resource_tracker.py:254: leaked\\n  of many", file=sys.stderr)
"""


@pytest.mark.slow
def test_a_child_leaves_its_message_apart(tmp_path: Path) -> None:
    """With an empty line in it, and what may be taken for a part of it behind it."""
    path, said = tmp_path / "run.log", "no space \u2192 left:\n\n  make some\nTraceback of it"
    log = ChildLog(path)
    subprocess.run([sys.executable, "-c", CHILD, str(path), said], check=True, timeout=120)
    assert log.last_words(code=1) == "no space \u2192 left: make some Traceback of it"
    printed = path.read_text().partition("\n")[2]
    assert printed.startswith(f"embank: warning: two files\nembank: {said}\nembank: warning: three files\n/usr/lib")
    path.with_suffix(".msg").write_text("")  # of a full disk
    assert log.last_words(code=1) == "no space \u2192 left:"
    later = ChildLog(path)
    assert later.last_words(code=3) == "exit code 3", "not the message of an earlier start"
