"""The tutorial runs as it stands, and says what it says it does."""

import re
import shlex
from pathlib import Path

import pytest

from tests.lm.test_commands import embank

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "lm_tutorial.md"
BLOCK = re.compile(r"^```(python|yaml)?\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_tutorial_runs_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    for language, text in BLOCK.findall(PAGE.read_text()):
        if language == "python":
            exec(text, {"__name__": "tutorial"})
        elif language == "yaml":
            Path("tutorial.yaml").write_text(text)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                program, *words = shlex.split(line)
                assert program == "embank"
                said.append(embank(*words))
    train, evaluate, asked, edited, after, other, evaluated, _, swapped = said
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
