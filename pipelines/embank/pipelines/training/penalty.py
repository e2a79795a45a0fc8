"""L2 on embedding rows, without touching rows that a batch did not look up.

The penalty is l2 / 2 * ||W||**2 over every logical table, added to the loss of each step, as libraries with dense tables
have it. Its gradient is spread over the lookups: an id that is expected n_i times in a batch (batch size * count / rows)
contributes l2 / (2 n_i) * ||row||**2 at each of them. Summed over a batch this is the dense penalty in expectation, and rare
ids get as much of it as frequent ones; a penalty per lookup would leave them alone, and they are what overfits.

For a bag of several ids the penalty is on the pooled vector, with the mean of the ids' weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec import JaggedTensor, KeyedJaggedTensor

from embank.tables import Addressed, ConfigError, TableCollection, TableSpec


@dataclass
class Penalised:
    """An addressed batch with the penalty's weights.

    Args:
        addressed: what `TableCollection.address` made.
        weights_BK: float [B, K], 1 / n_i per output key of the collection (averaged over a bag).
    """

    addressed: Addressed
    weights_BK: Tensor


class RowPenalty:
    """Makes the weights on the loader's thread and the penalty in the step.

    Args:
        tables: the collection; its specs carry the counts of their ids.
        l2: the penalty's factor.
        num_rows: rows of the training split.
        batch_size: rows per step.

    Raises:
        ConfigError: a table without counts.
    """

    def __init__(self, tables: TableCollection, *, l2: float, num_rows: int, batch_size: int) -> None:
        self.tables, self.l2 = tables, l2
        steps = num_rows / batch_size
        self.features = [feature for spec in tables.specs for feature in spec.feature_names]
        self.weights = {feature: _weights(spec, steps) for spec in tables.specs for feature in spec.feature_names}
        self.columns = torch.repeat_interleave(torch.arange(len(tables.dims)), torch.tensor(tables.dims))

    def address(self, features: KeyedJaggedTensor) -> Penalised:
        """Addresses a batch, announces it to the tables and weighs its ids; for the loader's thread."""
        addressed = self.tables.announce(features)
        return Penalised(addressed=addressed, weights_BK=self._weigh(features))

    def _weigh(self, features: KeyedJaggedTensor) -> Tensor:
        size = features.stride()
        by_feature = {name: _bag_means(features[name], weights_N, size) for name, weights_N in self.weights.items()}
        return torch.stack([by_feature[feature] for feature in self.features], dim=1)

    def __call__(self, values_BE: Tensor, weights_BK: Tensor) -> Tensor:
        """The penalty of a batch, from the collection's output."""
        weights_BE = weights_BK.index_select(1, self.columns).to(values_BE.device)
        squares: Tensor = (values_BE.square() * weights_BE).sum()
        return squares * (self.l2 / 2)


def _weights(spec: TableSpec, steps: float) -> Tensor:
    """1 / (expected occurrences in a batch) per id; an id never seen in training counts as seen once."""
    if spec.counts is None:
        raise ConfigError(
            f"'train.embedding_l2' spreads its penalty by counts, but table '{spec.name}' has none: its column has no vocabulary. Set it to 0, "
            "or prepare the column with a vocabulary"
        )
    return (steps / spec.counts.clamp(min=1)).float()


def _bag_means(bags: JaggedTensor, weights_N: Tensor, size: int) -> Tensor:
    values = weights_N[bags.values()]
    lengths = bags.lengths()
    if values.numel() == size and bool((lengths == 1).all()):
        return values
    owners = torch.repeat_interleave(torch.arange(size), lengths)
    means: Tensor = torch.zeros(size).index_add(0, owners, values) / lengths.clamp(min=1)
    return means
