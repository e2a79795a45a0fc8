"""A memory over two processes, cut by rows, heads and columns: the rows, updates and checkpoints of one."""

from pathlib import Path

import pytest
import torch

from tests.distributed.ranks import Ranks
from tests.memory import ranks as jobs
from tests.memory.small import memory, tokens, weights_of

Cut = str | dict[str, str]
pytestmark = pytest.mark.slow


def alone(name: str = "rowwise_adagrad") -> tuple[list[torch.Tensor], object]:
    """The same three steps in one process."""
    tables = memory(name=name, backend="torch" if name == "adam" else "fbgemm")
    looked_up = []
    for step in range(3):
        rows = tables(tokens(batch=4, seed=step))
        looked_up.append(rows["engram"][1].detach().clone())
        (sum((r - 1).square().sum() for by_layer in rows.values() for r in by_layer.values()) / 4).backward()
        tables.step()
    return looked_up, tables


@pytest.mark.parametrize(
    ("cut", "where", "name"),
    [
        ("rows", "memory", "rowwise_adagrad"),
        ("heads", "memory", "rowwise_adagrad"),
        ("rows", "disk", "rowwise_adagrad"),
        ("heads", "memory", "adam"),
        ({"engram": "rows", "stem": "columns"}, "memory", "adagrad"),
    ],
)
def test_two_ranks_train_as_one_process(two: Ranks, tmp_path: Path, cut: Cut, where: str, name: str) -> None:
    wanted, tables = alone(name)
    folder = tmp_path / "rows" if where == "disk" else None
    parts = two.run(jobs.train_part, cut, folder, tmp_path / "saved", name)
    for step, rows in enumerate(wanted):
        torch.testing.assert_close(torch.cat([part[step] for part in parts]), rows, rtol=2e-5, atol=2e-5)
    after = memory(name=name, backend="torch" if name == "adam" else "fbgemm", seed=9)
    after.load(tmp_path / "saved")  # of two processes, in one
    for table, rows in weights_of(tables).items():
        torch.testing.assert_close(weights_of(after)[table], rows, rtol=2e-5, atol=2e-5)
    for kind, collection in tables.collections.items():
        mine = after.collections[kind].optimizer_state()
        for table, state in collection.optimizer_state().items():
            for what, values in state.items():
                torch.testing.assert_close(mine[table][what], values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cut", ["rows", "heads"])
def test_a_checkpoint_of_one_process_is_dealt_to_two(two: Ranks, tmp_path: Path, cut: str) -> None:
    _, tables = alone()
    tables.save(tmp_path / "saved")
    parts = two.run(jobs.loaded, cut, tmp_path / "saved")
    for kind, collection in tables.collections.items():
        held = {f"rows/{table}": rows for table, rows in collection.weights().items()}
        for table, state in collection.optimizer_state().items():
            held |= {f"optimizer/{table}/{what}": values for what, values in state.items()}
        for name, values in held.items():
            together = torch.full_like(values, torch.nan)
            for part in parts:
                if name in part:
                    numbers, own = part[name]
                    together[numbers] = own
            assert torch.equal(together, values), (kind, name)


def test_columns_that_would_train_otherwise_are_refused(two: Ranks) -> None:
    said = two.run(jobs.refused, {"engram": "rows", "stem": "columns"}, "rowwise_adagrad")
    assert all("'stem.layer1' can't be column_wise with rowwise_adagrad" in message for message in said)
