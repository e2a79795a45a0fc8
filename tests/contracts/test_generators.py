"""Every registered method leaves the generators of its callers alone, and draws what its collection's seed says."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embank.compression.budget.solver import share
from embank.tables import RowOptimizer, SequenceCollection, TableCollection, build_method, method_class
from embank.tables.collections.stages import advance, after_step, settle
from embank.tables.serving.bundle import load_bundle
from embank.tables.serving.saving import save_bundle
from embank.tables.sharding.planner import PlanRequest, plan_tables
from embank.tables.storage.checkpoint import load_checkpoint, save_checkpoint
from tests.contracts.specs import EXACT_FLOOR, NAMES, NUM, spec
from tests.tables.batches import random_kjt


def states() -> list[Any]:
    """Of the global generators."""
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        [np.asarray(part).tolist() for part in np.random.get_state()],
    ]


@contextmanager
def generators_stand_still(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Also those of other devices, which `torch.manual_seed` would reseed."""

    def refuse(seed: int) -> None:
        raise AssertionError(f"torch.manual_seed({seed}) reseeds every device")

    before = states()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "manual_seed", refuse)
        patched.setattr(torch.random, "manual_seed", refuse)
        yield
    assert states() == before


@pytest.mark.parametrize("method", NAMES)
def test_global_generators_stay_where_they_are(method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Building, planning, sharing a budget, evaluating, going through the stages, packing, saving and loading."""
    one = spec(method)
    scores = iter(range(10_000))

    def score(**_: object) -> float:
        return float(next(scores))

    with generators_stand_still(monkeypatch):
        build_method(one)
        plan_tables([one], PlanRequest(world_size=2), optimizer=RowOptimizer(), num_samples=None)
        share([one, spec(method, name="u", features=("b",))], budget=1.0 if method in EXACT_FLOOR else 0.6)
        SequenceCollection([one])
        for backend in ("torch", "fbgemm"):
            tables = TableCollection([one], backend=backend)
            while True:
                tables.eval()(random_kjt({"a": NUM}, batch_size=4, seed=0))
                after_step(tables, step=1, num_steps=2)
                settle(tables)
                if tables.specs[0].stage + 1 == len(method_class(method).traits.schedule.stages):
                    break
                tables = advance(tables, score=score)
        tables.nbytes("serving")
        save_checkpoint(tmp_path / "c", tables=tables, dense={"methods": tables.methods.state_dict()}, meta={})
        load_checkpoint(tmp_path / "c", tables=tables)
        save_bundle(tmp_path / "b", tables)
        load_bundle(tmp_path / "b")(random_kjt({"a": NUM}, batch_size=4, seed=0))


@pytest.mark.parametrize("method", NAMES)
def test_a_seed_decides_everything_that_is_not_drawn_in_a_forward_pass(method: str) -> None:
    """Dense parameters, rows, restarts of centroids, blocks that are merged: the same with one seed, not with
    another."""

    def run(seed: int) -> dict[str, torch.Tensor]:
        tables = TableCollection([spec(method)], seed=seed, optimizer=RowOptimizer(lr=0.05))
        for stage in range(len(method_class(method).traits.schedule.stages)):
            if stage:
                tables = advance(tables)
            for step in range(1, 9):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(step)
                    tables(random_kjt({"a": NUM}, batch_size=64, seed=step)).values().sum().backward()
                tables.update_rows()
                after_step(tables, step=step, num_steps=8)
        settle(tables)
        return {**tables.weights(), **tables.methods.state_dict()}

    first, again, other = run(3), run(3), run(4)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(value.shape != other[name].shape or not torch.equal(value, other[name]) for name, value in first.items())
