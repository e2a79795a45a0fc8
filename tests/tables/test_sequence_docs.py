"""The example of docs/sequence.md and the benchmark run as they stand."""

import re
from pathlib import Path

import pytest
import torch

from tests.processes import script
from tests.scripts import by_case, run_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_the_example_trains() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/sequence.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(code, names)
    memory = names["Memory"](num_heads=4, rows=50, dim=8, hidden=3)
    ids = torch.randint(0, 50, (2, 5, 4), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(5):
        loss = (memory(ids) - 1).square().mean()
        loss.backward()
        memory.tables.update_rows()
        losses.append(loss.item())
    assert memory(ids).shape == (2, 5, 3)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_the_benchmark_runs_small(tmp_path: Path) -> None:
    sizes = ["--rows", "300", "--small-rows", "100", "--heads", "2", "--dim", "8", "--context", "4", "--tokens", "16"]
    rounds = ["--repeats", "2", "--steps", "2", "--contestants", "disk", "memory"]
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    done = script(ROOT / "benchmarks/sequence.py", *sizes, *rounds, *folders)
    assert done.returncode == 0, done.stderr
    run = run_of(tmp_path / "sequence.json")
    steps = by_case(run, "step")
    assert [case[1] for case in steps] == ["disk", "memory"]
    assert {peer.name: peer.value for peer in steps[16, "memory", 100].peers} == {"memory, wall": 1, "memory, cpu": 1}
    assert all(record.low > 0 for record in steps.values() if record.low is not None)
    rows = 2 * 300 * (8 + 1) * 4
    (held,) = [one for case, one in by_case(run, "rows and state").items() if case[0] == "disk"]
    assert rows < held.value * 2**30 < rows + 1_000, "and the constants of a kernel"
    assert list((tmp_path / "work").iterdir()) == [], "the tables' files are removed"
