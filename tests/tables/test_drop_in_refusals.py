"""What TorchRec's collections of ours refuse, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec import PoolingType
from torchrec.modules.embedding_configs import DataType

from embank.tables import (
    ConfigError,
    RowTier,
    TableCollection,
)
from embank.tables.torchrec import (
    EmbeddingBagCollection,
    FusedEmbeddingBagCollection,
    fuse_embedding_optimizer,
)
from tests.tables.drop_in import configs


@dataclass
class Refused:
    make: Callable[[], Any]
    message: str


REFUSED = [
    Refused(lambda: EmbeddingBagCollection(tables=[]), "there are none"),
    Refused(lambda: EmbeddingBagCollection(tables={"a": 1}), "made of a list of EmbeddingBagConfigs"),
    Refused(lambda: EmbeddingBagCollection(tables=configs(), budget=0.1), "budget is 0.1, but table 't1' has method"),
    Refused(lambda: TableCollection.from_configs(configs(), budget={"t2": 0.1}), "but table 't2' has method 'full'"),
    Refused(lambda: EmbeddingBagCollection(tables=configs() * 2), "two tables are named 't1'"),
    Refused(lambda: EmbeddingBagCollection(tables=configs(), method={"t3": "hash"}), "method names table 't3'"),
    Refused(lambda: EmbeddingBagCollection(tables=configs(pooling=PoolingType.NONE)), "has pooling NONE"),
    Refused(
        lambda: EmbeddingBagCollection(tables=configs(pooling=PoolingType.MEAN), is_weighted=True),
        "pools weighted ids to their mean",
    ),
    Refused(lambda: EmbeddingBagCollection(tables=configs(data_type=DataType.INT8)), "has data_type INT8"),
    Refused(
        lambda: EmbeddingBagCollection(tables=[configs()[0], configs(data_type=DataType.FP16)[1]]),
        "have data_types FP16, FP32",
    ),
    Refused(
        lambda: TableCollection.from_configs(configs(init_fn=torch.nn.init.ones_), method="hash", budget=0.5),
        "has an init_fn, .* method 'hash' has no such rows",
    ),
    Refused(
        lambda: EmbeddingBagCollection(tables=configs(), method="low_precision", budget=0.5),
        "puts rows on a grid after each update",
    ),
    Refused(
        lambda: EmbeddingBagCollection(tables=configs(), tier=RowTier(name="host")),
        "rows on the tier 'host' can't be parameters",
    ),
    Refused(
        lambda: fuse_embedding_optimizer(EmbeddingBagCollection(tables=configs()), torch.optim.SGD, {"momentum": 0.9}),
        "SGD with momentum 0.9",
    ),
    Refused(
        lambda: fuse_embedding_optimizer(EmbeddingBagCollection(tables=configs()), torch.optim.RMSprop, {"lr": 1}),
        "rows have no optimizer RMSprop",
    ),
    Refused(lambda: fuse_embedding_optimizer(nn.Linear(1, 1), torch.optim.SGD, {"lr": 1}), "has no EmbeddingBag"),
    Refused(
        lambda: apply_in_backward(
            torch.optim.SGD,
            FusedEmbeddingBagCollection(configs(), torch.optim.SGD, {"lr": 1.0}).parameters(),
            {"lr": 1.0},
        ),
        "have an optimizer for the backward pass already",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(case: Refused) -> None:
    with pytest.raises(ConfigError, match=case.message) as caught:
        case.make()
    assert isinstance(caught.value, ValueError)
