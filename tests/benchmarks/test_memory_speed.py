"""The benchmark of Engram's speed, in this process at a size that takes seconds."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/memory_speed.py"


def test_training_and_generation_are_measured_on_both_tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.spec_from_file_location("memory_speed", SCRIPT)
    assert found is not None
    assert found.loader is not None
    benchmark = importlib.util.module_from_spec(found)
    found.loader.exec_module(benchmark)
    monkeypatch.setattr(benchmark.torch, "set_num_threads", lambda number: None)  # of this process
    sizes = ["--gib", "0.002", "--rounds", "1", "--steps", "1", "--batch", "2", "--context", "16", "--tokens", "5"]
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *sizes, "--folder", str(tmp_path), "--out", str(tmp_path)])
    benchmark.main()
    lines = json.loads((tmp_path / "memory_speed.json").read_text())["summary"]
    measured = {(line["what"], line["ids"], line["contestant"]) for line in lines}
    names = ("dense", "0.002 GiB, memory", "0.002 GiB, disk")
    assert measured == {
        *(("training", ids, name) for ids in ("real", "uniform") for name in names),
        *(("generation", "real", name) for name in names),
        *((f"cold, {how}", "real", names[2]) for how in ("prefetch", "no prefetch")),
    }
    assert all(line["over_dense_cpu"]["median"] == 1 for line in lines if line["contestant"] == "dense")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["memory_speed.json", "memory_speed.md"]
