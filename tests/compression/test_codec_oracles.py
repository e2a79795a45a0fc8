"""Each codec against a slow and obvious twin."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from embank.compression.codecs.affine import AffineRows, cuts, rows_per_group
from embank.compression.codecs.binary import BinaryRows
from embank.compression.codecs.product import ProductRows, RotatedProductRows
from embank.tables import encode, named_codec
from embank.tables.serving.codecs.composite import Composite
from tests.compression.codecs import random_rows


def taken(rows: Tensor, codec: str) -> Tensor:
    return encode(rows, codec=codec).take(torch.arange(len(rows)))


@pytest.mark.parametrize(("codec", "kind"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_halves_are_the_nearest_numbers_of_their_kind(codec: str, kind: str) -> None:
    """Of all 65,536, even ones where two are as near."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(getattr(torch, kind)).double()
    finite = every[every.isfinite()].unique().numpy()
    rows = random_rows(30, 4)
    nearest = [[finite[np.abs(finite - x).argmin()] for x in row] for row in rows.double().tolist()]
    assert taken(rows, codec).double().tolist() == nearest


@pytest.mark.parametrize(
    ("codec", "exponent_bits", "bias", "has_infinity"), [("fp8_e4m3", 4, 7, False), ("fp8_e5m2", 5, 15, True)]
)
def test_8_bit_floats_are_the_nearest_by_their_definition(
    codec: str, exponent_bits: int, bias: int, has_infinity: bool
) -> None:
    mantissa_bits = 7 - exponent_bits
    values = []
    for exponent, mantissa in product(range(1 << exponent_bits), range(1 << mantissa_bits)):
        is_top = exponent == (1 << exponent_bits) - 1
        if is_top and (has_infinity or mantissa == (1 << mantissa_bits) - 1):
            continue
        fraction = mantissa / (1 << mantissa_bits)
        values.append(fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** (exponent - bias))
    grid = np.array(sorted({*values, *(-value for value in values)}))
    rows = random_rows(40, 5)
    scale = np.float32(float(rows.abs().max()) / grid.max())
    found = taken(rows, codec).numpy()
    for x, y in zip(rows.numpy().ravel(), found.ravel(), strict=True):
        assert abs(y - x) <= np.abs(grid * scale - x).min() + 1e-6


def slow_affine(rows: Tensor, bits: int) -> Tensor:
    """Group by group, cut by cut, number by number."""
    num_rows, dim = rows.shape
    size, top = rows_per_group(dim), 2**bits - 1
    result = np.zeros((num_rows, dim), dtype=np.float32)
    for start in range(0, num_rows, size):
        numbers = rows[start : start + size].numpy().ravel()
        low, high = numbers.min(), numbers.max()
        best, least = None, np.inf
        for below, above in cuts(bits):
            span = np.float32(high - low)
            offset = np.float32(np.float16(low + np.float32(below) * span))
            step = np.float32(np.float16((span - np.float32(below + above) * span) / np.float32(top)))
            codes = [
                0 if step == 0 else min(top, max(0, round((float(x) - float(offset)) / float(step)))) for x in numbers
            ]
            decoded = np.array([np.float32(code) * step + offset for code in codes], dtype=np.float32)
            error = float(((decoded.astype(np.float64) - numbers) ** 2).sum())
            if error < least * (1 - 1e-6):
                best, least = decoded, error
        result[start : start + size] = best.reshape(-1, dim)
    return torch.from_numpy(result)


@pytest.mark.parametrize(("bits", "num_rows", "dim"), [(8, 30, 3), (6, 70, 1), (4, 23, 6), (3, 13, 16), (2, 3, 80)])
def test_whole_numbers_are_those_of_a_loop_over_groups_and_cuts(bits: int, num_rows: int, dim: int) -> None:
    rows = random_rows(num_rows, dim)
    found, slow = taken(rows, f"int{bits}"), slow_affine(rows, bits)
    mine, other = (found - rows).square().sum(), (slow - rows).square().sum()
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=0)
    assert float((found != slow).float().mean()) < 0.02  # numbers half way between two codes


def test_codes_lie_where_python_finds_them_in_one_large_number() -> None:
    rows = random_rows(40, 3)
    coded = encode(rows, codec="int3")
    assert isinstance(coded, AffineRows)
    stream = int.from_bytes(bytes(coded.codes.tolist()), "little")
    group = rows_per_group(3)
    found = coded.take(torch.arange(40))
    for row, column in product(range(40), range(3)):
        code = stream >> 3 * (3 * row + column) & 7
        value = code * coded.steps[row // group].float() + coded.offsets[row // group].float()
        assert float(found[row, column]) == float(value)


def test_few_steps_leave_the_ends_of_a_range_out() -> None:
    """Four of them for a normal distribution are best .996 of its deviation apart (Max, 1960), not a third of its
    range."""
    rows = torch.special.ndtri((torch.arange(64) + 0.5) / 64).view(1, 64)
    (step,) = encode(rows, codec="int2").steps.float()
    assert float(step) == pytest.approx(0.996, abs=0.1)
    assert float(rows.max() - rows.min()) / 3 > 1.6


def test_ranked_bits_are_those_of_each_part_alone() -> None:
    rows = random_rows(1000, 6)
    parts = [(rows[:125], "int8"), (rows[125:500], "int4"), (rows[500:], "int2")]
    assert torch.equal(taken(rows, "bits_8_4_2"), torch.cat([taken(part, codec) for part, codec in parts]))


@pytest.mark.parametrize(("codec", "is_centred"), [("pca4", True), ("lowrank4", False)])
@pytest.mark.parametrize("num_rows", [5, 200])
def test_projections_are_the_best_of_their_rank(codec: str, is_centred: bool, num_rows: int) -> None:
    rows = random_rows(num_rows, 9) + 0.5
    mean = rows.double().mean(0) if is_centred else torch.zeros(9)
    left, sizes, right = torch.linalg.svd(rows.double() - mean, full_matrices=False)
    best = (left[:, :4] * sizes[:4]) @ right[:4] + mean
    torch.testing.assert_close(taken(rows, codec).double(), best, rtol=1e-4, atol=1e-5)


def test_coordinates_are_held_by_the_inner_codec() -> None:
    rows = random_rows(300, 8)
    plain, coded = encode(rows, codec="pca3"), encode(rows, codec="pca3+int4")
    assert isinstance(plain, Composite)
    assert isinstance(coded, Composite)
    inner = encode(plain.part("coordinates").take(torch.arange(300)), codec="int4")
    assert torch.equal(coded.part("coordinates").take(torch.arange(300)), inner.take(torch.arange(300)))
    assert plain.nbytes() - coded.nbytes() == 4 * 300 * 3 - inner.nbytes()


def slow_binary(row: list[float], levels: int) -> list[float]:
    left, total = [np.float32(x) for x in row], [np.float32(0)] * len(row)
    for _ in range(levels):
        weight = np.float32(np.float16(sum(float(abs(x)) for x in left) / len(left)))
        signs = [np.float32(1 if x >= 0 else -1) for x in left]
        total = [t + weight * s for t, s in zip(total, signs, strict=True)]
        left = [x - weight * s for x, s in zip(left, signs, strict=True)]
    return [float(t) for t in total]


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("dim", [1, 5, 16])
def test_signs_are_those_of_a_loop(levels: int, dim: int) -> None:
    rows = random_rows(40, dim)
    slow = torch.tensor([slow_binary(row, levels) for row in rows.tolist()])
    torch.testing.assert_close(taken(rows, f"binary{levels}"), slow, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("dim", [3, 16])
def test_the_symmetric_distance_is_that_of_the_decoded_rows(dim: int) -> None:
    coded = encode(random_rows(30, dim), codec="binary")
    assert isinstance(coded, BinaryRows)
    some, others = torch.tensor([3, 3, 29]), torch.arange(30)
    expected = coded.take(some) @ coded.take(others).T
    torch.testing.assert_close(coded.inner_products(some, others), expected, rtol=1e-4, atol=1e-4)


def test_product_codes_name_the_nearest_centroid_which_is_the_mean_of_its_members() -> None:
    rows = random_rows(400, 6)
    coded = encode(rows, codec="pq")
    assert isinstance(coded, ProductRows)
    codes = coded.codes(torch.arange(400))
    assert coded.centroids.shape == (3, 16, 2)
    assert [len(codes[:, book].unique()) for book in range(3)] == [16, 16, 16]
    for book in range(3):
        parts = rows[:, 2 * book : 2 * book + 2]
        distances = (parts[:, None] - coded.centroids[book]).double().square().sum(2)
        assert torch.equal(distances.argmin(1), codes[:, book])
        means = torch.stack([parts[codes[:, book] == code].mean(0) for code in range(16)])
        assert float((means - coded.centroids[book]).abs().max()) < 0.1  # k-means has nearly settled


def test_sixteen_kinds_of_rows_are_held_exactly() -> None:
    """Also where the first centroids meet only a few of them."""
    kinds = torch.arange(32.0).view(16, 2)
    rows = torch.cat([kinds[:1].expand(500, 2), kinds])
    assert torch.equal(taken(rows, "pq"), rows)


def test_the_rotation_is_one_and_finds_directions_that_parts_share() -> None:
    """Columns 1 and 3, 2 and 4 are alike: two parts code each twice, until they are turned."""
    generator = torch.Generator().manual_seed(0)
    two = torch.randn(2000, 2, generator=generator)
    rows = torch.cat([two, two + 0.1 * torch.randn(2000, 2, generator=generator)], 1)
    coded = encode(rows, codec="opq")
    assert isinstance(coded, RotatedProductRows)
    torch.testing.assert_close(coded.rotation @ coded.rotation.T, torch.eye(4), rtol=0, atol=1e-5)
    turned, plain = ((taken(rows, codec) - rows).norm() for codec in ("opq", "pq"))
    assert float(turned) < 0.5 * float(plain)


def test_rows_are_merged_within_the_distance_alone() -> None:
    """Groups far apart: each is one row, as comparing all pairs would have it; what lies between stays."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 8, generator=generator)
    rows = centres[torch.randint(0, 40, (600,), generator=generator)]
    rows = rows + 0.002 * torch.randn(600, 8, generator=generator)
    coded = encode(rows, codec="dedup")
    found = coded.take(torch.arange(600))
    radius = 0.1 * float(rows.std(correction=0)) * 8**0.5
    assert float((found - rows).norm(dim=1).max()) <= radius
    first = [next(j for j in range(600) if float((rows[j] - rows[i]).norm()) <= radius) for i in range(600)]
    assert torch.equal(found, rows[first])
    assert coded.nbytes() == 4 * 8 * len(set(first)) + -(-600 * 6 // 8)


def test_equal_rows_are_always_merged_and_others_never_under_a_small_number() -> None:
    rows = random_rows(50, 6)
    rows = torch.cat([rows, rows.flip(0)])
    coded = encode(rows, codec="dedup1")
    assert torch.equal(coded.take(torch.arange(100)), rows)
    assert coded.nbytes() == 4 * 50 * 6 + -(-100 * 6 // 8)


def test_bytes_of_a_table_that_nobody_could_hold() -> None:
    """Known without it: 4 bits a number, and 4 bytes for 4 rows of 16 columns."""
    assert named_codec("int4").nbytes_of(10**12, 16) == 10**12 * 9
