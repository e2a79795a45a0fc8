"""Every registered method on tables of one, two and three ids, through all its stages: none is left without a way to
keep its budget."""

import itertools
import random

import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.tables import BudgetError, RowOptimizer, TableCollection, TableSpec, method_class
from embank.tables.collections.stages import advance, after_step, settle
from tests.contracts.specs import NAMES
from tests.tables.batches import random_kjt


def train(tables: TableCollection, *, num: int) -> None:
    for step in range(2):
        loss = (tables(random_kjt({"a": num}, batch_size=6, seed=step)).values() - 1).square().sum()
        extra = tables.extra_loss()
        (loss if extra is None else loss + extra).backward()
        tables.update_rows()
        after_step(tables, step=step + 1, num_steps=2)


def prune_everything(tables: TableCollection) -> None:
    """What training may lead to in the end: rows of zeros, thresholds above all rows."""
    for rows in tables.weights().values():
        rows.zero_()
    for name, parameter in tables.methods.named_parameters():
        if name.endswith("threshold"):
            parameter.data.fill_(100.0)


@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("method", NAMES)
def test_tiny_tables_go_through_all_stages_and_keep_their_budget(method: str, worst: bool) -> None:
    scores = random.Random(0)
    for num, dim, budget in itertools.product((1, 2, 3), (4, 5) if worst else (5,), (None, 1.0, 0.5)):
        table = TableSpec(
            name="t", num_embeddings=num, embedding_dim=dim, feature_names=["a"], method=method, budget=budget
        )
        backend, optimizer = ("torch" if worst else "fbgemm"), RowOptimizer(name="sgd", lr=0.1)
        try:
            tables = TableCollection([table], backend=backend, optimizer=optimizer)
        except BudgetError:
            continue
        train(tables, num=num)
        for _ in method_class(method).traits.schedule.stages[1:]:
            if worst:
                prune_everything(tables)
            tables = advance(tables, score=None if worst else lambda **_: scores.random())
            train(tables, num=num)
        settle(tables)
        if budget is not None:
            assert tables.nbytes("serving") <= budget * 4 * num * dim, f"{num} ids of dim {dim}, budget {budget}"
        ids = torch.arange(num)
        rows = tables.eval()(KeyedJaggedTensor(keys=["a"], values=ids, lengths=torch.ones(num, dtype=torch.int32)))
        served = tables.packs()[0].lookup(ids)
        assert bool(served.isfinite().all())
        slack = method_class(method).traits.tolerance * float(served.abs().max())
        torch.testing.assert_close(served, rows.values().detach(), rtol=1e-4, atol=1e-4 + slack)
