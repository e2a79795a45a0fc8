"""`Network.score` and its compiled form against the network itself: values, gradients, ten optimizer steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from embank.ctr_models import Inputs, build_network
from embank.pipelines.runs.score import compiled_score

INPUTS = Inputs(names=("a", "b", "c"), dims=(4, 4, 4), num_dense=2)
MODELS: dict[str, dict[str, Any]] = {  # embeddings alone, both, first-order weights alone
    "dlrm": {"bottom": [8], "top": [8]},
    "deepfm": {"hidden_units": [8], "dropout": 0.0},
    "lr": {},
}


def _steps(model: str, way: Callable[..., Callable[[Tensor, Tensor], Tensor]]) -> list[Tensor]:
    torch.manual_seed(0)
    network = build_network(model, inputs=INPUTS, **MODELS[model])
    score, found = way(network), list[Tensor]()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    width = network.num_embedding_columns + network.num_first_order_columns
    for step in range(10):
        draw = torch.Generator().manual_seed(step)
        values = torch.randn(5, width, generator=draw).requires_grad_()
        logits = score(torch.randn(5, 2, generator=draw), values)
        F.binary_cross_entropy_with_logits(logits, (torch.rand(5, generator=draw) < 0.5).float()).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert values.grad is not None
        assert values.grad.is_contiguous() or way is _slow
        found += [logits.detach().clone(), values.grad]
    return [*found, *(p.detach() for p in network.parameters())]


def _slow(network: Any) -> Callable[[Tensor, Tensor], Tensor]:
    width = network.inputs.width if network.embeddings else 0
    return lambda dense, values: network(dense, values[:, :width], values[:, width:])


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(lambda network: network.score, id="eager"),
        pytest.param(compiled_score, id="compiled", marks=pytest.mark.slow),
    ],
)
def test_ten_steps_are_those_of_the_network(model: str, way: Any) -> None:
    for ours, theirs in zip(_steps(model, way), _steps(model, _slow), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
