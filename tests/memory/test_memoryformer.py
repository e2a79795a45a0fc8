"""The MemoryFormer layer against the definition of its scores and addresses."""

import itertools

import numpy as np
import pytest
import torch

from embank.tables.errors import ConfigError, DataError
from embank.tables.memory import MemoryFormerLinear

SAMPLE = torch.tensor([[0.7, -0.1, 0.4, -0.6]], dtype=torch.double)


def made(bits: int = 4, *, scoring: str = "paper", in_features: int = 12) -> MemoryFormerLinear:
    torch.manual_seed(0)
    return MemoryFormerLinear(in_features, 5, bits=bits, scoring=scoring, bias=True).double()


def test_golden_sample() -> None:
    paper, released = (made(4, scoring=s, in_features=4) for s in ("paper", "released"))
    assert paper.address(SAMPLE).item() == 5
    assert released.address(SAMPLE).item() == 10
    assert paper._scores(SAMPLE.view(1, 1, 4)).item() == pytest.approx(0.233882, abs=1e-6)
    assert released._scores(SAMPLE.view(1, 1, 4)).item() == pytest.approx(0.421, abs=1e-3)


def test_a_zero_counts_as_positive() -> None:
    assert made(4, in_features=4).address(torch.zeros(1, 4)).item() == 15


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_the_score_is_the_softmax_probability_of_the_pattern(bits: int) -> None:
    layer = made(bits, in_features=2 * bits)
    x = torch.randn(3, 2 * bits, dtype=torch.double)
    patterns = np.array(list(itertools.product([-1, 1], repeat=bits)))
    for chunk, score in zip(x.view(-1, bits).numpy(), layer._scores(x.view(3, 2, bits)).view(-1), strict=True):
        logits = np.exp(patterns @ chunk)
        assert score.item() == pytest.approx(logits.max() / logits.sum(), rel=1e-12)


@pytest.mark.parametrize("scoring", ["paper", "released"])
def test_forward_is_the_definition(scoring: str) -> None:
    layer = made(4, scoring=scoring)
    x = torch.randn(2, 3, 12, dtype=torch.double)
    tables = layer.rows_RD.detach().numpy().reshape(3, 16, 5)
    wanted = np.tile(layer.bias.detach().numpy(), (2, 3, 1))
    for b, t, k in itertools.product(range(2), range(3), range(3)):
        z = x[b, t, 4 * k : 4 * k + 4].numpy()
        order = range(4) if scoring == "paper" else reversed(range(4))
        row = sum(int(z[i] >= 0) << place for place, i in enumerate(order))
        score = np.prod(1 / (1 + np.exp(-2 * np.abs(z))))
        wanted[b, t] += tables[k, row] * score * (1 if scoring == "paper" else np.abs(z).sum())
    np.testing.assert_allclose(layer(x).detach().numpy(), wanted, rtol=1e-12)


def test_scaling_keeps_the_address_and_raises_the_score() -> None:
    layer = made()
    x = torch.randn(4, 12, dtype=torch.double)
    assert torch.equal(layer.address(x), layer.address(3 * x))
    assert (layer._scores(3 * x.view(4, 3, 4)) > layer._scores(x.view(4, 3, 4))).all()


def test_rows_get_their_score_times_the_gradient() -> None:
    layer = made()
    x = torch.randn(1, 12, dtype=torch.double)
    grad = torch.randn(1, 5, dtype=torch.double)
    layer(x).backward(grad)
    wanted = torch.zeros(3, 16, 5, dtype=torch.double)
    for k, (row, score) in enumerate(zip(layer.address(x)[0], layer._scores(x.view(1, 3, 4))[0], strict=True)):
        wanted[k, row] = score * grad[0]
    torch.testing.assert_close(layer.rows_RD.grad, wanted.view(48, 5))


@pytest.mark.parametrize("scoring", ["paper", "released"])
def test_the_inputs_gradient_within_an_orthant(scoring: str) -> None:
    layer = made(scoring=scoring)
    x = torch.randn(2, 12, dtype=torch.double)
    x = (x + 0.1 * x.sign()).requires_grad_()  # away from the signs' change
    assert torch.autograd.gradcheck(layer, (x,))


def test_normed_inputs_use_all_rows_evenly() -> None:
    layer = MemoryFormerLinear(32, 4, bits=4)
    x = torch.nn.functional.layer_norm(torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)), (32,))
    for chunk in layer.address(x).unbind(1):
        counts = torch.bincount(chunk, minlength=16).double()
        assert ((counts - 250) ** 2 / 250).sum() < 60  # chi-square of 15 degrees of freedom: 37.7 at .001


def test_positions_do_not_meet() -> None:
    layer = made()
    x = torch.randn(1, 6, 12, dtype=torch.double)
    other = x.clone()
    other[0, 3] = -other[0, 3]
    changed = (layer(x) != layer(other)).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [3]


def test_empty_batches() -> None:
    assert made()(torch.zeros(0, 3, 12, dtype=torch.double)).shape == (0, 3, 5)


def test_refuses_what_can_not_be() -> None:
    with pytest.raises(ConfigError, match="of 12 inputs can't hash 5 bits a chunk; give a divisor of the inputs"):
        MemoryFormerLinear(12, 5, bits=5)
    with pytest.raises(ConfigError, match="can't hash 24 bits"):
        MemoryFormerLinear(24, 5, bits=24)
    with pytest.raises(ConfigError, match="there is no scoring 'lsb'; use paper or released"):
        MemoryFormerLinear(12, 5, bits=4, scoring="lsb")
    with pytest.raises(DataError, match="the input has width 11; this MemoryFormer layer takes 12 features"):
        made()(torch.zeros(2, 11))
