"""Logistic regression: a weight per id and per numeric input."""

from typing import ClassVar

from torch import Tensor

from embank.ctr_models.layers.fields import FirstOrder
from embank.ctr_models.network import Inputs, Network
from embank.tables import option_class


@option_class
class LRConfig:
    """Logistic regression has no hyper-parameters."""


class LR(Network):
    """Logit = bias + sum of the ids' weights + sum of w_i * x_i.

    Source: Richardson et al. 2007 (Predicting Clicks), section 5, with weights per id. FuxiCTR gives numeric inputs a
    weight in the same way.
    """

    Config = LRConfig
    first_order: ClassVar[bool] = True
    embeddings: ClassVar[bool] = False

    def __init__(self, config: LRConfig, *, inputs: Inputs) -> None:
        super().__init__(config, inputs=inputs)
        self.linear = FirstOrder(inputs)

    def forward(self, dense_BI: Tensor, embeddings_BE: Tensor, first_order_BF: Tensor) -> Tensor:
        """Logits [B]; the embeddings are not read."""
        logits_B: Tensor = self.linear(dense_BI, first_order_BF)
        return logits_B
