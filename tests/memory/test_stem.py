"""The STEM layer against NumPy and against the plain feed-forward layer that it stands in for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from embank.tables.errors import ConfigError, DataError
from embank.tables.memory import StemFFN, stem_init_std


def test_forward_is_the_formula() -> None:
    torch.manual_seed(0)
    layer = StemFFN(6, 10).double()
    x, table = torch.randn(2, 3, 6).double(), torch.randn(7, 10).double()
    tokens = torch.randint(0, 7, (2, 3))
    gate, down = layer.gate.weight.detach().numpy(), layer.down.weight.detach().numpy()
    gated = x.numpy() @ gate.T
    wanted = (gated / (1 + np.exp(-gated)) * table.numpy()[tokens.numpy()]) @ down.T
    np.testing.assert_allclose(layer(x, table[tokens]).detach().numpy(), wanted, rtol=1e-12, atol=1e-13)
    single = layer.float()(x.float(), table[tokens].float()).detach().numpy()
    np.testing.assert_allclose(single, wanted, rtol=1e-5, atol=1e-6)


def test_rows_of_an_up_projection_give_its_layer_bit_for_bit() -> None:
    torch.manual_seed(1)
    layer, up = StemFFN(16, 48), torch.nn.Linear(16, 48, bias=False)
    x = torch.randn(4, 5, 16)
    plain = layer.down(F.silu(layer.gate(x)) * up(x))
    table = up(x).detach().view(20, 48)  # each id once
    assert torch.equal(layer(x, table[torch.arange(20).view(4, 5)]), plain)


def test_the_gates_gradient_is_that_of_a_frozen_up_projection() -> None:
    torch.manual_seed(2)
    layer, up = StemFFN(16, 48), torch.nn.Linear(16, 48, bias=False)
    x = torch.randn(4, 5, 16)
    layer(x, up(x).detach()).square().sum().backward()
    mine = layer.gate.weight.grad.clone()
    layer.zero_grad()
    layer.down(F.silu(layer.gate(x)) * up(x).detach()).square().sum().backward()
    assert torch.equal(mine, layer.gate.weight.grad)


def test_added_rows_at_zero_leave_the_plain_layer() -> None:
    torch.manual_seed(3)
    layer = StemFFN(16, 48, kind="add")
    x = torch.randn(4, 5, 16)
    plain = layer.down(F.silu(layer.gate(x)) * layer.up(x))
    assert torch.equal(layer(x, torch.zeros(4, 5, 48)), plain)
    rows = torch.randn(4, 5, 48)
    torch.testing.assert_close(layer(x, rows), layer.down(F.silu(layer.gate(x)) * (layer.up(x) + rows)))


def test_rows_of_another_type_follow_the_model() -> None:
    layer = StemFFN(16, 48).bfloat16()
    assert layer(torch.randn(2, 3, 16).bfloat16(), torch.randn(2, 3, 48)).dtype == torch.bfloat16


def test_initial_values_are_the_released_ones() -> None:
    torch.manual_seed(4)
    layer = StemFFN(64, 256)
    assert layer.gate.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert layer.down.weight.abs().max().item() <= 3 * 256**-0.5
    assert stem_init_std(128_256, 8192) == pytest.approx(0.00383, abs=1e-5)


def test_refuses_what_does_not_go_together() -> None:
    with pytest.raises(DataError, match=r"rows have shape \(2, 3, 40\) for hidden states of shape \(2, 3, 16\)"):
        StemFFN(16, 48)(torch.zeros(2, 3, 16), torch.zeros(2, 3, 40))
    with pytest.raises(ConfigError, match="there is no STEM layer of kind 'gate'; use replace or add"):
        StemFFN(16, 48, kind="gate")
