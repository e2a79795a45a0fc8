"""The Engram layer against a reference in NumPy that goes position by position."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from embank.tables.errors import ConfigError, DataError
from embank.tables.memory import Engram, EngramState

Array = NDArray[np.float64]


def made(*, branches: int = 1, conv: bool = True, seed: int = 0, **options) -> Engram:
    """A layer of 8 over rows of 12, in double precision, nothing of it at zero."""
    torch.manual_seed(seed)
    layer = Engram(8, 12, branches=branches, conv=conv, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return layer


def inputs(layer: Engram, *, batch: int = 2, length: int = 14, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, layer.branches, 8, dtype=torch.double, generator=generator)
    return hidden, torch.randn(batch, length, 12, dtype=torch.double, generator=generator)


def rms_normed(x: Array, gain: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean() + eps) * gain


def reference(
    layer: Engram, hidden: Array, rows: Array, starts: Array | None = None, dead: Array | None = None
) -> Array:
    """Section 2.3 of the paper with the released signed square root, one number after the other."""
    weights = {name: value.detach().numpy() for name, value in layer.state_dict().items()}
    batch, length, branches, dim = hidden.shape
    project = weights["project.weight"].reshape(branches + 1, dim, -1)
    bias = (
        weights["project.bias"].reshape(branches + 1, dim)
        if layer.project.bias is not None
        else np.zeros((branches + 1, dim))
    )
    gated = np.zeros_like(hidden)
    for b in range(batch):
        for t in range(length):
            if dead is not None and dead[b, t]:
                continue
            value = project[branches] @ rows[b, t] + bias[branches]
            for m in range(branches):
                key = rms_normed(project[m] @ rows[b, t] + bias[m], weights["key_gain_Md"][m], layer.eps)
                query = rms_normed(hidden[b, t, m], weights["query_gain_Md"][m], layer.eps)
                score = query @ key / np.sqrt(dim)
                score = np.sign(score) * np.sqrt(max(abs(score), 1e-6))
                gated[b, t, m] = value / (1 + np.exp(-score))
    if not layer.lookback:
        return gated
    result = gated.copy()
    for b in range(batch):
        for t in range(length):
            if dead is not None and dead[b, t]:
                continue
            for m in range(branches):
                total = np.zeros(dim)
                taps = weights["conv_weight"].reshape(branches, dim, layer.kernel_size)[m]
                for back in range(layer.kernel_size):
                    then = t - back * layer.dilation
                    if then < 0 or (starts is not None and starts[b, then + 1 : t + 1].any()):
                        break
                    normed = rms_normed(gated[b, then, m], weights["conv_gain_Md"][m], layer.eps)
                    total += taps[:, layer.kernel_size - 1 - back] * normed
                result[b, t, m] += total / (1 + np.exp(-total))
    return result


@pytest.mark.parametrize(("branches", "conv", "bias"), [(1, True, False), (1, False, True), (3, True, True)])
def test_forward_is_the_reference(branches: int, conv: bool, bias: bool) -> None:
    layer = made(branches=branches, conv=conv, bias=bias)
    hidden, rows = inputs(layer)
    wanted = reference(layer, hidden.numpy(), rows.numpy())
    np.testing.assert_allclose(layer(hidden, rows).detach().numpy(), wanted, rtol=1e-10)
    single = layer.float()(hidden.float(), rows.float())
    np.testing.assert_allclose(single.detach().numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_dead_positions_and_documents_are_the_references() -> None:
    layer = made(branches=2)
    hidden, rows = inputs(layer)
    generator = torch.Generator().manual_seed(5)
    dead, starts = (torch.rand(2, 14, generator=generator) < p for p in (0.3, 0.2))
    wanted = reference(layer, hidden.numpy(), rows.numpy(), starts.numpy(), dead.numpy())
    out = layer(hidden, rows, dead_BT=dead, starts_BT=starts)
    np.testing.assert_allclose(out.detach().numpy(), wanted, rtol=1e-10)
    assert torch.equal((hidden + out)[dead], hidden[dead])


def test_packed_documents_are_read_as_if_apart() -> None:
    layer = made()
    (hidden, rows), starts = inputs(layer), torch.zeros(2, 14, dtype=torch.bool)
    starts[:, 6] = True
    packed = layer(hidden, rows, starts_BT=starts)
    apart = [layer(hidden[:, part], rows[:, part]) for part in (slice(0, 6), slice(6, 14))]
    torch.testing.assert_close(packed, torch.cat(apart, dim=1), rtol=1e-12, atol=1e-12)


def test_one_branch_is_the_scalar_formula() -> None:
    layer = made(conv=False)
    hidden, rows = inputs(layer)
    flat = layer(hidden.squeeze(2), rows)
    assert torch.equal(flat, layer(hidden, rows).squeeze(2))
    assert torch.equal(layer.gates(hidden.squeeze(2), rows), layer.gates(hidden, rows))


@pytest.mark.parametrize(("score", "gate"), [(0.25, 0.62246), (-0.25, 0.37754), (0.0, 0.5), (1e-9, 0.50025)])
def test_gate_of_a_score(score: float, gate: float) -> None:
    layer = Engram(4, 4, conv=False, eps=0.0).double()
    with torch.no_grad():
        layer.project.weight[:4] = torch.eye(4)
        layer.key_gain_Md.fill_(score / 2)  # equal vectors of norm 2: <h, k> / sqrt(4) is twice the gain
    ones = torch.ones(1, 1, 4, dtype=torch.double)
    assert layer.gates(ones, ones).item() == pytest.approx(gate, abs=1e-5)


def test_a_convolution_at_zero_leaves_the_gated_value() -> None:
    layer = made()
    hidden, rows = inputs(layer)
    plain = made(conv=False)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "conv" not in name})
    with torch.no_grad():
        layer.conv_weight.zero_()
    assert torch.equal(layer(hidden, rows), plain(hidden, rows))
    assert Engram(8, 12).conv_weight.count_nonzero() == 0


def test_identity_adds_exactly_nothing_and_learns() -> None:
    layer = Engram(8, 12, branches=2, identity=True)
    hidden, rows = torch.randn(2, 5, 2, 8), torch.randn(2, 5, 12)
    out = layer(hidden, rows)
    assert torch.equal(out, torch.zeros_like(hidden))
    out.sum().backward()
    assert layer.project.weight.grad[16:].abs().sum() > 0


def test_a_row_reaches_later_positions_only() -> None:
    layer = made()
    hidden, rows = inputs(layer)
    other = rows.clone()
    other[:, 4] += 1
    changed = (layer(hidden, rows) != layer(hidden, other)).any(-1).any(-1).any(0)
    assert changed.nonzero().flatten().tolist() == [4, 7, 10, 13]  # the taps: t, t-3, t-6, t-9


@pytest.mark.parametrize("sizes", [[1] * 14, [5, 1, 8], [0, 14], [3, 0, 11], [13, 1]])
def test_pieces_give_what_the_whole_gives(sizes: list[int]) -> None:
    layer = made(branches=2)
    hidden, rows = inputs(layer)
    starts = torch.zeros(2, 14, dtype=torch.bool)
    starts[0, 5], starts[1, 6] = True, True
    whole, state = layer(hidden, rows, starts_BT=starts), EngramState()
    pieces = [
        layer(h, r, starts_BT=s, state=state)
        for h, r, s in zip(hidden.split(sizes, 1), rows.split(sizes, 1), starts.split(sizes, 1), strict=True)
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-12, atol=1e-12)
    assert state.length == 14


def test_rollback_takes_drafts_back() -> None:
    layer = made()
    hidden, rows = inputs(layer)
    starts = torch.zeros(2, 3, dtype=torch.bool)
    starts[:, 1] = True  # a draft that begins another document
    whole, state = layer(hidden, rows), EngramState(max_rollback=3)
    pieces = []
    for at in range(14):
        layer(hidden[:, :3] + 1, rows[:, :3], starts_BT=starts, state=state)
        state.rollback(3)
        pieces.append(layer(hidden[:, at : at + 1], rows[:, at : at + 1], state=state))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-12, atol=1e-12)


def test_rollback_refuses_what_it_does_not_keep() -> None:
    layer = made()
    hidden, rows = inputs(layer)
    state = EngramState(max_rollback=2)
    layer(hidden, rows, state=state)
    with pytest.raises(ConfigError, match=r"3 of 14 positions .* keeps 2; make it with EngramState\(max_rollback=3\)"):
        state.rollback(3)
    state.rollback(2)
    layer(hidden[:, :1], rows[:, :1], state=state)
    with pytest.raises(ConfigError, match="2 of 13 positions are to be taken back"):
        state.rollback(2)  # the one that it keeps more is the one that has just come
    short = EngramState()
    layer(hidden[:, :5], rows[:, :5], state=short)
    short.rollback(5)  # all of it is there still
    assert torch.equal(layer(hidden, rows, state=short), layer(hidden, rows))


def test_reorder_goes_on_from_other_sequences() -> None:
    layer = made()
    hidden, rows = inputs(layer)
    state = EngramState()
    layer(hidden[:, :9], rows[:, :9], state=state)
    state.reorder(torch.tensor([1, 1]))
    swapped_hidden, swapped_rows = hidden[[1, 1]], rows[[1, 1]]
    out = layer(swapped_hidden[:, 9:], swapped_rows[:, 9:], state=state)
    torch.testing.assert_close(out, layer(swapped_hidden, swapped_rows)[:, 9:], rtol=1e-12, atol=1e-12)


def test_gradients() -> None:
    layer = made(branches=2)
    hidden, rows = inputs(layer, batch=1, length=5)
    hidden.requires_grad_()
    rows.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, r: layer(h, r), (hidden, rows))


def test_gradients_across_documents_and_pieces() -> None:
    layer = made()
    hidden, rows = inputs(layer, batch=1, length=14)
    starts = torch.zeros(1, 14, dtype=torch.bool)
    starts[0, 6] = True
    whole = layer(hidden, rows.requires_grad_(), starts_BT=starts)
    (wanted,) = torch.autograd.grad(whole[:, 9:].square().sum(), rows)
    state = EngramState()
    layer(hidden[:, :9], rows[:, :9], starts_BT=starts[:, :9], state=state)
    last = layer(hidden[:, 9:], rows[:, 9:], starts_BT=starts[:, 9:], state=state)
    (own,) = torch.autograd.grad(last.square().sum(), rows)
    torch.testing.assert_close(own[:, 9:], wanted[:, 9:], rtol=1e-10, atol=1e-12)
    assert not own[:, :9].any()  # a piece is a constant to the next one
    assert wanted[:, 6:9].any()
    assert not wanted[:, :6].any()
    taps = list(layer.parameters())
    assert torch.autograd.gradcheck(lambda *_: layer(hidden.detach(), rows.detach(), starts_BT=starts), taps)


def test_gradients_are_finite_where_a_score_is_zero() -> None:
    layer = made(conv=False)
    rows = torch.zeros(1, 3, 12, dtype=torch.double, requires_grad=True)
    hidden = torch.zeros(1, 3, 8, dtype=torch.double, requires_grad=True)
    layer(hidden, rows).square().sum().backward()
    layer(hidden, rows).sum().backward()
    assert rows.grad.isfinite().all()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
def test_half_precision_gates_in_single(dtype: torch.dtype) -> None:
    layer = made().to(dtype)
    hidden, rows = inputs(layer)
    hidden, rows = 300 * hidden.to(dtype), rows.float()  # squares of 300 overflow in half precision
    out = layer(hidden, rows)
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert layer.gates(hidden, rows).dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_empty_batches(shape: tuple[int, int]) -> None:
    layer = made()
    hidden, rows = torch.zeros(*shape, 8, dtype=torch.double), torch.zeros(*shape, 12, dtype=torch.double)
    assert layer(hidden, rows, state=EngramState()).shape == (*shape, 8)


def test_refuses_shapes_that_do_not_go_together() -> None:
    layer = made(branches=2)
    hidden, rows = inputs(layer)
    with pytest.raises(
        DataError, match=r"hidden states have shape \(2, 14, 8\); this Engram layer takes \[B, T, 2, 8\]"
    ):
        layer(hidden[:, :, 0], rows)
    with pytest.raises(DataError, match=r"rows have shape \(2, 13, 12\) for hidden states of shape \(2, 14, 2, 8\)"):
        layer(hidden, rows[:, 1:])
    with pytest.raises(ConfigError, match="an Engram layer's branches are 0"):
        Engram(8, 12, branches=0)
