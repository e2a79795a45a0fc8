"""`embank lm`: from a configuration to text."""

from pathlib import Path

import pytest
import yaml

from embank.pipelines.cli.failures import explain
from embank.pipelines.cli.messages import _what_next
from embank.pipelines.lm.tokenizer import train_tokenizer
from embank.tables import EmbankError
from tests.lm.small import lm_raw
from tests.pages import embank

pytestmark = pytest.mark.slow


def test_train_evaluate_generate(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "lm.yaml").write_text(yaml.safe_dump(lm_raw(texts, memory={"kind": "stem"})))
    run = tmp_path / "run"
    trained = embank("lm", "train", tmp_path / "lm.yaml", "--set", "train.tokens=256", "--out", run)
    assert "test bits per byte" in trained
    assert "4 of 4" in trained
    assert "valid, checkpoint of step 4: " in embank("lm", "eval", run, "--split", "valid", "--tokens", 100)
    assert "given text, checkpoint of step 4: " in embank("lm", "eval", run, "--input", texts / "000.txt")
    made = embank("lm", "generate", run, "--prompt", "kala", "--tokens", 4, "--temperature", 1)
    assert made.startswith("kala")
    assert len(made) > len("kala\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lm", "eval", "RUN", "--split", "tests"], "there is no split 'tests'; give one of train, valid, test"),
        (["lm", "eval", "RUN", "--tokens", "0"], "--tokens is 0"),
        (["lm", "eval", "nothing"], "'nothing' holds no run; give the folder that `embank lm train --out` wrote"),
        (["lm", "generate", "RUN", "--prompt", "a \udcff"], r"'a \\udcff' is no UTF-8 text; give it as UTF-8"),
        (
            ["lm", "generate", "RUN", "--overlay", "gone"],
            r"'gone' can't be read: No such .*\. Give a file that `embank",
        ),
        (
            ["lm", "generate", "RUN", "--overlay", "/"],
            r"'/' can't be read: it is a folder\. Give a file that `embank lm",
        ),
        (["lm", "train", "missing.yaml", "--out", "x"], "there is no configuration file 'missing.yaml'"),
    ],
)
def test_wrong_use_is_refused(run: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(EmbankError, match=message):
        embank(*[run if argument == "RUN" else argument for argument in arguments])


def test_a_signal_says_how_to_go_on(run: Path) -> None:
    assert "the run in" in _what_next(["lm", "train", "lm.yaml", "--out", str(run)])
    assert "start it again" in _what_next(["lm", "generate", str(run)])


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError) as refusal:
        train_tokenizer(["text"], vocab_size=300)
    message, code = explain(refusal.value)
    assert message == "tokenizers is not installed; pip install 'embank[lm]'"
    assert code == 1
