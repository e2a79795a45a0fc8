"""The comparison of language models at a size that takes seconds, and how its figures are read."""

import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.lm.small import write_texts
from tests.scripts import run_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import lm  # noqa: E402
import lm_report  # noqa: E402


def _start() -> Any:
    return lm.Job(arm="Engram", corpus="library", tokens=1, seed=0, lr=0.006, row_lr=0.8)


def test_rates_are_climbed_to_the_best() -> None:
    """A bowl whose bottom is far from the start, and tilted so that one rate's best depends on the other's."""

    def loss(job: Any) -> float:
        dense, rows = np.log2(job.lr / 0.048), np.log(job.row_lr / 0.05) / np.log(4)
        return float((dense + 0.3 * rows) ** 2 + rows**2)

    tried: list[Any] = []

    def train(jobs: Any) -> list[dict[str, float]]:
        tried.extend(jobs)
        return [{"valid_bits_per_byte": loss(job)} for job in jobs]

    known: dict[Any, float] = {}
    best = lm.climb(_start(), train, known=known)
    assert (best.lr, best.row_lr) == (0.048, 0.05)
    assert len(tried) == len(set(tried)) == len(known) < 25
    edges = {"lr": {j.lr for j in known}, "row_lr": {j.row_lr for j in known}}
    for axis, values in edges.items():
        assert min(values) < getattr(best, axis) < max(values)


def test_arms_without_rows_have_one_rate() -> None:
    known: dict[Any, float] = {}
    first = replace(_start(), arm="dense")
    best = lm.climb(first, lambda jobs: [{"valid_bits_per_byte": abs(j.lr - 0.003)} for j in jobs], known=known)
    assert best.lr == 0.003
    assert {job.row_lr for job in known} == {0.8}


def _scores(values: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {
            "corpus": "library",
            "tokens": 2,
            "arm": arm,
            "seed": seed,
            "bits_per_byte": value,
            "contexts": {
                c: {"bits_per_byte": value - 0.01 * n, "share": 0.3} for n, c in enumerate(lm_report.CONTEXTS)
            },
        }
        for arm, own in values.items()
        for seed, value in enumerate(own)
    ]


def test_bars_are_read_from_paired_differences() -> None:
    values = {
        "dense": [2.0, 2.2, 2.4],
        "dense, iso-FLOP": [2.0, 2.2, 2.4],
        "Engram": [1.9, 2.1, 2.3],
        "Engram, shuffled": [2.02, 2.22, 2.42],
    }
    held = {b["what"]: b["holds"] for b in lm_report.bars(_scores(values), tokens=2)}
    assert list(held.values()) == [True, True, True, True, False]  # equal gains after every context
    values["Engram"] = [1.9, 2.16, 2.3]  # .1, .04, .1: a mean of .08 is less than 3 deviations of .035
    values["Engram, shuffled"] = [2.04, 2.24, 2.44]
    assert not any(b["holds"] for b in lm_report.bars(_scores(values), tokens=2)[:2])
    assert not lm_report.bars(_scores(values), tokens=2)[3]["holds"]


def test_bits_are_by_bytes_of_each_context() -> None:
    nats, sizes = np.log(2) * np.array([8.0, 4.0, 2.0]), np.array([4, 2, 2])
    found = lm_report.by_context(nats, sizes=sizes, contexts=np.array([0, 0, 2]))
    assert found["bits_per_byte"] == pytest.approx(14 / 8)
    assert found["contexts"]["trigram"] == {"bits_per_byte": pytest.approx(2.0), "share": pytest.approx(2 / 3)}
    assert found["contexts"]["bigram"]["bits_per_byte"] is None
    assert found["contexts"]["unseen"]["bits_per_byte"] == pytest.approx(1.0)


@pytest.mark.slow
def test_the_whole_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two arms from end to end, and once more without training anything."""
    texts = write_texts(tmp_path / "texts", documents=60)
    command = ["--small", "--prose", str(texts), "--work", str(tmp_path / "work")]
    command += ["--arms", "dense", "Engram", "--tokens", "1500", "--seeds", "0", "1", "--jobs", "0"]
    command += ["--corpora", "prose", "--vocab-size", "300", "--eval-tokens", "500"]
    command += ["--out", str(tmp_path), "--page", str(tmp_path / "lm.md")]
    lm.main(command)
    report = run_of(tmp_path / "lm.json").detail
    arms = {s["arm"] for s in report["scores"]}
    assert arms == {"dense", "Engram", "Kneser-Ney 5", "dense + Kneser-Ney", "Engram + Kneser-Ney"}
    assert len(report["scores"]) == 1 + 2 * 4
    mixed = [s["bits_per_byte"] for s in report["scores"] if s["arm"] == "dense + Kneser-Ney"]
    alone = [s["bits_per_byte"] for s in report["scores"] if s["arm"] == "Kneser-Ney 5"]
    assert statistics.mean(mixed) < alone[0] * 1.02
    by_run = {(r["arm"], r["tokens"], r["seed"]): r["bits_per_byte"] for r in report["runs"]}
    for score in report["scores"]:
        if "Kneser" not in score["arm"]:
            trained = by_run[score["arm"], score["tokens"], score["seed"]]
            assert score["bits_per_byte"] == pytest.approx(trained, rel=1e-5)
    assert "| Engram |" in (tmp_path / "lm.md").read_text()
    monkeypatch.setattr("embank.pipelines.lm.trainer.LmTrainer.train", None)
    lm.main(command)
    assert run_of(tmp_path / "lm.json").detail["scores"] == report["scores"]
