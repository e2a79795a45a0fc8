"""Every registered method in a SequenceCollection: the same rows as in a TableCollection, id by id, and the same
training."""

from pathlib import Path

import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.tables import RowOptimizer, RowTier, SequenceCollection, TableCollection, TableSpec
from embank.tables.collections.stages import after_step, finished
from embank.tables.storage.checkpoint import load_checkpoint, save_checkpoint
from tests.contracts.test_methods import DIM, NAMES, NUM, spec

TWO = ("a", "b")
"""Tables of a group."""


def specs(method: str, *, in_one_group: bool) -> list[TableSpec]:
    return [spec(method, name=name, features=("g",) if in_one_group else (name,)) for name in TWO]


def random_ids(seed: int) -> torch.Tensor:
    """[B, T, H] with repeated ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, NUM, (4, 6, len(TWO)), generator=generator)
    return torch.where(torch.rand(ids.shape, generator=generator) < 0.5, ids % 3, ids)


def pooled_rows(tables: TableCollection, ids: torch.Tensor) -> torch.Tensor:
    """The same rows [B, T, sum D] from a pooled collection, whose bags hold one id each."""
    flat = ids.reshape(-1, len(TWO)).t().reshape(-1)
    kjt = KeyedJaggedTensor(keys=list(TWO), values=flat, lengths=torch.ones(flat.numel(), dtype=torch.int32))
    rows: torch.Tensor = tables(kjt).values()
    return rows.view(*ids.shape[:2], -1)


@pytest.mark.parametrize("method", NAMES)
class TestMethodInSequences:
    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["fbgemm", "torch"])
    @pytest.mark.parametrize("dedupe", [False, True])
    def test_rows_and_training_equal_those_of_a_pooled_collection(
        self, method: str, backend: str, dedupe: bool
    ) -> None:
        optimizer = RowOptimizer(name="rowwise_adagrad", lr=0.05)
        sequence = finished(
            SequenceCollection(specs(method, in_one_group=True), backend=backend, optimizer=optimizer, dedupe=dedupe)
        )
        pooled = finished(TableCollection(specs(method, in_one_group=False), backend=backend, optimizer=optimizer))
        assert sequence.nbytes("serving") == pooled.nbytes("serving")
        for step in range(4):
            ids = random_ids(step)
            for tables in (sequence, pooled):
                torch.manual_seed(step)  # random masks and noise alike
                rows = sequence({"g": ids})["g"] if tables is sequence else pooled_rows(pooled, ids)
                loss, extra = (rows - 1).square().sum(), tables.extra_loss()
                parameters = tables.dense_parameters()
                (loss if extra is None else loss + extra).backward()
                tables.update_rows()
                if parameters:
                    torch.optim.SGD(parameters, lr=0.01).step()
                    tables.zero_grad()
                after_step(tables, step=step + 1, num_steps=4)
        ids = random_ids(9)
        for tables in (sequence, pooled):
            tables.eval()
        out = sequence({"g": ids})["g"]
        assert out.shape == (4, 6, 2 * DIM)
        torch.testing.assert_close(out, pooled_rows(pooled, ids), rtol=1e-4, atol=1e-5)

    def test_disk_and_checkpoint(self, method: str, tmp_path: Path) -> None:
        """Disk gives memory's bits, and what it saves a collection in memory restores."""
        disk, memory = (
            finished(SequenceCollection(specs(method, in_one_group=True), seed=1, tier=tier))
            for tier in (RowTier(name="disk", directory=tmp_path / "rows"), RowTier())
        )
        for tables in (disk, memory):
            torch.manual_seed(0)
            (tables({"g": random_ids(0)})["g"] - 1).square().sum().backward()
            tables.update_rows()
            tables.eval()
        assert torch.equal(disk({"g": random_ids(1)})["g"], memory({"g": random_ids(1)})["g"])
        save_checkpoint(tmp_path / "c", tables=disk, dense={"methods": disk.methods.state_dict()}, meta={})
        other = SequenceCollection(disk.specs, seed=2).eval()
        dense, _ = load_checkpoint(tmp_path / "c", tables=other)
        other.methods.load_state_dict(dense["methods"])
        assert torch.equal(disk({"g": random_ids(1)})["g"], other({"g": random_ids(1)})["g"])
