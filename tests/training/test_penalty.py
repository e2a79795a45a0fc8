"""The lazy L2 penalty against the dense one that it stands for."""

from typing import Any

import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.compression.methods.unified import UnifiedConfig
from embank.pipelines.train.penalty import RowPenalty
from embank.tables import ConfigError, RowOptimizer, TableCollection, TableSpec, build_method
from embank.tables.collections.paths import choose_paths
from embank.tables.collections.stages import settle

NUM_IDS, NUM_ROWS, BATCH, L2 = 40, 96, 32, 0.3


def bags(*, longest: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of bags of 0 to `longest` ids (or of 1 each), duplicates within a bag included, and the bags' lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (NUM_ROWS,), generator=generator) if longest > 1 else torch.ones(NUM_ROWS)
    lengths = lengths.int()
    ids = torch.randint(1, NUM_IDS, (int(lengths.sum()),), generator=generator)
    starts = lengths.cumsum(0) - lengths
    for row in (lengths >= 3).nonzero()[:10, 0]:
        ids[starts[row] + 1] = ids[starts[row]]
    return ids, lengths


def batches(ids: torch.Tensor, lengths: torch.Tensor) -> list[KeyedJaggedTensor]:
    parts = ids.split(lengths.tolist())
    return [
        KeyedJaggedTensor(
            keys=["a"], values=torch.cat(parts[start : start + BATCH]), lengths=lengths[start : start + BATCH]
        )
        for start in range(0, NUM_ROWS, BATCH)
    ]


def table(name: str, dim: int, counts: torch.Tensor, **changes: Any) -> TableSpec:
    settings = {"feature_names": ["a"], "counts": counts, "fused_pooling": False, **changes}
    return TableSpec(name=name, num_embeddings=NUM_IDS, embedding_dim=dim, **settings)


def penalty_of_an_epoch(tables: TableCollection, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    penalty = RowPenalty(tables, l2=L2, num_rows=NUM_ROWS, batch_size=BATCH)
    total = torch.zeros(())
    for kjt in batches(ids, lengths):
        penalised = penalty.address(kjt)
        looked_up, rows = tables.look_up(penalised.addressed)
        total = total + penalty(looked_up.values(), rows, penalised)
    return total


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("longest", [1, 5])
def test_one_epoch_of_lazy_penalties_is_the_dense_penalty(longest: int, pooling: str) -> None:
    """Summed over all batches of an epoch, with rows unchanged: steps times l2 / 2 * ||W||**2 of the seen ids."""
    ids, lengths = bags(longest=longest)
    counts = torch.bincount(ids, minlength=NUM_IDS)
    specs = [table("t", 6, counts, pooling=pooling), table("u", 1, counts, pooling=pooling)]
    tables = TableCollection(specs, backend="torch", optimizer=RowOptimizer(name="sgd", lr=1.0))
    before = tables.weights()["t"].clone()
    total = penalty_of_an_epoch(tables, ids, lengths)
    seen = counts > 0
    steps = NUM_ROWS / BATCH
    dense = steps * L2 / 2 * sum(w[seen].square().sum() for w in tables.weights().values())
    torch.testing.assert_close(total, dense)
    total.backward()  # moves rows by their gradients, one lookup after the other
    torch.testing.assert_close((before - tables.weights()["t"])[seen], steps * L2 * before[seen], rtol=1e-4, atol=1e-6)


METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "hash": {"budget": 0.5},
    "compositional": {"budget": 0.5},
    "memcom": {"budget": 0.5},
    "tt_rec": {"budget": 0.8},
    "mgqe": {"budget": 0.5},
    "low_precision": {},
    "dhe": {"budget": 0.9},
    "unified": {"options": UnifiedConfig(rows=20)},
}


def test_the_methods_here_are_of_every_kind() -> None:
    methods = [
        build_method(
            TableSpec(name=name, num_embeddings=50, embedding_dim=4, feature_names=["a"], method=name, **METHODS[name])
        )
        for name in METHODS
    ]
    assert set(choose_paths(methods).values()) == {"pooled", "per id", "distinct"}


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_method_pays_for_each_id(method: str, pooling: str, backend: Any) -> None:
    """Linear ones and others, bags of 0 to 5 ids: the penalty is that of the logical table, an id of a shared row by
    id."""
    ids, lengths = bags(longest=5)
    counts = torch.bincount(ids, minlength=NUM_IDS)
    tables = TableCollection(
        [table("t", 8, counts, method=method, pooling=pooling, **METHODS[method])], backend=backend
    )
    settle(tables)
    tables.eval()  # no noise, no statistics of a batch
    singles = KeyedJaggedTensor(
        keys=["a"], values=torch.arange(NUM_IDS), lengths=torch.ones(NUM_IDS, dtype=torch.int32)
    )
    logical = tables(singles).values().detach()
    total = penalty_of_an_epoch(tables, ids, lengths)
    dense = NUM_ROWS / BATCH * L2 / 2 * logical[counts > 0].square().sum()
    torch.testing.assert_close(total.detach(), dense)


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_rows_move_by_the_gradient_of_loss_and_penalty_together(pooling: str, backend: Any) -> None:
    """One SGD step on a batch of bags, against plain autograd over the dense table."""
    ids, lengths = bags(longest=5)
    counts = torch.bincount(ids, minlength=NUM_IDS)
    optimizer = RowOptimizer(name="sgd", lr=0.5)
    tables = TableCollection([table("t", 4, counts, pooling=pooling)], backend=backend, optimizer=optimizer)
    dense = tables.weights()["t"].clone().requires_grad_()
    penalty = RowPenalty(tables, l2=L2, num_rows=NUM_ROWS, batch_size=BATCH)
    kjt = batches(ids, lengths)[0]
    target = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(1))

    penalised = penalty.address(kjt)
    looked_up, rows = tables.look_up(penalised.addressed)
    loss = (looked_up.values() - target).square().sum() + penalty(looked_up.values(), rows, penalised)
    loss.backward()
    tables.update_rows()

    owners = torch.repeat_interleave(torch.arange(BATCH), kjt.lengths())
    pooled = torch.zeros(BATCH, 4).index_add(0, owners, dense[kjt.values()])
    if pooling == "mean":
        pooled = pooled / kjt.lengths().clamp(min=1)[:, None]
    expected = (BATCH * counts / NUM_ROWS)[kjt.values()]
    own = (dense[kjt.values()].square().sum(1) / expected).sum() * L2 / 2
    expected_loss = (pooled - target).square().sum() + own
    torch.testing.assert_close(loss.detach(), expected_loss.detach())
    (gradient,) = torch.autograd.grad(expected_loss, dense)
    torch.testing.assert_close(tables.weights()["t"], (dense - 0.5 * gradient).detach())


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_pooling_late_changes_no_result(pooling: str) -> None:
    """Also where a table shares its rows with one that is pooled in the kernel by itself."""
    ids, lengths = bags(longest=5)
    kjt = batches(ids, lengths)[0]
    both = KeyedJaggedTensor(
        keys=["a", "b"], values=torch.cat([kjt.values(), kjt.values()]), lengths=torch.cat([kjt.lengths()] * 2)
    )
    counts = torch.bincount(ids, minlength=NUM_IDS)
    for method, options in (("full", None), ("unified", UnifiedConfig(rows=20))):
        outputs = []
        for late in (False, True):
            same = {"method": method, "options": options, "pooling": pooling}
            specs = [
                table("t", 4, counts, fused_pooling=not late, **same),
                table("u", 4, counts, feature_names=["b"], fused_pooling=True, **same),
            ]
            tables = TableCollection(specs)
            assert bool(tables.keys_per_id) == late
            for _ in range(3):
                values = tables(both).values()
                values.square().sum().backward()
                tables.update_rows()
            outputs.append(values)
        torch.testing.assert_close(*outputs)


def test_bags_that_the_kernel_pools_are_refused() -> None:
    spec = table("t", 4, torch.ones(NUM_IDS, dtype=torch.int64), fused_pooling=True)
    penalty = RowPenalty(TableCollection([spec]), l2=1.0, num_rows=8, batch_size=4)
    kjt = KeyedJaggedTensor(keys=["a"], values=torch.tensor([0, 1]), lengths=torch.tensor([2], dtype=torch.int32))
    with pytest.raises(ConfigError, match="feature 'a' comes in bags, .* table 't' pools them .* fused_pooling=False"):
        penalty.address(kjt)
