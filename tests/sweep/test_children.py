"""What is told of children that fail."""

from pathlib import Path

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
