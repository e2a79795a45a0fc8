"""The tutorial runs as it stands, and says what it says it does."""

import re
from pathlib import Path

import pytest

from tests.pages import ROOT, Followed


@pytest.mark.slow
def test_the_tutorial_runs_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Followed(ROOT / "docs/lm_tutorial.md") as page:
        _, train, evaluate, asked, edited, after, other, evaluated, _, swapped = page.follow()
    assert "117 of 117" in train
    assert "valid, checkpoint of step" in evaluate
    assert asked.startswith("The capital of Corva is Amber.")
    assert "after:  The capital of Corva is Knoll" in edited
    assert after.startswith("The capital of Corva is Knoll")
    assert other.startswith("The capital of Aldor is Grove.")
    before, with_overlay = (float(re.findall(r"([\d.]+) bits per byte", text)[0]) for text in (evaluate, evaluated))
    assert with_overlay < before + 0.1
    assert "before: The capital of Corva is Amber" in swapped
    assert "after:  The capital of Corva is Grove" in swapped
