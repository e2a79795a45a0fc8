"""What is told of children that fail."""

from pathlib import Path

from embank.pipelines.sweep.children import last_words

TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 1, in <module>
RuntimeError: boom
"""


def test_a_child_is_not_given_the_words_of_an_earlier_start(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    begun = "== begun 2026-01-02 03:04:05\n"
    log.write_text(f"{begun}step 1\nembank: no space left on device\n{begun}{TRACEBACK}")
    assert last_words(log, code=1) == "RuntimeError: boom"
    log.write_text(f"{begun}{TRACEBACK}{begun}step 1\nembank: no space left on device\n\nwarning: leaked objects\n")
    assert last_words(log, code=1) == "no space left on device"
    log.write_text(f"{begun}{TRACEBACK}{begun}")
    assert last_words(log, code=3) == "exit code 3"
    assert last_words(log, code=-9) == "killed by SIGKILL, perhaps for want of memory"
    log.write_text(TRACEBACK)  # of a process that marks no start
    assert last_words(log, code=1) == "RuntimeError: boom"
    assert last_words(tmp_path / "none.log", code=1) == "exit code 1"
