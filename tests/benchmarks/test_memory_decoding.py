"""The benchmark of memory tables while decoding, in this process at a size that takes seconds."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/memory_decoding.py"


def test_every_path_is_measured_on_both_tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.spec_from_file_location("memory_decoding", SCRIPT)
    assert found is not None
    assert found.loader is not None
    benchmark = importlib.util.module_from_spec(found)
    found.loader.exec_module(benchmark)
    sizes = ["--rows", "2000", "--ffn-dim", "32", "--tokens", "50", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *sizes, "--folder", str(tmp_path), "--out", str(tmp_path)])
    monkeypatch.setattr(benchmark.torch, "set_num_threads", lambda number: None)  # of this process
    benchmark.main()
    spent = {
        (e["memory"], e["what"]): e for e in json.loads((tmp_path / "memory_decoding.json").read_text())["summary"]
    }
    for where in ("Engram, memory", "Engram and STEM, disk"):
        assert spent[where, "read path"]["median_us"] < spent[where, "path of training"]["median_us"]
    assert all(0 < e["min_us"] <= e["median_us"] <= e["max_us"] for e in spent.values())
    assert "| hash in torch |" in (tmp_path / "memory_decoding.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["memory_decoding.json", "memory_decoding.md"]
