"""Low-precision rows against the closed-form law of rounding at random, and Python's own integers."""

import math

import pytest
import torch

from embank.compression import build_table
from embank.compression.methods.low_precision import LowPrecisionConfig, PowerOfTwoGrid, fitting_exponents, power_of_two
from embank.compression.parts.grid import HIGH, clamp_codes, high_codes
from embank.tables import BudgetError, RowOptimizer, TableSpec, build_method
from embank.tables.rows.rounding import noise, round_stochastically
from embank.tables.rows.shards import TableShard
from tests.compression.materialised import check_against, lookup
from tests.compression.oracles import packed_after_training


def spec(num: int = 500, dim: int = 12, **more: object) -> TableSpec:
    return TableSpec(
        name="t", num_embeddings=num, embedding_dim=dim, feature_names=["a"], method="low_precision", **more
    )


def random_rows(num: int, dim: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.randint(-6, 3, (num, 1), generator=generator)
    return torch.randn(num, dim, generator=generator) * sizes


class TestRounding:
    """Rounding to whole numbers at random."""

    def test_the_error_law(self) -> None:
        """|error| < 1, no bias, mean square 1/6 over uniform fractions, no correlation between elements."""
        num, dim = 200_000, 6
        values = torch.rand(num, dim, generator=torch.Generator().manual_seed(1)) * 200 - 100
        errors = round_stochastically(values, noise(torch.arange(num), num_columns=dim, seed=5)) - values
        assert errors.abs().max() < 1
        sigma = (1 / 6) ** 0.5
        assert abs(float(errors.mean())) < 4 * sigma / math.sqrt(num * dim)
        # e is -f with probability 1 - f, else 1 - f: E[e**4] = 2 B(5, 2) = 1/15, so e**2 has variance 1/15 - 1/36
        assert abs(float(errors.square().mean()) - 1 / 6) < 4 * math.sqrt((1 / 15 - 1 / 36) / (num * dim))
        covariance = errors.T @ errors / num
        off_diagonal = covariance - torch.diag(covariance.diagonal())
        assert off_diagonal.abs().max() < 5 * sigma**2 / math.sqrt(num)
        # the row sum of independent errors: dim times one variance (one shared random number gives up to dim times
        # that)
        assert abs(float(errors.sum(1).var()) / (dim * sigma**2) - 1) < 0.03

    def test_each_value_is_right_on_average(self) -> None:
        for value in (0.25, -0.25, 12.9, -100.01):
            rounded = round_stochastically(
                torch.full((40_000, 1), value), noise(torch.arange(40_000), num_columns=1, seed=2)
            )
            fraction = value - math.floor(value)
            sigma = math.sqrt(fraction * (1 - fraction) / 40_000)
            assert abs(float(rounded.double().mean()) - value) < 4 * sigma + 1e-5
            assert set(rounded.unique().tolist()) == {math.floor(value), math.floor(value) + 1.0}

    def test_whole_numbers_stay_whatever_the_noise(self) -> None:
        values = torch.arange(-32768.0, 32768.0)[:, None]
        for highest in (0.0, 1 - 2.0**-24):
            assert torch.equal(round_stochastically(values, torch.full_like(values, highest)), values)

    def test_clamping_at_both_ends(self) -> None:
        codes = torch.tensor([[-1e9, -129.0, -128.0, 127.0, 128.0, 1e9]] * 2)
        high = torch.tensor([[127.0], [32767.0]])
        assert clamp_codes(codes, high).tolist() == [
            [-128, -128, -128, 127, 127, 127],
            [-32768, -129, -128, 127, 128, 32767],
        ]

    def test_noise_is_uniform_and_differs_by_seed_row_and_column(self) -> None:
        drawn = noise(torch.arange(2**31 - 50_000, 2**31 + 50_000), num_columns=4, seed=9)
        assert drawn.min() >= 0
        assert drawn.max() < 1
        counts = torch.histc(drawn, bins=64, min=0, max=1)
        expected = drawn.numel() / 64
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert chi2 < 63 + 5 * math.sqrt(2 * 63)
        other = noise(torch.arange(2**31 - 50_000, 2**31 + 50_000), num_columns=4, seed=10)
        for a, b in ((drawn[:, 0], drawn[:, 1]), (drawn[1:, 0], drawn[:-1, 0]), (drawn[:, 0], other[:, 0])):
            assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(100_000)


class TestSteps:
    """The power of two of each row."""

    def test_smallest_power_of_two_that_holds_the_row(self) -> None:
        rows = random_rows(2000, 5)
        rows[0], rows[1, 0], rows[2, 0] = 0, 127.0, 127.0 * 2.0**-30
        for bits in (8, 16):
            high = torch.full((2000, 1), float(HIGH[bits]))
            found = fitting_exponents(rows, high)[:, 0].tolist()
            for row, exponent in list(zip(rows.abs().amax(1).tolist(), found, strict=True))[1:]:
                assert row <= HIGH[bits] * 2.0**exponent
                assert row > HIGH[bits] * 2.0 ** (exponent - 1)

    def test_powers_of_two_are_exact(self) -> None:
        exponents = torch.arange(-126, 128)
        assert power_of_two(exponents).tolist() == [2.0**k for k in range(-126, 128)]

    def test_rounded_rows_are_on_their_grid_and_stay(self) -> None:
        rows, numbers = random_rows(3000, 7), torch.arange(3000)
        grid = PowerOfTwoGrid(num_wide=1000)
        rounded = grid(rows, numbers, seed=1)
        step = power_of_two(fitting_exponents(rows, high_codes(numbers, num_wide=1000)))
        assert ((rounded - rows).abs() < step).all()
        codes = rounded.double() / step.double()
        assert torch.equal(codes, codes.round())
        assert codes[:1000].abs().max() <= 32767
        assert codes[1000:].abs().max() <= 127
        assert torch.equal(grid(rounded, numbers, seed=2), rounded)

    def test_16_bits_are_256_times_finer_than_8(self) -> None:
        rows, numbers = random_rows(20_000, 8), torch.arange(20_000)
        errors = [PowerOfTwoGrid(num_wide=wide)(rows, numbers, seed=1) - rows for wide in (0, 20_000)]
        relative = [float((e / rows.abs().amax(1, keepdim=True)).square().mean().sqrt()) for e in errors]
        assert 240 < relative[0] / relative[1] < 272

    def test_the_steps_of_a_bad_row_are_its_own_problem(self) -> None:
        rows = torch.tensor([[math.nan, 1.0], [math.inf, 1.0], [0.0, 0.0], [3e38, 1.0], [1e-42, 0.0]])
        rounded = PowerOfTwoGrid(num_wide=0)(rows, torch.arange(5), seed=0)
        assert not rounded[:2].isfinite().all(1).any()
        assert rounded[2].tolist() == [0, 0]
        assert rounded[2:].isfinite().all()


def test_shards_round_as_the_whole_table() -> None:
    (table,) = build_method(spec(num=300)).physical
    (whole,) = TableShard.whole(table).initial_chunks(seed=4)
    shard = TableShard(table=table, first_position=130, num_rows=90, first_column=0, num_columns=12)
    (part,) = shard.initial_chunks(seed=4)
    assert torch.equal(whole[130:220], part)
    rows, some = random_rows(300, 12), torch.tensor([7, 130, 299])
    assert table.projection is not None
    together = table.projection(rows, torch.arange(300), seed=8)
    assert torch.equal(table.projection(rows[some], some, seed=8), together[some])


def test_initial_values_survive() -> None:
    """A fixed step of .01 leaves 2% of them."""
    table = build_table(method="low_precision", num_embeddings=100_000, embedding_dim=16, seed=1)
    rows = table.lookup(torch.arange(100_000)).detach()
    assert (rows != 0).double().mean() > 0.98
    assert abs(float(rows.std()) / (100_000**-0.5 / 3**0.5) - 1) < 0.01


def test_small_updates_add_up_on_average() -> None:
    """200 updates of a twentieth of a step: ten steps on average, spread as rounding says."""
    num, updates, step = 4000, 200, 2.0**-6
    rows = torch.cat([torch.full((num, 1), 127 * step), torch.zeros(num, 4)], dim=1)  # column 0 fixes the step
    numbers, grid = torch.arange(num), PowerOfTwoGrid(num_wide=0)
    for seed in range(updates):
        rows[:, 1:] += step / 20
        rows = grid(rows, numbers, seed=seed)
    moved = rows[:, 1:] / step
    variance = updates * (1 / 20) * (19 / 20)
    assert abs(float(moved.mean()) - updates / 20) < 4 * math.sqrt(variance / moved.numel())
    assert abs(float(moved.var()) / variance - 1) < 0.1


def test_lookups_and_gradients_are_those_of_the_rows() -> None:
    """Rounding counts as the identity: the gradient is that of the rows as they stand."""
    check_against(spec(), lambda rows, _: rows["t"])


@pytest.mark.parametrize("bits", [8, 16])
def test_packed_codes_are_exact_after_training(bits: int) -> None:
    table = build_table(
        method="low_precision", num_embeddings=400, embedding_dim=5, options=LowPrecisionConfig(bits=bits), name="a"
    )
    table.collection.set_lr(0.05)
    packed = packed_after_training(table)
    codes = packed.table.coded[0].wide if bits == 16 else packed.table.coded[0].narrow
    assert codes.shape == (400, 5)
    assert codes.abs().max() > HIGH[bits] // 2
    steps = [2.0**k for k in packed.table.coded[0].exponents.tolist()]
    by_hand = [[code * step for code in row] for row, step in zip(codes.tolist(), steps, strict=True)]
    assert packed.lookup(torch.arange(400)).tolist() == by_hand
    assert packed.nbytes() == 400 * (5 * bits // 8 + 1)


def test_bits_and_floor() -> None:
    codes = 500 * 12
    for budget, wide in ((1.0, 500), (2 * codes / 24_000 + 500 / 24_000, 500), (0.5, 458), (0.28, 18)):
        method = build_method(spec(budget=budget))
        assert method.num_wide == wide
        table = build_table(method="low_precision", num_embeddings=500, embedding_dim=12, budget=budget)
        assert table.nbytes("serving") == codes + 12 * wide + 500 <= budget * 24_000
        assert table.nbytes("nominal") == codes + 12 * wide
    assert build_method(spec()).num_wide == 0
    with pytest.raises(
        BudgetError, match="12 bytes of codes and 1 of a step .* 6,500 bytes, so its floor is budget 0.270834"
    ):
        build_method(spec(budget=0.27))
    with pytest.raises(BudgetError, match="24 bytes of codes .* floor is budget 0.520834"):
        build_method(spec(budget=0.5, options=LowPrecisionConfig(bits=16)))


def test_training_holds_fp32_rows() -> None:
    table = build_table(method="low_precision", num_embeddings=500, embedding_dim=12)
    assert table.nbytes("training") >= 500 * 12 * 4
    assert table.nbytes("serving") == 500 * 13


def test_sizes_at_the_edge() -> None:
    for num, dim in ((1, 1), (1, 2048), (3, 3)):
        table = build_table(method="low_precision", num_embeddings=num, embedding_dim=dim)
        assert torch.equal(table.pack().lookup(torch.arange(num)), table.lookup(torch.arange(num)).detach())
    method = build_method(spec(num=2**31 + 1, dim=3, budget=0.4))
    assert method.num_wide == int((0.4 * 12 - 4) * (2**31 + 1) / 3)
    grid = method.physical[0].projection
    assert grid is not None
    ends = torch.tensor([0, 2**31])
    rounded = grid(torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]), ends, seed=0)
    assert (rounded[0] - rounded[0].new_tensor([0.1, 0.2, 0.3])).abs().max() < 2.0**-16
    assert (rounded[1] - rounded[1].new_tensor([0.1, 0.2, 0.3])).abs().max() < 2.0**-8


def test_hot_rows_learn_through_the_grid() -> None:
    """Two hundred steps of SGD bring an 8-bit row to its target to within a few grid steps."""
    table = build_table(
        method="low_precision", num_embeddings=50, embedding_dim=4, options=LowPrecisionConfig(bits=8), name="a"
    )
    collection = table.collection.rebuilt(table.collection.specs)
    collection.optimizer = RowOptimizer(name="sgd", lr=0.05)
    collection = collection.rebuilt(collection.specs)
    target = torch.tensor([0.9, -0.4, 0.3, 0.05])
    for _ in range(200):
        (lookup(collection, torch.tensor([3])) - target).square().sum().backward()
        collection.update_rows()
    assert (lookup(collection, torch.tensor([3]))[0].detach() - target).abs().max() < 4 * 2.0**-7
