"""Edits of runs: a phrase reads another's rows, a fact is written, nothing else moves, and all of it can be taken
back."""

from pathlib import Path

import pytest
import torch

from embank.pipelines.lm.editing import phrase_in, swap_phrase, write_fact
from embank.pipelines.lm.generation import END_ID, generate
from embank.pipelines.lm.model import TextState
from embank.pipelines.lm.opened import evaluate_run, opened_lm
from embank.pipelines.lm.tokenizer import encode
from embank.tables import CheckpointError, ConfigError, DataError
from embank.tables.memory import PositionEdit
from tests.lm.small import train_lm
from tests.lm.test_commands import embank

pytestmark = pytest.mark.slow

PROMPT = "kala tori miden"


@pytest.fixture(scope="module")
def stem(texts: Path) -> Path:
    train_lm(texts, texts.parent / "stem", memory={"kind": "stem"}, model={"context": 40}, train={"tokens": 24 * 160})
    return texts.parent / "stem"


@pytest.fixture(scope="module")
def engram(texts: Path) -> Path:
    memory = {"kind": "engram", "num_heads": 4, "row_dim": 8}
    sections = {"model": {"context": 40}, "train": {"tokens": 150 * 160}}
    train_lm(texts, texts.parent / "engram", memory=memory, **sections)
    return texts.parent / "engram"


def test_a_phrase_of_one_prompt_reads_another(stem: Path) -> None:
    with opened_lm(stem) as lm:
        rows = {name: w.clone() for name, w in lm.model.row_weights().items()}
        done = swap_phrase(lm.model, lm.corpus.tokenizer, prompt=PROMPT, source="tori", target="sula")
        assert done.num_rows == 0
        assert all(torch.equal(w, rows[name]) for name, w in lm.model.row_weights().items())
        assert done.before == generate(lm.model, lm.corpus.tokenizer, PROMPT, most=24)
        same = swap_phrase(lm.model, lm.corpus.tokenizer, prompt=PROMPT, source="tori", target="tori")
        assert same.before == same.after


@torch.no_grad()
def test_an_edited_prompt_is_read_in_pieces_as_in_one(stem: Path) -> None:
    """Positions before the edit say what they said, and what comes after goes on from the edited ones."""
    with opened_lm(stem) as lm:
        ids = [END_ID, *encode(lm.corpus.tokenizer, PROMPT)]
        source, _ = phrase_in(lm.corpus.tokenizer, ids, "tori")
        target = encode(lm.corpus.tokenizer, " sula")[: len(source)]
        edit = PositionEdit.of_phrase(torch.tensor([ids]), source=source, target=target)
        plain, state = lm.model.hidden(torch.tensor([ids])), TextState()
        edited = lm.model.hidden(torch.tensor([ids]), state=state, rows=lm.model.edited_rows(edit, state))
        first = edit.first_position
        assert torch.equal(edited[:, :first], plain[:, :first])
        assert not torch.allclose(edited[:, first:], plain[:, first:])
        after = lm.model.hidden(torch.tensor([[7]]), state=state)
        whole = torch.tensor([[*ids, 7]])
        rows = PositionEdit.of_phrase(whole, source=source, target=target).look_up(lm.model.tables)["stem"]
        torch.testing.assert_close(after[:, 0], lm.model.hidden(whole, rows=rows)[:, -1], rtol=1e-4, atol=1e-5)


def test_rows_are_written_for_all_texts_and_taken_back(stem: Path) -> None:
    with opened_lm(stem) as lm:
        rows = {name: w.clone() for name, w in lm.model.row_weights().items()}
        own = encode(lm.corpus.tokenizer, " tori")
        done = swap_phrase(
            lm.model,
            lm.corpus.tokenizer,
            prompt=PROMPT,
            source="tori",
            target="sula",
            strategy="average",
            everywhere=True,
        )
        changed = {name: (w != rows[name]).any(1).nonzero().flatten() for name, w in lm.model.row_weights().items()}
        assert all(set(found.tolist()) <= set(own) and len(found) for found in changed.values())
        assert done.session is not None
        done.session.undo_all()
        assert all(torch.equal(w, rows[name]) for name, w in lm.model.row_weights().items())


def test_a_fact_is_written_into_rows(engram: Path) -> None:
    with opened_lm(engram) as lm:
        network = {name: p.clone() for name, p in lm.model.network.named_parameters()}
        other = generate(lm.model, lm.corpus.tokenizer, "sula reden", most=12)
        done = write_fact(lm.model, lm.corpus.tokenizer, prompt=PROMPT, answer=" nopo")
        assert done.probability_before is not None
        assert done.probability_after is not None
        assert done.probability_before < 0.5 < 0.9 < done.probability_after
        assert done.after.startswith(" nopo")
        assert done.num_rows == 4 * len(encode(lm.corpus.tokenizer, " nopo"))  # the trigram's four heads
        assert all(torch.equal(p, network[name]) for name, p in lm.model.network.named_parameters())
        assert generate(lm.model, lm.corpus.tokenizer, "sula reden", most=12) == other


def test_an_overlay_ships_an_edit(engram: Path, stem: Path, tmp_path: Path) -> None:
    said = embank("lm", "edit", engram, "--prompt", PROMPT, "--answer", " nopo", "--overlay", tmp_path / "fact")
    assert "probability of the answer: 0." in said
    assert f"rows written to {tmp_path / 'fact'}; the run is as it was" in said
    plain = embank("lm", "generate", engram, "--prompt", PROMPT, "--tokens", 8)
    edited = embank("lm", "generate", engram, "--prompt", PROMPT, "--tokens", 8, "--overlay", tmp_path / "fact")
    assert edited.startswith(f"{PROMPT} nopo")
    assert not plain.startswith(f"{PROMPT} nopo")
    figures = [evaluate_run(engram, split="valid", overlay=overlay) for overlay in (None, tmp_path / "fact")]
    assert figures[1]["bits_per_byte"] == pytest.approx(figures[0]["bits_per_byte"], rel=0.02)
    (tmp_path / "note").write_text("a note")
    with pytest.raises(ConfigError, match="note' exists already and is no overlay"):
        embank("lm", "edit", engram, "--prompt", PROMPT, "--answer", " nopo", "--overlay", tmp_path / "note")
    with pytest.raises(ConfigError, match="the prompt has 1 tokens with the beginning of the text, and the n-gram"):
        embank("lm", "edit", engram, "--prompt", "", "--answer", " nopo")
    with pytest.raises(CheckpointError, match="memory of the kinds"):
        embank("lm", "generate", stem, "--overlay", tmp_path / "fact")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "tori"], "give --source and --target"),
        (["--answer", "x", "--source", "tori", "--target", "sula"], "give --source and --target"),
        (["--answer", " nopo"], "this edit is of 'engram' rows, and the run has a memory of kind 'stem'"),
        (["--source", "zzz", "--target", "sula"], "the phrase 'zzz' does not stand in the prompt"),
        (["--source", "tori", "--target", "sula", "--strategy", "half"], "there is no strategy 'half'"),
    ],
)
def test_wrong_edits_are_refused(stem: Path, options: list[str], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        embank("lm", "edit", stem, "--prompt", PROMPT, *options)


def test_a_run_without_memory_has_nothing_to_edit(texts: Path, tmp_path: Path) -> None:
    train_lm(texts, tmp_path / "run")
    with pytest.raises(ConfigError, match="the run has no memory"):
        embank("lm", "edit", tmp_path / "run", "--prompt", PROMPT, "--answer", " nopo")
    with pytest.raises(ConfigError, match="the answer has no tokens"), opened_lm(texts.parent / "engram") as lm:
        write_fact(lm.model, lm.corpus.tokenizer, prompt=PROMPT, answer="")
