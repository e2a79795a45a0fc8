"""The other benchmarks of language models at sizes that take seconds: facts, speed, offloading beside a GPU."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.scripts import by_case, run_of

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "gpu")]
import lm_facts  # noqa: E402
import lm_facts_report  # noqa: E402
import lm_offload  # noqa: E402
import lm_speed  # noqa: E402

WORDS = [f" w{number}" for number in range(400)]


@pytest.fixture(name="library")
def _library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standard library of forty short texts."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=4)) for _ in range(90)]
    (tmp_path / "library").mkdir()
    for number in range(40):
        (tmp_path / "library" / f"{number:02}.py").write_text(" ".join(draw.choices(words, k=150)))
    files = sorted((tmp_path / "library").iterdir())
    monkeypatch.setattr("embank.pipelines.lm.corpus.standard_library", lambda: files)


def test_facts_about_pairs_need_both_tokens() -> None:
    single, pairs = lm_facts.make_facts(WORDS, count=64, seed=0)
    assert len({fact.entity for fact in single}) == len({fact.entity for fact in pairs}) == 64
    by_word: dict[str, set[str]] = {}
    for fact in pairs:
        for word in fact.entity.split():
            by_word.setdefault(word, set()).add(fact.answer)
    assert all(len(answers) > 1 for answers in by_word.values())
    assert {f.answer for f in single}.isdisjoint({f.entity for f in single})
    assert single == lm_facts.make_facts(WORDS, count=64, seed=0)[0]


def test_a_fact_is_trained_in_all_templates_but_one() -> None:
    single, _ = lm_facts.make_facts(WORDS, count=16, seed=0)
    documents = lm_facts.documents_of(single, repeats=2, seed=0)
    lines = "".join(documents).splitlines()
    assert len(lines) == 16 * 7 * 2
    for fact in single:
        counts = [lines.count(fact.sentence(template)) for template in range(8)]
        assert counts == [0 if template == fact.unseen else 2 for template in range(8)]
        assert fact.sentence(0).startswith(fact.prompt(0))


def test_bars_of_facts() -> None:
    def runs(recall: float, control: float) -> list[dict[str, Any]]:
        edits = {"seen": 1.0, "unseen": 0.8, "control": control, "other fact kept": 0.96, "undone": True}
        return [
            {"arm": "dense", "two tokens": {"trained": 0.1}},
            {"arm": "Engram", "two tokens": {"trained": recall}},
            {"arm": "STEM 1/2", "edits": edits},
        ]

    assert all(bar["holds"] for bar in lm_facts_report.bars(runs(0.8, 0.1)))
    held = [bar["holds"] for bar in lm_facts_report.bars(runs(0.79, 0.11))]
    assert held == [False, True, True, True, False, True, True]


def test_ratios_are_taken_within_a_round() -> None:
    times = {"slow": [(2.0, 4.0), (20.0, 30.0)], "fast": [(1.0, 2.0), (10.0, 10.0)]}
    found = lm_speed.speed_ratio(times, "slow", "fast")
    assert found["cpu"] == {"median": 0.5, "min": 0.5, "max": 0.5}
    assert found["wall"]["min"] == pytest.approx(1 / 3)


@pytest.mark.slow
@pytest.mark.usefixtures("library")
def test_speed_is_measured(tmp_path: Path) -> None:
    sizes = ["--gib", "0.002", "--rounds", "2", "--steps", "2", "--small", "--vocab-size", "300"]
    lm_speed.main([*sizes, "--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    run = run_of(tmp_path / "lm_speed.json")
    (size,) = run.detail["sizes"]
    assert size["train, real ids"]["disk over memory"]["cpu"]["median"] > 0
    assert size["cold"]["wall"]["max"] >= size["cold"]["wall"]["min"] > 0
    assert len(run.detail["bars"]) == 4
    speeds = by_case(run, "speed")
    assert {case[2] for case in speeds} == {"dense", "memory", "disk"}
    assert not list((tmp_path / "work").glob("rows-*"))


@pytest.mark.slow
def test_offloaded_rows_are_resident_rows(tmp_path: Path) -> None:
    """Every arm's check, and figures of all of them."""
    lm_offload.main(["--device", "cpu", "--small", "--out", str(tmp_path)])
    run = run_of(tmp_path / "gpu_lm_offload.json")
    assert run.machine.device == "cpu"
    (size,) = run.detail["sizes"]
    assert set(size["real"]) == {"none", "resident", "pinned", "staged", "staged-all"}
    for name in ("real", "uniform"):
        bytes_of = {arm: values["prefill"]["bytes_per_token"] for arm, values in size[name].items()}
        assert bytes_of["none"] == bytes_of["resident"] == 0
        assert bytes_of["staged"] < bytes_of["staged-all"] == 2 * 16 * 8 * 4
        low, high = size[name]["staged"]["decode"]["quartiles"]
        assert 0 < low <= size[name]["staged"]["decode"]["tokens_per_s"] <= high


def test_a_gather_that_lies_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_offload, "gather", lambda table_RD, ids_N: table_RD[(ids_N + 1) % len(table_RD)])
    with pytest.raises(SystemExit, match="'pinned' brings other rows than 'resident'"):
        lm_offload.main(["--device", "cpu", "--small", "--out", str(tmp_path)])


def test_an_arm_that_says_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rows that it should have."""
    both = lm_offload.Workload.both
    monkeypatch.setattr(lm_offload.Workload, "both", lambda self, arm: both(self, arm) * (1 + 0.02 * len(arm.name)))
    with pytest.raises(SystemExit, match="'pinned' says something else than 'resident'"):
        lm_offload.main(["--device", "cpu", "--small", "--out", str(tmp_path)])


def test_rows_drawn_part_by_part_are_all_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_offload, "PART", 16)
    first, second = lm_offload.make_tables(lm_offload.SMALL, 5, torch.device("cpu")).values()
    assert len(torch.cat([first, second]).unique(dim=0)) == 2 * 16 * 5


def test_smaller_tables_are_the_beginning_of_larger_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[int, torch.Tensor]] = []
    without = lm_offload.Arm("none", {}, torch.device("cpu"))
    monkeypatch.setattr(lm_offload, "make_arms", lambda _names, host, _device: made.append(host) or [without])
    lm_offload.main(["--device", "cpu", "--small", "--gb", "0.0002", "0.0004", "--out", str(tmp_path)])
    smaller, larger = made
    for layer in (1, 2):
        assert len(smaller[layer]) < len(larger[layer])
        assert torch.equal(smaller[layer], larger[layer][: len(smaller[layer])])


@pytest.mark.slow
@pytest.mark.usefixtures("library")
def test_facts_from_end_to_end(tmp_path: Path) -> None:
    options = ["--small", "--seeds", "0", "--facts", "16", "--epochs", "1", "--repeats", "1", "--text-tokens", "2000"]
    options += ["--vocab-size", "500"]
    options += ["--eval-tokens", "500", "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    lm_facts.main(options)
    run = run_of(tmp_path / "lm_facts.json")
    report = run.detail
    assert [run["arm"] for run in report["runs"]] == ["dense", "Engram", "STEM 1/2"]
    assert report["runs"][2]["edits"]["undone"] is True
    assert report["runs"][1]["written"]["success"] > 0.5  # rows are tuned until the answer follows
    assert ("STEM 1/2",) in by_case(run, "answered, one token, unseen templates")
