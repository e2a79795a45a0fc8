"""The GPU benchmark of offloaded Engram rows, on a CPU at a size that takes seconds."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/gpu/lm_offload.py"


@pytest.fixture(name="benchmark", scope="module")
def _benchmark() -> ModuleType:
    found = importlib.util.spec_from_file_location("lm_offload", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_all_ways_are_measured(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--device", "cpu", "--small", "--results", str(tmp_path)])
    benchmark.main()
    lines = json.loads((tmp_path / "lm_offload_cpu.json").read_text())["lines"]
    ways, kinds, whats = ("dense", "resident", "side", "staged"), ("real", "uniform"), ("prefill", "decode")
    measured = {(e["way"], e["tokens"], e["what"]) for e in lines}
    assert measured == set(itertools.product(ways, kinds, whats))
    assert all(0 < e["quartiles"][0] <= e["tokens_per_s"] <= e["quartiles"][1] for e in lines)
    assert all(e["over_dense"] == 1 for e in lines if e["way"] == "dense")


def test_ways_that_read_different_rows_end_it(benchmark: ModuleType) -> None:
    cpu, table = torch.device("cpu"), benchmark.filled_table(50, pinned=False)
    ways = benchmark.ways_of(table, cpu)
    ids = torch.tensor([[3, 4, 5]])

    class Fixed:
        def row_ids(self, tokens_BT: torch.Tensor, before_BS: None) -> torch.Tensor:
            return tokens_BT.view(-1)

    benchmark.checked(Fixed(), ways, ids)
    ways["resident"].table_RD = table.flip(0)
    with pytest.raises(SystemExit, match="read different rows"):
        benchmark.checked(Fixed(), ways, ids)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_it_says_that_there_is_no_gpu(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name])
    with pytest.raises(SystemExit, match="this machine has no GPU that torch can use; --device cpu --small"):
        benchmark.main()
