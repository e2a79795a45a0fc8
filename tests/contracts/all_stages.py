"""A method from its initial values to its packed form, on the host or beside it: all that it computes on the way."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from embank.tables import RowOptimizer, RowTier, SequenceCollection, TableCollection
from embank.tables.collections.stages import AnyTables, advance, after_step, search_parameters, settle
from tests.contracts.specs import NUM, spec
from tests.tables.batches import random_kjt


def bags(tables: TableCollection, seed: int) -> Tensor:
    """Pooled rows of random bags."""
    return tables(tables.address_ahead(random_kjt({"a": NUM}, batch_size=16, seed=seed))).values()


def sequences(tables: SequenceCollection, seed: int) -> Tensor:
    """The rows of random ids [B, T, H]."""
    ids = torch.randint(0, NUM, (4, 6, 1), generator=torch.Generator().manual_seed(seed))
    addressed = tables.address({"a": ids})
    tables.prefetch(addressed)
    rows: Tensor = tables(addressed)["a"]
    return rows


def train(tables: AnyTables, look_up: Callable[[AnyTables, int], Tensor], *, seed: int, steps: int) -> list[Tensor]:
    """Steps on random ids towards a constant; what came out of them, on the host."""
    torch.manual_seed(seed)
    parameters: list[nn.Parameter] = tables.dense_parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.01) if parameters else None
    seen = []
    for step in range(steps):
        values = look_up(tables, seed + step)
        assert values.device.type == tables.device.type
        loss = (values - 1).square().sum(-1).mean()
        extra = tables.extra_loss()
        (loss if extra is None else loss + extra).backward()
        tables.update_rows()
        if optimizer:
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        after_step(tables, step=step + 1, num_steps=steps)
        seen.append(values.detach().cpu())
    return seen


def through_all_stages(method: str, where: RowTier, *, steps: int = 5) -> list[Tensor]:
    """All that a method computes on its way from initial values to the packed form."""
    rows = RowOptimizer(name="rowwise_adagrad", lr=0.05)
    tables = TableCollection([spec(method)], backend="torch", optimizer=rows, tier=where)
    seen = train(tables, bags, seed=1, steps=steps)
    while any(m.spec.stage + 1 < len(m.traits.schedule.stages) for m in tables.built_methods()):
        seen += [p.detach().clone().cpu() for p in search_parameters(tables)]
        tables = advance(tables)
        seen += train(tables, bags, seed=2, steps=steps)
    settle(tables)
    tables.eval()
    with torch.no_grad():
        seen.append(tables(random_kjt({"a": NUM}, batch_size=64, seed=9)).values().cpu())
    seen += [rows.cpu() for rows in tables.weights().values()]
    packed = tables.packs()[0]
    assert not any(type(t) is not Tensor for t in packed.buffers()), "packed in host memory"
    seen.append(packed.lookup(torch.arange(NUM)))
    return [*seen, torch.tensor(tables.nbytes("serving"))]


def in_a_sequence(method: str, where: RowTier, *, steps: int = 5) -> list[Tensor]:
    """What a method computes in its first stage where ids keep their rows."""
    rows = RowOptimizer(name="rowwise_adagrad", lr=0.05)
    tables = SequenceCollection([spec(method)], backend="torch", optimizer=rows, tier=where)
    seen = train(tables, sequences, seed=1, steps=steps)
    return [*seen, *(rows.cpu() for rows in tables.weights().values())]
