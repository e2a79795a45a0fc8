"""The layers are one graph to torch.compile, with rows as inputs: lookups stay outside of it."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from embank.tables.memory import Engram, MemoryFormerLinear, StemFFN

pytestmark = pytest.mark.slow


def cases() -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    torch.manual_seed(0)
    hidden, rows = torch.randn(2, 7, 16, requires_grad=True), torch.randn(2, 7, 32, requires_grad=True)
    engram, starts = Engram(16, 32), torch.zeros(2, 7, dtype=torch.bool)
    with torch.no_grad():
        engram.conv_weight.normal_()
    starts[:, 3] = True
    return {
        "engram": (partial(engram, starts_BT=starts), (hidden, rows)),
        "stem": (StemFFN(16, 32), (hidden, rows)),
        "memoryformer": (MemoryFormerLinear(16, 8, bits=8), (hidden,)),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_one_graph_gives_what_the_layer_gives(name: str) -> None:
    layer, inputs = cases()[name]
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), layer(*inputs))
    wanted = torch.autograd.grad(layer(*inputs).square().sum(), inputs)
    for own, other in zip(torch.autograd.grad(compiled(*inputs).square().sum(), inputs), wanted, strict=True):
        assert torch.equal(own, other)
    with torch.no_grad():
        assert torch.equal(compiled(*inputs), layer(*inputs))
