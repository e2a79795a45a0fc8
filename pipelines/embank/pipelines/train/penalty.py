"""L2 on embedding rows, without touching rows that a batch did not look up.

The penalty is l2 / 2 * ||W||**2 over every logical table, added to the loss of each step, as libraries with dense
tables have it. Its gradient is spread over the lookups: an id that is expected n_i times in a batch (batch size * count
/ rows) contributes l2 / (2 n_i) * ||row||**2 at each of them, whether it comes alone or in a bag. Summed over a batch
this is the dense penalty in expectation, and rare ids get as much of it as frequent ones; a penalty per lookup would
leave them alone, and they are what overfits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchrec import JaggedTensor, KeyedJaggedTensor

from embank.tables import Addressed, ConfigError, TableCollection, TableSpec


@dataclass
class Penalised:
    """An addressed batch with the penalty's weights.

    Args:
        addressed: what `TableCollection.address` made.
        weights_BK: float [B, K], 1 / n_i per output key of the collection; 0 for those with bags.
        bags: by output key with bags of other sizes than 1, 1 / n_i of each id, float [N].
    """

    addressed: Addressed
    weights_BK: Tensor
    bags: Mapping[str, Tensor] = field(default_factory=dict)


class RowPenalty:
    """Makes the weights on the loader's thread and the penalty in the step.

    Features that come in bags must not be pooled by the lookup kernel, which is what `TableSpec.fused_pooling=False`
    says.

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
        uses = [(spec, feature) for spec in tables.specs for feature in spec.feature_names]
        self.columns = torch.repeat_interleave(torch.arange(len(tables.dims)), torch.tensor(tables.dims))
        # A feature's embeddings and its first-order weights have the same counts: weighed once.
        self.weights = {(id(spec.counts), feature): _weights(spec, steps) for spec, feature in uses}
        self.uses = [
            (key, spec, (id(spec.counts), feature)) for key, (spec, feature) in zip(tables.keys, uses, strict=True)
        ]

    def address(self, features: KeyedJaggedTensor) -> Penalised:
        """Addresses a batch, prefetches its rows and weighs its ids; for the loader's thread.

        Raises:
            ConfigError: a feature has a bag of several ids, which its table would pool before they can be penalised.
        """
        addressed = self.tables.address_ahead(features)
        size = features.stride()
        weighed = {use: _weigh(features[use[1]], weights_N, size) for use, weights_N in self.weights.items()}
        zeros_B = torch.zeros(size)
        columns, bags = [], {}
        for key, spec, use in self.uses:
            weights_N, is_one_each = weighed[use]
            columns.append(weights_N if is_one_each else zeros_B)
            if not is_one_each:
                self._refuse_fused(key, spec)
                bags[key] = weights_N
        return Penalised(addressed=addressed, weights_BK=torch.stack(columns, dim=1), bags=bags)

    def _refuse_fused(self, key: str, spec: TableSpec) -> None:
        if key not in self.tables.keys_per_id:
            raise ConfigError(
                f"feature '{key}' comes in bags, whose ids the embedding penalty weighs one by one, but table "
                f"'{spec.name}' pools them "
                "as it looks them up; give its TableSpec fused_pooling=False"
            )

    def __call__(self, values_BE: Tensor, rows: Mapping[str, Tensor], penalised: Penalised) -> Tensor:
        """The penalty of a batch.

        Args:
            values_BE: the collection's output for it.
            rows: by output key the logical rows [N, D] before pooling, see `TableCollection.look_up`.
            penalised: what `address` made of it.
        """
        weights_BE = penalised.weights_BK.index_select(1, self.columns).to(values_BE.device)
        squares: Tensor = (values_BE.square() * weights_BE).sum()
        for key, weights_N in penalised.bags.items():
            squares = squares + rows[key].square().sum(dim=1) @ weights_N.to(values_BE.device)
        return squares * (self.l2 / 2)


def _weights(spec: TableSpec, steps: float) -> Tensor:
    """1 / (expected occurrences in a batch) per id; an id never seen in training counts as seen once."""
    if spec.counts is None:
        raise ConfigError(
            f"'train.embedding_l2' spreads its penalty by counts, but table '{spec.name}' has none: its column has no "
            "vocabulary. Set it to 0, "
            "or prepare the column with a vocabulary"
        )
    return (steps / spec.counts.clamp(min=1)).float()


def _weigh(bags: JaggedTensor, weights_N: Tensor, size: int) -> tuple[Tensor, bool]:
    """The weight of each id of a feature, and whether there is exactly one id per row."""
    values = weights_N[bags.values()]
    return values, values.numel() == size and bool((bags.lengths() == 1).all())
