"""Tables and network of a bundle as one module over plain tensors, for exporters: ids and numbers to scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from embank.ctr_models.layers.mlp import frozen
from embank.pipelines.convert.cases import DENSE, IDS, LENGTHS, Original, known
from embank.tables.serving.plain import PlainCollection


class Whole(nn.Module):
    """What a bundle computes.

    Ids that a table has not count as unknown, id 0: nothing is read outside of a table.

    Args:
        original: the bundle.

    Attributes:
        input_names: of `forward`, in order: `dense` where the model reads numbers, `ids.FEATURE` of each feature,
            `lengths.FEATURE` of those whose rows hold bags.
        output_name: "score", or "values" of a bundle without a network.
    """

    def __init__(self, original: Original) -> None:
        super().__init__()
        single = tuple(feature for feature in original.features if feature not in original.bags)
        self.tables = PlainCollection(original.collection, single=single)
        self.network = None if original.network is None else frozen(original.network)
        self.last, self.bags, self.num_dense = dict(original.last), list(original.bags), original.num_dense
        self.input_names = [
            *([DENSE] if self.num_dense else []),
            *(IDS + feature for feature in self.tables.features),
            *(LENGTHS + feature for feature in self.bags),
        ]
        self.output_name = "values" if self.network is None else "score"
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Scores fp32 [B], or values [B, sum D].

        Args:
            inputs: see `input_names`; as in a `Case`.
        """
        given = dict(zip(self.input_names, inputs, strict=True))
        ids = {name: known(given[IDS + name], last=self.last[name]) for name in self.tables.features}
        lengths = {name: given[LENGTHS + name] for name in self.bags}
        values_BE: Tensor = self.tables(ids, lengths)
        if self.network is None:
            return values_BE
        dense_BI = given[DENSE] if self.num_dense else values_BE.new_empty(values_BE.shape[0], 0)
        return self.network.score(dense_BI, values_BE).sigmoid()

    def columns(self) -> dict[str, Any]:
        """What a manifest says of the columns of values: nothing of scores."""
        return {} if self.network is not None else {"keys": self.tables.keys, "dims": self.tables.dims}

    def example(self, *, batch_size: int = 3) -> tuple[Tensor, ...]:
        """Inputs of the right shapes."""
        ids, lengths = self.tables.example(batch_size=batch_size)
        made: dict[str, Tensor] = {IDS + name: ids_N for name, ids_N in ids.items()}
        made |= {LENGTHS + name: lengths_B for name, lengths_B in lengths.items()}
        made[DENSE] = torch.zeros(batch_size, self.num_dense)
        return tuple(made[name] for name in self.input_names)

    def dynamic_shapes(self) -> tuple[tuple[Mapping[int, Any], ...]]:
        """What may differ from batch to batch: its size, and the number of ids of features with bags."""
        batch = Dim("batch", min=1)
        sizes = {IDS + feature: Dim(f"ids_{i}") for i, feature in enumerate(self.bags)}
        return (tuple({0: sizes.get(name, batch)} for name in self.input_names),)

    @torch.no_grad()
    def program(self) -> ExportedProgram:
        """What `torch.export` makes of it."""
        return torch.export.export(self, self.example(), dynamic_shapes=self.dynamic_shapes())
