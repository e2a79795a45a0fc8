"""Every registered method learns: trained on clicks with a planted signal, its tables rank held-out clicks; untrained
ones do not."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from embank.tables import PackedCollection, RowOptimizer, TableCollection, TableSpec, pack_collection
from embank.tables.collections.stages import advance, current_stage, num_stages, rows_held, search_parameters
from tests.contracts.specs import EXACT_FLOOR, NAMES

pytestmark = pytest.mark.slow

NUM, DIM, STEPS, BATCH = 120, 8, 40, 512
FEATURES = ("user", "item")
UNTRAINED, TRAINED = 0.58, 0.75
"""AUC that untrained tables stay below, and trained ones exceed. The signal itself has .84; where rows stand still and
the linear layer alone learns, it gets to .66."""


class Clicks(NamedTuple):
    ids_FB: Tensor
    labels_B: Tensor

    def kjt(self) -> KeyedJaggedTensor:
        lengths = torch.ones(self.ids_FB.numel(), dtype=torch.int32)
        return KeyedJaggedTensor(keys=list(FEATURES), values=self.ids_FB.reshape(-1), lengths=lengths)


def clicks(seed: int, *, size: int) -> Clicks:
    """A user clicks by a taste of its own and an item's appeal, which have nothing to do with their numbers. Low ids
    are frequent."""
    generator = torch.Generator().manual_seed(seed)
    ids_FB = (NUM * torch.rand(2, size, generator=generator) ** 1.5).long()
    effects_FN = torch.randn(2, NUM, generator=torch.Generator().manual_seed(7)).sign()
    logits_B = 1.5 * effects_FN.gather(1, ids_FB).sum(0)
    return Clicks(ids_FB, (torch.rand(size, generator=generator) < logits_B.sigmoid()).float())


def auc(scores_B: Tensor, labels_B: Tensor) -> float:
    """By ranks; ties count half."""
    _, inverse, counts = scores_B.double().unique(return_inverse=True, return_counts=True)
    ranks_B = (counts.cumsum(0) - (counts - 1) / 2)[inverse]
    num_clicks = labels_B.sum()
    area = (ranks_B[labels_B == 1].sum() - num_clicks * (num_clicks + 1) / 2) / (num_clicks * (1 - labels_B).sum())
    return float(area)


def scores(network: nn.Module, tables: TableCollection | PackedCollection, batch: Clicks) -> Tensor:
    """A linear layer over the rows, side by side, and their product."""
    values_BD = tables(batch.kjt()).values()
    user_BD, item_BD = values_BD.split(DIM, dim=1)
    logits_B: Tensor = network(values_BD).squeeze(1) + (user_BD * item_BD).sum(1)
    return logits_B


def train_stage(network: nn.Module, tables: TableCollection) -> None:
    """One stage as the documented loop has it, and steps on search parameters where the stage alternates."""
    searched = search_parameters(tables) if current_stage(tables).alternates else []
    learned = [p for p in tables.dense_parameters() if not any(p is other for other in searched)]
    optimizer = torch.optim.Adam([{"params": network.parameters()}, {"params": learned}], lr=0.03)
    search = torch.optim.Adam(searched, lr=0.03) if searched else None
    tables.begin(num_steps=STEPS)
    for step in range(STEPS):
        batch = clicks(step, size=BATCH)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(scores(network, tables, batch), batch.labels_B).backward()
        tables.step()
        optimizer.step()
        if search is not None:
            other = clicks(10_000 + step, size=BATCH)
            with rows_held(tables):
                loss = F.binary_cross_entropy_with_logits(scores(network, tables, other), other.labels_B)
            for parameter, gradient in zip(searched, torch.autograd.grad(loss, searched), strict=True):
                parameter.grad = gradient
            search.step()


def measured(network: nn.Module, tables: TableCollection | PackedCollection) -> float:
    """AUC on clicks that training never saw."""
    held_out = clicks(99_999, size=4000)
    with torch.no_grad():
        return auc(scores(network, tables.eval(), held_out), held_out.labels_B)


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("method", NAMES)
def test_trained_tables_rank_held_out_clicks(method: str, backend: str) -> None:
    counts = torch.bincount(torch.cat([clicks(s, size=BATCH).ids_FB[0] for s in range(STEPS)]), minlength=NUM)
    counts = counts.sort(descending=True).values
    budget = None if method in EXACT_FLOOR else 0.6
    specs = [
        TableSpec(
            name=name,
            num_embeddings=NUM,
            embedding_dim=DIM,
            feature_names=[name],
            method=method,
            budget=budget,
            counts=counts,
        )
        for name in FEATURES
    ]
    torch.manual_seed(0)
    network = nn.Linear(2 * DIM, 1)
    tables = TableCollection(specs, backend=backend, optimizer=RowOptimizer(name="rowwise_adagrad", lr=0.3))
    untrained = measured(network, tables)
    assert abs(untrained - 0.5) < UNTRAINED - 0.5, f"untrained tables rank clicks with AUC {untrained:.3f}"
    for stage in range(num_stages(tables)):
        if stage:
            tables = advance(tables, score=lambda t=tables, **_: measured(network, t))
        train_stage(network, tables.train())
    trained = measured(network, tables)
    assert trained > TRAINED, f"trained tables rank held-out clicks with AUC {trained:.3f}"
    served = measured(network, pack_collection(tables))
    assert abs(served - trained) < 0.005, f"what is served has AUC {served:.3f}, what was trained {trained:.3f}"
    assert tables.nbytes("serving") <= (budget or 1) * tables.plain_nbytes
