"""ALPT against autograd on the straight-through graph, finite differences, and the published two-pass step."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from embank.compression import build_table
from embank.compression.methods.alpt import AlptConfig, LearnedGrid, learned_steps, lsq_gradient, nearest
from embank.tables import BudgetError, ConfigError, RowOptimizer, TableCollection, TableSpec, build_method
from tests.compression.materialised import check_against, lookup
from tests.compression.oracles import packed_after_training


def spec(num: int = 500, dim: int = 12, **more: object) -> TableSpec:
    return TableSpec(name="t", num_embeddings=num, embedding_dim=dim, feature_names=["a"], method="alpt", **more)


class _RoundThrough(torch.autograd.Function):
    """round, with the identity's gradient."""

    @staticmethod
    def forward(_: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def straight_through(values_UD: Tensor, step_U1: Tensor, high: float) -> Tensor:
    """Q(w) as a graph: s * clip(round(w / s)); autograd of clip is 0 outside, of round 1."""
    return step_U1 * _RoundThrough.apply((values_UD / step_U1).clamp(-high - 1, high))


def random_values(num: int, dim: int, high: float) -> tuple[Tensor, Tensor]:
    """Values of which some lie beyond the range, and steps; float64."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.rand(num, 1, generator=generator, dtype=torch.float64) + 0.1
    values = torch.randn(num, dim, generator=generator, dtype=torch.float64) * steps * high * 0.7
    return values, steps


class TestLsqGradient:
    """The gradient with respect to a row's step."""

    @pytest.mark.parametrize("high", [127.0, 32767.0])
    def test_equals_autograd_of_the_straight_through_graph(self, high: float) -> None:
        values, steps = random_values(300, 9, high)
        upstream = torch.randn(300, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        leaf = steps.clone().requires_grad_()
        (straight_through(values, leaf, high) * upstream).sum().backward()
        found = lsq_gradient(values, steps, torch.full((300, 1), high, dtype=torch.float64), upstream)
        assert ((values / steps).abs() > high).any()
        torch.testing.assert_close(found, leaf.grad, rtol=1e-6, atol=1e-6)

    def test_differs_from_finite_differences_by_what_straight_through_adds(self) -> None:
        """Away from jumps d(s round(w / s))/ds is round(w / s); rounding as the identity subtracts w / s, inside the
        range."""
        high, h = 127.0, 1e-9
        values, steps = random_values(4000, 1, high)
        highs = torch.full((4000, 1), high, dtype=torch.float64)
        slope = (nearest(values, steps + h, highs) - nearest(values, steps - h, highs)) / (2 * h)
        scaled = values / steps
        inside = (scaled >= -high - 1) & (scaled <= high)
        expected = lsq_gradient(values, steps, highs, torch.ones_like(values)) + torch.where(inside, scaled, 0)
        agree = (slope - expected).abs() < 1e-4
        assert agree.double().mean() > 0.99
        far_from_jumps = ((scaled - scaled.floor()) - 0.5).abs() > 1e-3
        assert agree[far_from_jumps & ((scaled - high).abs() > 1e-3) & ((scaled + high + 1).abs() > 1e-3)].all()


def two_pass_step(
    values_UD: Tensor, step_U1: Tensor, weight_D: Tensor, labels_U: Tensor, *, high: float, lr: float
) -> tuple[Tensor, Tensor]:
    """The published step for one batch of distinct rows under a logistic loss, with both passes: w' and dL/ds (without
    g)."""
    rows = values_UD.clone().requires_grad_()
    loss = F.binary_cross_entropy_with_logits(rows @ weight_D, labels_U, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, rows)
    updated = values_UD - lr * gradient
    step = step_U1.clone().requires_grad_()
    second = F.binary_cross_entropy_with_logits(
        straight_through(updated, step, high) @ weight_D, labels_U, reduction="sum"
    )
    (step_gradient,) = torch.autograd.grad(second, step)
    return updated, step_gradient


class TestAgainstTwoPasses:
    """The one-pass step against the published one."""

    def batch(self, collection: TableCollection) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2)
        ids = torch.arange(0, 200, 3)
        weight = torch.randn(6, generator=generator)
        labels = (torch.rand(ids.numel(), generator=generator) < 0.5).float()
        return ids, weight, labels, collection.weights()["t"][ids].clone()

    def test_the_same_updates_and_step_gradients_where_no_number_moves_by_half_a_step(self) -> None:
        lr = 1e-4
        collection = TableCollection(
            [spec(200, 6, init_std=0.5, options=AlptConfig(bits=8, step_lr=0.0))],
            backend="torch",
            optimizer=RowOptimizer(name="sgd", lr=lr),
        )
        _, weight, labels, before = self.batch(collection)
        steps = before[:, -1:].double()
        values = (before[:, :-1] / steps).round() * steps  # on the grid to float64 rounding
        updated, expected = two_pass_step(values, steps, weight.double(), labels.double(), high=127.0, lr=lr)
        assert ((updated - values).abs() < steps / 2).all()
        assert ((updated / steps) > 127).any(), "some number must be clipped"
        highs = torch.full_like(steps, 127.0)
        upstream = nearest(updated, steps, highs) - updated
        found = lsq_gradient(updated, steps, highs, upstream) / lr
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)

    def test_a_training_step_of_the_table_moves_steps_as_the_two_passes_do(self) -> None:
        lr, step_lr, high = 1e-4, 40.0, 127.0
        collection = TableCollection(
            [spec(200, 6, init_std=0.5, options=AlptConfig(bits=8, step_lr=step_lr))],
            backend="torch",
            optimizer=RowOptimizer(name="sgd", lr=lr),
        )
        ids, weight, labels, before = self.batch(collection)
        loss = F.binary_cross_entropy_with_logits(lookup(collection, ids) @ weight, labels, reduction="sum")
        loss.backward()
        collection.update_rows()
        after = collection.weights()["t"][ids]
        values, steps = before[:, :-1].double(), before[:, -1:].double()
        updated, gradient = two_pass_step(values, steps, weight.double(), labels.double(), high=high, lr=lr)
        moved = steps - step_lr * lr * gradient / math.sqrt(6 * high)
        expected = [
            max(min(float(m), max(float(s), float(row.abs().max()) / high)), float(s) / 2)
            for m, s, row in zip(moved, steps, updated, strict=True)
        ]
        change = (torch.tensor(expected)[:, None] / steps - 1).abs()
        assert change.max() > 1e-5, "steps must move by more than float32 rounding"
        torch.testing.assert_close(after[:, -1].double(), torch.tensor(expected).double(), rtol=1e-6, atol=0)
        assert ((after[:, :-1] - updated).abs() < after[:, -1:] * 1.0001).all()
        untouched = torch.ones(200, dtype=torch.bool).index_fill(0, ids, False)
        again = TableCollection(collection.specs, backend="torch")
        assert torch.equal(collection.weights()["t"][untouched], again.weights()["t"][untouched])


class TestSteps:
    """What bounds the learned steps."""

    def test_they_stay_positive_and_hold_the_row_at_most(self) -> None:
        generator = torch.Generator().manual_seed(3)
        steps = torch.rand(500, 1, generator=generator) * 0.01 + 1e-9
        highs = torch.full((500, 1), 127.0)
        for size in (0.0, 1e-12, 1.0, 1e20):
            values = torch.randn(500, 8, generator=generator) * size
            for step_lr in (0.0, 0.02, 1e9):
                found = learned_steps(values, steps, highs, step_lr=step_lr)
                assert (found > 0).all()
                assert (found >= steps / 2).all()
                needed = values.abs().amax(1, keepdim=True) / 127
                assert (found <= torch.maximum(steps, needed)).all()

    def test_a_row_that_grew_out_of_its_range_is_held_again_at_once(self) -> None:
        values = torch.tensor([[0.5, -0.2, 0.1, 0.0]])
        for bits, high in ((8, 127.0), (16, 32767.0)):
            found = learned_steps(values, torch.tensor([[1e-6]]), torch.tensor([[high]]), step_lr=0.02)
            assert float(found) == pytest.approx(0.5 / high)
            rounded = LearnedGrid(num_wide=10 if bits == 16 else 0, step_lr=0.02)(
                torch.cat([values, torch.tensor([[1e-6]])], 1), torch.tensor([0]), seed=1
            )
            assert (rounded[0, :-1] - values).abs().max() < 0.5 / high

    def test_a_row_that_shrank_gets_finer_steps(self) -> None:
        """The squared rounding error falls with the step until the row's largest number is clipped."""
        generator = torch.Generator().manual_seed(4)
        values, steps = torch.randn(50, 16, generator=generator) * 0.1, torch.full((50, 1), 1.0 / 127)
        highs = torch.full((50, 1), 127.0)
        for _ in range(5000):
            jitter = torch.randn(50, 16, generator=generator) * 0.001
            steps = learned_steps(values + jitter, steps, highs, step_lr=0.2)
        needed = values.abs().amax(1, keepdim=True) / 127
        assert (steps < 0.6 / 127).all()
        assert (steps > 0.8 * needed).all()

    def test_initial_values_survive(self) -> None:
        """A fixed first step of .01 leaves 2% of them."""
        table = build_table(method="alpt", num_embeddings=100_000, embedding_dim=16, seed=1)
        rows = table.lookup(torch.arange(100_000)).detach()
        assert (rows != 0).double().mean() > 0.98
        assert abs(float(rows.std()) / (100_000**-0.5 / 3**0.5) - 1) < 0.01
        steps = table.collection.weights()["table"][:, -1]
        assert (steps > 0).all()
        assert (steps <= 100_000**-0.5 / 127).all()


def test_stored_rows_are_right_on_average() -> None:
    num = 40_000
    row = torch.tensor([0.9, 0.1234, -0.0301, 0.5551, 0.9 / 127])
    rows = LearnedGrid(num_wide=0, step_lr=0.0)(row.expand(num, 5), torch.arange(num), seed=6)
    step = 0.9 / 127
    for column in range(1, 4):
        fraction = float(row[column]) / step % 1
        sigma = step * math.sqrt(fraction * (1 - fraction) / num)
        assert abs(float(rows[:, column].double().mean()) - float(row[column])) < 4 * sigma + 1e-7
    errors = rows[:, 1:4] - row[1:4]
    covariance = torch.corrcoef(errors.T)
    assert (covariance - torch.eye(3)).abs().max() < 5 / math.sqrt(num)


def test_lookups_and_gradients_are_those_of_the_values() -> None:
    """Steps get no gradient from the loss itself: they move in the projection."""
    check_against(spec(), lambda rows, _: rows["t"][:, :-1])


@pytest.mark.parametrize("bits", [8, 16])
def test_packed_codes_are_exact_after_training(bits: int) -> None:
    table = build_table(method="alpt", num_embeddings=400, embedding_dim=5, options=AlptConfig(bits=bits), name="a")
    packed = packed_after_training(table)
    codes, high = (packed.table.coded[0].wide, 32767) if bits == 16 else (packed.table.coded[0].narrow, 127)
    assert codes.max() <= high
    assert codes.min() >= -high - 1
    assert codes.abs().max() > high // 2
    assert packed.nbytes() == 400 * (5 * bits // 8 + 4)


def test_bits_and_floor() -> None:
    for budget, wide in ((1.0, 500), (0.5, 333), (0.34, 13)):
        assert build_method(spec(budget=budget)).num_wide == wide
        table = build_table(method="alpt", num_embeddings=500, embedding_dim=12, budget=budget)
        assert table.nbytes("serving") == 12 * (500 + wide) + 4 * 500 <= budget * 24_000
        assert table.nbytes("nominal") == table.nbytes("serving")
    with pytest.raises(BudgetError, match="12 bytes of codes and 4 of a step .* floor is budget 0.333334"):
        build_method(spec(budget=0.33))
    at_16 = [TableCollection([spec(num=100, dim=16, options=AlptConfig(bits=b))]).nbytes("nominal") for b in (8, 16)]
    assert [nbytes / 6400 for nbytes in at_16] == [0.3125, 0.5625]


def test_sizes_at_the_edge_and_options() -> None:
    for num, dim in ((1, 1), (1, 2048), (3, 3)):
        table = build_table(method="alpt", num_embeddings=num, embedding_dim=dim)
        assert torch.equal(table.pack().lookup(torch.arange(num)), table.lookup(torch.arange(num)).detach())
    assert build_method(spec(num=2**31 + 1, dim=3, budget=1.0)).num_wide == 2**31 + 1
    with pytest.raises(ConfigError, match="step_lr -1; it must be finite and 0 or more"):
        build_method(spec(options=AlptConfig(step_lr=-1)))
