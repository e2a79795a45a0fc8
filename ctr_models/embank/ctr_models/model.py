"""Tables and a network as one module."""

from typing import Any

import torch
from torch import Tensor, nn

from embank.ctr_models.network import Network
from embank.tables.errors import ConfigError


class CTRModel(nn.Module):
    """Look up, then score.

    Args:
        tables: a collection, called with the sparse features; returns a KeyedTensor whose values are [B, E + F]: the
            fields' embeddings (none for a model without embeddings), then one first-order weight per field (none for a
            model without them).
        network: the model over plain tensors.
    """

    def __init__(self, tables: nn.Module, network: Network) -> None:
        super().__init__()
        self.tables = tables
        self.network = network
        inputs = network.inputs
        self.num_embedding_columns = inputs.width if network.embeddings else 0
        self.num_first_order_columns = inputs.num_fields if network.first_order else 0

    def forward(self, dense_BI: Tensor, sparse: Any) -> Tensor:
        """Logits [B] of numeric inputs and sparse features (a KeyedJaggedTensor, or what the collection's `address`
        made of it).

        Raises:
            ConfigError: the tables return another number of columns than the network reads.
        """
        values: Tensor = self.tables(sparse).values()
        sizes = [self.num_embedding_columns, self.num_first_order_columns]
        if values.shape[1] != sum(sizes):
            raise ConfigError(
                f"the tables return {values.shape[1]} columns, but {type(self.network).__name__} reads {sizes[0]} of "
                "embeddings and "
                f"{sizes[1]} of first-order weights. Build the tables from the network's inputs."
            )
        # One split, not two slices: its backward is one concatenation.
        embeddings_BE, first_order_BF = torch.split(values, sizes, dim=1)
        logits_B: Tensor = self.network(dense_BI, embeddings_BE, first_order_BF)
        return logits_B
