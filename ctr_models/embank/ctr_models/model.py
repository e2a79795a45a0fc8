"""Tables and a network as one module."""

from typing import Any

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

    def forward(self, dense_BI: Tensor, sparse: Any) -> Tensor:
        """Logits [B] of numeric inputs and sparse features (a KeyedJaggedTensor, or what the collection's `address`
        made of it).

        Raises:
            ConfigError: the tables return another number of columns than the network reads.
        """
        values: Tensor = self.tables(sparse).values()
        sizes = [self.network.num_embedding_columns, self.network.num_first_order_columns]
        if values.shape[1] != sum(sizes):
            raise ConfigError(
                f"the tables return {values.shape[1]} columns, but {type(self.network).__name__} reads {sizes[0]} of "
                "embeddings and "
                f"{sizes[1]} of first-order weights. Build the tables from the network's inputs."
            )
        return self.network.score(dense_BI, values)
