"""Where lookups go, and what that does to rows.

Legend: R rows of a physical table.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embank.pipelines.data.loading.batch import Batch
from embank.tables import Method, TableCollection
from embank.tables.rows.physical import ROWS_PER_CHUNK, PhysicalTable
from embank.tables.rows.shards import TableShard

HOTTEST = (0.001, 0.01, 0.1)
"""Shares of the rows whose share of the lookups is reported."""

NUM_DECILES = 10


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Lookups of a physical table in one pass over some rows of data.

    Args:
        table: its name.
        lookups: int64 [R], how often each row was read.
        num_features: int64 [R], how many features read it at least once.
        readers: how many features read the table.
    """

    table: str
    lookups: Tensor
    num_features: Tensor
    readers: int

    @property
    def total(self) -> int:
        """All lookups."""
        return int(self.lookups.sum())

    @property
    def unused(self) -> float:
        """Share of the rows that nothing read."""
        return float((self.lookups == 0).double().mean())

    @property
    def features_per_row(self) -> float:
        """Mean number of features that read a row, over the rows that something read; 0 if nothing did."""
        used = self.num_features[self.lookups > 0]
        return float(used.double().mean()) if used.numel() else 0.0

    @property
    def gini(self) -> float:
        """Gini coefficient of the lookups: 0 for even traffic, near 1 for a single hot row."""
        lookups = self.lookups.sort().values.double()
        num, total = lookups.numel(), float(lookups.sum())
        if total == 0:
            return 0.0
        ranks = torch.arange(1, num + 1, dtype=torch.float64)
        return float(2 * (ranks * lookups).sum() / (num * total)) - (num + 1) / num

    def hottest(self, share: float) -> float:
        """Share of the lookups that the most-read rows get: a share of all rows, at least one."""
        num = max(1, round(share * self.lookups.numel()))
        return float(self.lookups.topk(num).values.sum()) / max(1, self.total)


@dataclass(frozen=True, kw_only=True)
class NormTrend:
    """Mean squared norms of a table's rows, by decile of traffic, the most-read rows first.

    Coleman et al. (NeurIPS 2023): under binary cross entropy of single examples, the part of a row that no reader sees
    grows with every collision and nothing restores it, so norms grow with the number of values per row. Under a loss
    over many candidates (softmax) they need not, and norms say nothing there.

    Args:
        table: the physical table's name.
        lookups: mean lookups of a row in each decile.
        initial, final: mean squared norm before and after training.
    """

    table: str
    lookups: Sequence[float]
    initial: Sequence[float]
    final: Sequence[float]


def count_traffic(tables: TableCollection, batches: Iterable[Batch]) -> dict[str, Traffic]:
    """Lookups of every physical table over some batches whose ids are not addressed yet.

    Args:
        tables: not sharded.
        batches: with KeyedJaggedTensors.

    Raises:
        IdRangeError: an id outside its table.
    """
    methods = list(tables.built_methods())
    physical = {table.name: table for method in methods for table in method.physical}
    lookups = {name: torch.zeros(table.num_embeddings, dtype=torch.int64) for name, table in physical.items()}
    features = {
        name: sorted({f for m in methods if _reads(m, name) for f in m.spec.feature_names}) for name in physical
    }
    touched = {
        (name, feature): torch.zeros(physical[name].num_embeddings, dtype=torch.bool)
        for name in physical
        for feature in features[name]
    }
    for batch in batches:
        for method in methods:
            for feature in method.spec.feature_names:
                ids_N = batch.sparse[feature].values()
                for rows_N, table in zip(method.address(ids_N), method.physical, strict=True):
                    lookups[table.name].index_add_(0, rows_N, torch.ones_like(rows_N))
                    touched[table.name, feature][rows_N] = True
    return {
        name: Traffic(
            table=name,
            lookups=lookups[name],
            num_features=torch.stack([touched[name, feature] for feature in features[name]]).sum(0),
            readers=len(features[name]),
        )
        for name in physical
    }


def _reads(method: Method, table: str) -> bool:
    return any(physical.name == table for physical in method.physical)


@torch.no_grad()
def norm_trends(tables: TableCollection, traffic: Mapping[str, Traffic]) -> list[NormTrend]:
    """Mean squared norms before and after training, for the tables of methods of one stage: rows of later stages start
    from others."""
    seen: dict[str, PhysicalTable] = {
        table.name: table
        for method in tables.built_methods()
        if len(method.traits.schedule.stages) == 1
        for table in method.physical
        if table.num_embeddings >= NUM_DECILES
    }
    weights = tables.weights()
    trends = []
    for name, table in seen.items():
        initial = _squared_norms(TableShard.whole(table).initial_chunks(seed=tables.seed))
        final = _squared_norms(torch.split(weights[name], ROWS_PER_CHUNK))
        order = traffic[name].lookups.argsort(descending=True, stable=True)
        deciles = torch.tensor_split(order, NUM_DECILES)
        counts = traffic[name].lookups.double()
        means = [[float(values[rows].mean()) for rows in deciles] for values in (counts, initial, final)]
        trends.append(NormTrend(table=name, lookups=means[0], initial=means[1], final=means[2]))
    return trends


def _squared_norms(chunks: Iterator[Tensor] | Sequence[Tensor]) -> Tensor:
    """Squared norm of each row, float64 [R]."""
    return torch.cat([chunk.double().square().sum(1) for chunk in chunks])
