"""Runs of language models: what they leave, how they go on after any stop, what they refuse."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from embank.pipelines.config.run import load_config
from embank.pipelines.data.prepare.reference import Reference
from embank.pipelines.lm.evaluation import bits_per_byte, predict
from embank.pipelines.lm.generation import generate_ids
from embank.pipelines.lm.model import build_model
from embank.pipelines.lm.opened import evaluate_run, opened_lm
from embank.pipelines.lm.tokens import Corpus
from embank.pipelines.lm.trainer import LmTrainer
from embank.pipelines.lm.windows import Windows
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.export import export_run
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.model import bundle_of
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.tables import CheckpointError, ConfigError, DataError, WorkError
from tests.lm.small import lm_config, timeless, train_lm

pytestmark = pytest.mark.slow


class StopAt(Reporter):
    """Sends this process a signal after a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def advance(self, done: int, *, per_s: float, loss: float | None = None) -> None:
        if done == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_leaves_records_curves_and_a_result(run: Path) -> None:
    folder = RunFolder(run)
    result = json.loads((run / "result.json").read_text())
    assert result["memory"] == "engram"
    assert result["num_steps"] == result["best_step"] == 24
    assert [r["split"] for r in folder.read_metrics()] == ["valid", "test"]
    assert folder.read_metrics()[-1]["bits_per_byte"] == result["bits_per_byte"]
    assert (run / "plots" / "learning_curves.png").stat().st_size > 1000
    assert "bits per byte" in (run / "log.txt").read_text()


@pytest.mark.parametrize(("kind", "batch_size"), [("none", 4), ("engram", 64)])
def test_a_stopped_run_ends_the_same(texts: Path, tmp_path: Path, kind: str, batch_size: int) -> None:
    """In its first epoch, and in its second, whose windows begin elsewhere."""
    model = {"embedding_dropout": 0.3 if kind == "engram" else 0.0}
    train = {"eval_every": 9, "batch_size": batch_size, "tokens": 24 * 16 * batch_size}
    options: dict[str, Any] = {"memory": {"kind": kind}, "model": model, "train": train}
    whole = train_lm(texts, tmp_path / "whole", **options)
    with pytest.raises(InterruptedRunError, match="SIGTERM: stopped after step 11 of 24"):
        LmTrainer(lm_config(texts, **options), tmp_path / "run", reporter=StopAt(11)).train()
    assert timeless(train_lm(texts, tmp_path / "run", resume=True, **options)) == timeless(whole)
    records = [RunFolder(tmp_path / name).read_metrics() for name in ("whole", "run")]
    assert records[0] == records[1]
    assert train_lm(texts, tmp_path / "run", resume=True, **options)["best_step"] == whole["best_step"]


def test_disk_rows_are_memory_rows(texts: Path, tmp_path: Path) -> None:
    memory, disk = (
        train_lm(texts, tmp_path / tier, memory={"kind": "engram"}, rows={"tier": tier}) for tier in ("device", "disk")
    )
    assert timeless(memory) == timeless(disk)


def test_the_best_checkpoint_is_served(texts: Path, tmp_path: Path) -> None:
    """Rates so high that training gets worse: the first evaluation is the best."""
    result = train_lm(
        texts,
        tmp_path / "run",
        memory={"kind": "stem"},
        train={"eval_every": 6, "lr": 3.0, "decay": "none", "warmup_steps": 0, "clip_grad_norm": None},
    )
    valid = [r for r in RunFolder(tmp_path / "run").read_metrics() if r["split"] == "valid"]
    best = min(valid, key=lambda r: r["bits_per_byte"])
    assert best["step"] < 24
    assert (result["best_step"], result["valid_bits_per_byte"]) == (best["step"], best["bits_per_byte"])
    with opened_lm(tmp_path / "run") as lm:
        assert lm.step == best["step"]
    again = evaluate_run(tmp_path / "run", split="test", most=131_072)
    assert again["bits_per_byte"] == result["bits_per_byte"]


def test_other_text_is_evaluated_too(run: Path, texts: Path) -> None:
    text = sorted(texts.iterdir())[0]
    found = evaluate_run(run, split="test", paths=[text])
    assert found["split"] == "given text"
    assert found["bytes"] <= len(text.read_bytes())
    assert 0 < found["bits_per_byte"] < 8


def test_bits_per_byte_of_a_model_that_knows_nothing(texts: Path, corpus: Corpus) -> None:
    """Every token costs log2 V bits."""
    model = build_model(lm_config(texts), corpus, rows_folder=Path("unused"))
    torch.nn.init.zeros_(model.decoder.embedding.weight)
    stream = corpus.ids("valid")
    assert (len(stream) - 1) % 16  # the last window is a shorter one
    predictions = predict(model, stream)
    count = len(stream) - 1
    assert predictions.places_N.tolist() == list(range(1, count + 1))
    assert torch.equal(predictions.ids_N, stream[1 : count + 1])
    num_bytes = int(corpus.token_bytes_V[stream[1 : count + 1]].sum())
    assert bits_per_byte(predictions, corpus.token_bytes_V) == pytest.approx(
        count * math.log2(corpus.vocab_size) / num_bytes
    )


@pytest.mark.parametrize("kind", ["engram", "none"])
def test_the_last_window_is_predicted_by_itself(texts: Path, corpus: Corpus, kind: str) -> None:
    """Of 75 tokens at context 16: four full windows, and one of ten predictions that knows nothing of what follows."""
    model = build_model(lm_config(texts, memory={"kind": kind, "conv": True}), corpus, rows_folder=Path("unused"))
    stream = corpus.ids("valid")[:75]
    predictions = predict(model, stream)
    assert predictions.places_N.tolist() == list(range(1, 75))
    last = torch.nn.functional.cross_entropy(
        model.logits(model.hidden(stream[None, 64:74])).flatten(0, 1), stream[65:], reduction="none"
    )
    torch.testing.assert_close(predictions.nats_N[64:], last.detach(), rtol=1e-5, atol=1e-5)
    assert predict(model, stream, most=50).places_N.tolist() == list(range(1, 51))


def test_windows_cover_the_stream_and_ranks_share_a_batch() -> None:
    windows = Windows(torch.arange(101), context=10, batch_size=4, seed=0)
    epoch = torch.cat([windows.batch(step) for step in range(2)])
    assert len(set(epoch[:, 0].tolist())) == 8
    assert torch.equal(epoch, epoch[:, :1] + torch.arange(11))
    shares = [windows.batch(1, rank=rank, count=2) for rank in range(2)]
    assert torch.equal(torch.cat(shares), windows.batch(1))
    assert not torch.equal(windows.batch(0), windows.batch(2))  # another epoch, another order
    assert sorted(first for batch, _ in windows.all() for first in batch[:, 0].tolist()) == list(range(0, 100, 10))
    rest = Windows(torch.arange(171), context=10, batch_size=16, seed=0)
    assert [len(batch) for batch, _ in rest.all()] == [9, 8]
    longer = Windows(torch.arange(175), context=10, batch_size=16, seed=0)
    read = torch.cat([places[:, 1:].flatten() for places, _ in longer.all()]).tolist()
    assert sorted(place for place in read if place < 175) == list(range(1, 175))
    with pytest.raises(DataError, match="the training split has 39 tokens"):
        Windows(torch.arange(39), context=10, batch_size=4, seed=0)


def _read(windows: Windows, num_steps: int) -> set[int]:
    """Places that some steps predict, of a stream that counts."""
    return {place for step in range(num_steps) for place in windows.batch(step)[:, 1:].flatten().tolist()}


@pytest.mark.parametrize("length", [101, 104, 110, 135])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 40])
def test_what_no_step_reads_is_counted(length: int, num_steps: int) -> None:
    windows = Windows(torch.arange(length), context=10, batch_size=4, seed=0)
    assert windows.num_unread(num_steps) == length - 1 - len(_read(windows, num_steps))


def test_epochs_read_the_end_of_the_stream_too() -> None:
    """Of 87 predictions in windows of 10 the first epoch leaves out the last 7, the second the first 7."""
    windows = Windows(torch.arange(88), context=10, batch_size=4, seed=0)
    assert windows.epoch_steps == 2
    assert _read(windows, 2) == set(range(1, 81))
    assert {place for step in (2, 3) for place in windows.batch(step)[:, 1:].flatten().tolist()} == set(range(8, 88))
    assert windows.num_unread(2) == 7
    assert windows.num_unread(4) == 0


def test_a_run_says_what_it_does_not_read(texts: Path, corpus: Corpus, tmp_path: Path) -> None:
    split = corpus.facts["splits"]["train"]["tokens"] - 1
    short = train_lm(texts, tmp_path / "short", train={"tokens": 100})
    assert (short["num_steps"], short["train_tokens"], short["unread_tokens"]) == (1, 64, split - 64)
    told = f"training on 64 tokens, 4 x 16 in a step; {split - 64:,} of the training split's {split:,} are never read"
    assert told in (tmp_path / "short/log.txt").read_text()
    twice = train_lm(texts, tmp_path / "long", train={"tokens": 2 * split, "batch_size": 32})
    assert twice["unread_tokens"] == 0
    assert f"each of the training split's {split:,} is read" in (tmp_path / "long/log.txt").read_text()


@pytest.mark.parametrize("kind", ["engram", "stem"])
def test_rows_of_two_bytes(texts: Path, tmp_path: Path, kind: str) -> None:
    sections: dict[str, Any] = {"memory": {"kind": kind}, "rows": {"backend": "torch", "dtype": "bf16"}}
    result = train_lm(texts, tmp_path / "run", **sections)
    assert train_lm(texts, tmp_path / "again", **sections)["bits_per_byte"] == result["bits_per_byte"]
    assert evaluate_run(tmp_path / "run", split="test")["bits_per_byte"] == result["bits_per_byte"]
    with opened_lm(tmp_path / "run") as lm:
        assert {weight.dtype for weight in lm.model.row_weights().values()} == {torch.bfloat16}
        assert len(generate_ids(lm.model, [5, 6, 7], most=4)) <= 4


def test_a_run_of_another_kind_is_no_language_model(tmp_path: Path) -> None:
    RunFolder(tmp_path).create({"data": {"path": "data"}, "model": {"name": "lr"}}, fingerprint="", content=None)
    with (
        pytest.raises(CheckpointError, match="is a run of `embank train`; give one of `embank lm train`"),
        opened_lm(tmp_path),
    ):
        pass


def test_a_shared_corpus_is_checked(texts: Path, tmp_path: Path) -> None:
    shared, run = tmp_path / "shared", tmp_path / "run"
    train_lm(texts, run, corpus={"folder": str(shared)}, train={"tokens": 64})
    evaluate_run(run, split="test", most=16)
    held = (shared / "test.npy").read_bytes()
    (shared / "test.npy").write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="shared/test.npy' has been altered: .* train again on another corpus"):
        evaluate_run(run, split="test", most=16)
    shared.rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"trained on the corpus in '.*shared' \(corpus.folder\), which is not"):
        evaluate_run(run, split="test", most=16)


def test_commands_of_recommenders_say_what_the_run_is(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"it is of a language model .* train it with `embank lm train`, and ask"):
        load_config(run / "config.yaml")
    with pytest.raises(ConfigError, match=r"it is of a language model .* `embank lm eval`"):
        export_run(run, out=tmp_path / "bundle")
    for opening in (bundle_of, Reference.open):  # it was told to be finished, or to be prepared like
        with pytest.raises(ConfigError, match=r"is of a language model, which scores no rows; ask it with `embank lm"):
            opening(run)


def test_folders_and_changes_are_refused(run: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="already holds a run"):
        train_lm(texts, run)
    with pytest.raises(ConfigError, match=r"was started with memory.kind = 'engram', the configuration now says"):
        train_lm(texts, run, resume=True, memory={"kind": "stem"})
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        train_lm(texts, tmp_path / "gone", resume=True)
    with pytest.raises(WorkError, match=r"loss is (nan|inf) in step \d+: .*lower train"):
        train_lm(texts, tmp_path / "wild", train={"lr": 1e30, "clip_grad_norm": None, "warmup_steps": 0})


def test_a_model_that_can_not_be_built_leaves_no_run(texts: Path, tmp_path: Path) -> None:
    huge = {"kind": "engram", "rows": 10**12}
    with pytest.raises(ConfigError, match="the engram tables need .* with their optimizer state, and this machine has"):
        train_lm(texts, tmp_path / "run", memory=huge)
    with pytest.raises(DataError, match="the training split has"):
        train_lm(texts, tmp_path / "run", train={"tokens": 10**7, "batch_size": 10**4})
    assert list(tmp_path.iterdir()) == []
    assert train_lm(texts, tmp_path / "run", train={"tokens": 64})["num_steps"] == 1


def test_a_run_begins_in_what_a_kill_has_left(texts: Path, tmp_path: Path) -> None:
    run, left = tmp_path / "run", tmp_path / "run/.corpus.tmp-99"
    left.mkdir(parents=True)
    for path in (run / ".lock", left / "tokenizer.json", left / "note.txt"):
        path.write_text("")
    with pytest.raises(ConfigError, match="is not empty and holds no run; choose another --out"):
        train_lm(texts, run, train={"tokens": 64})
    (left / "note.txt").unlink()
    left.rename(run / "corpus")
    left.mkdir()
    train_lm(texts, run, train={"tokens": 64})
    assert not left.exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"memory": {"kind": "engrams"}}, "memory.kind is 'engrams': "),
        ({"memory": {"layer": [1]}}, r"unknown key 'memory.layer'. Did you mean 'layers'\?"),
        ({"memory": {"kind": "engram", "layers": [2]}}, "block 2, but the model has 2 blocks, numbered from 0"),
        ({"memory": {"kind": "engram", "layers": [1, 1]}}, "give each block once"),
        ({"memory": {"kind": "engram", "layers": []}}, "memory.layers is empty"),
        ({"memory": {"max_ngram": 1}}, "n-grams begin at 2"),
        ({"model": {"dim": 18}}, "give a multiple of 4"),
        ({"train": {"tokens": 0}}, "train.tokens is 0: it must be at least 1"),
        ({"train": {"lr": -1}}, "train.lr is -1"),
        ({"train": {"row_optimizer": "adam"}}, "fbgemm backend lacks"),
        ({"model": {"embedding_dropout": 1}}, "it is a chance below 1"),
        ({"corpus": {"vocab_size": 100}}, "from 257 to 65536"),
        ({"corpus": {"ratios": [1, 0, 0]}}, "three positive shares"),
        ({"corpus": {"ratios": [0.5, float("nan"), 0.5]}}, "three positive shares"),
        ({"train": {"tokens": 63}}, "train.tokens is 63, less than one batch of 4 sequences of 16 tokens; .* least 64"),
        ({"memory": {"kind": "memoryformer", "bits": 3}}, "memory.bits is 3 with model.dim 16; give a divisor"),
        ({"train": {"lr": True}}, "train.lr is True: it must be a number"),
        ({"rows": {"dtype": "bf16"}}, "rows.dtype is 'bf16', which the fbgemm backend lacks on a CPU"),
        ({"rows": {"dtype": "int8", "backend": "torch"}}, "rows.dtype is 'int8'"),
        ({"rows": {"cut": "columns"}}, "rows.cut is 'columns' and train.row_optimizer 'rowwise_adagrad'"),
        ({"memory": {"scoring": "other"}}, "memory.scoring is 'other'"),
    ],
)
def test_wrong_configurations_are_refused(texts: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lm_config(texts, **sections)
