"""The benchmark of memory tables while decoding, in this process at a size that takes seconds."""

import sys
from pathlib import Path

import pytest
from tests.scripts import by_case, run_of, script

pytestmark = pytest.mark.slow


def test_every_path_is_measured_on_both_tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = script("memory_decoding")
    sizes = ["--rows", "2000", "--ffn-dim", "32", "--tokens", "50", "--rounds", "2"]
    places = ["--folder", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["memory_decoding.py", *sizes, *places])
    monkeypatch.setattr(benchmark.torch, "set_num_threads", lambda number: None)  # of this process
    benchmark.main()
    spent = by_case(run_of(tmp_path / "memory_decoding.json"), "token")
    for where in ("Engram, memory", "Engram and STEM, disk"):
        assert spent[where, "read path"].value < spent[where, "path of training"].value
        (floor,) = spent[where, "read path"].floors
        assert floor.amount == 4 * (16 * 16 + (2 * 32 if "STEM" in where else 0))
    assert (None, "hash in torch") in spent
    assert [p.name for p in tmp_path.iterdir()] == ["memory_decoding.json"]
