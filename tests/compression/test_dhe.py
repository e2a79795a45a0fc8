"""Deep hash embeddings against Python's integers and a decoder put together from torch's own layers."""

import io
import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from embank.compression import Table
from embank.compression.methods.dhe import NUM_BUCKETS, Dhe, DheConfig, codes, encode, largest_primes
from embank.tables import BudgetError, ConfigError, TableSpec, build_method
from tests.compression.oracles import looked_up, materialised, spec_of, table_of


def built(num: int, dim: int, *, options: DheConfig | None = None, budget: float | None = None) -> Dhe:
    method = build_method(spec_of("dhe", num, dim, options=options, budget=budget))
    assert isinstance(method, Dhe)
    return method


def method_of(table: Table) -> Dhe:
    (method,) = table.collection.built_methods()
    assert isinstance(method, Dhe)
    return method


def python_codes(ids: list[int], constants: Tensor) -> list[list[int]]:
    """The hash on integers without a width."""
    return [[(a * x + b) % p % NUM_BUCKETS for a, b, p in constants.T.tolist()] for x in ids]


def is_prime(number: int) -> bool:
    """Miller and Rabin's test, which is exact below 3.2e9 with these bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7):
        power = pow(base, odd, number)
        if power not in (1, number - 1) and all(pow(power, 2**i, number) != number - 1 for i in range(1, twos)):
            return False
    return True


def test_codes_are_those_of_unbounded_integers() -> None:
    constants = built(2**40 + 5, 4, options=DheConfig(width=256)).hash_constants
    assert constants.shape == (3, 256)
    ids = [0, 1, 12_345, 2**24 + 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 + 7, 2**40, 2**62 + 3]
    assert codes(torch.tensor(ids), constants).tolist() == python_codes(ids, constants)


def test_hash_constants() -> None:
    a, b, p = built(10, 4, options=DheConfig(width=1024)).hash_constants.tolist()
    assert p[0] == 2**31 - 1
    assert len(set(p)) == 1024
    assert all(map(is_prime, p))
    assert all(y < x and not any(is_prime(n) for n in range(y + 1, x)) for x, y in itertools.pairwise(p[:30]))
    assert all(0 < x < prime for x, prime in zip(a, p, strict=True))
    assert all(0 <= x < prime for x, prime in zip(b, p, strict=True))
    assert largest_primes(8).tolist() == p[:8]
    other = build_method(TableSpec(name="u", num_embeddings=10, embedding_dim=4, feature_names=["t"], method="dhe"))
    assert isinstance(other, Dhe)
    assert other.hash_constants[0, 0] != a[0], "tables hash by their names"


def test_uniform_codes_fill_their_range_and_tell_all_ids_apart() -> None:
    ids = torch.arange(200_000)
    constants = built(200_000, 4, options=DheConfig(width=1)).hash_constants
    assert constants.shape[1] == 8, "the narrowest decoder's"
    assert codes(ids, constants).unique(dim=0).shape[0] == 200_000
    numbers = encode(ids, constants, "uniform")
    assert numbers.min() >= -1
    assert numbers.max() <= 1
    assert (numbers.mean(0).abs() < 0.01).all()
    wide = encode(torch.arange(2000), built(2000, 4, options=DheConfig(width=512)).hash_constants, "uniform")
    assert (wide.mean(1).abs() < 5 * (3 * 512) ** -0.5).all(), "each id's numbers have mean 0"
    edges = encode(torch.tensor([0]), torch.tensor([[1, 1], [0, NUM_BUCKETS - 1], [2**31 - 1, 2**31 - 1]]), "uniform")
    assert edges.tolist() == [[-1.0, 1.0]]


def test_gaussian_codes_are_normal() -> None:
    constants = built(5000, 4, options=DheConfig(width=16, encoding="gaussian")).hash_constants
    numbers = encode(torch.arange(5000), constants, "gaussian")
    assert numbers.isfinite().all()
    for column in numbers.T:
        assert scipy.stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(numbers.T.numpy()) - np.eye(16)).max() < 0.06


def reference(method: Dhe) -> nn.Sequential:
    """The decoder as torch's own modules, with copies of the method's parameters and statistics."""
    layers: list[nn.Module] = []
    for linear, norm in zip(method.hidden, method.norms, strict=True):
        assert isinstance(linear, nn.Linear)
        copy = nn.BatchNorm1d(linear.out_features)
        copy.load_state_dict(norm.state_dict())
        plain = nn.Linear(linear.in_features, linear.out_features, bias=False)
        plain.load_state_dict(linear.state_dict())
        layers += [plain, copy, nn.Mish()]
    last = nn.Linear(method.last.in_features, method.last.out_features)
    last.load_state_dict(method.last.state_dict())
    return nn.Sequential(*layers, last)


@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_equal_torchs_own_layers(training: bool) -> None:
    table = table_of("dhe", 300, 6, options=DheConfig(width=24, num_layers=3))
    method = method_of(table)
    oracle = reference(method).train(training)
    table.collection.train(training)
    ids = torch.randint(0, 300, (50,), generator=torch.Generator().manual_seed(0))
    numbers = 2 * torch.tensor(python_codes(ids.tolist(), method.hash_constants)).double() / (NUM_BUCKETS - 1) - 1
    out, expected = looked_up(table, ids), oracle(numbers.float())
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    direction = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    (out * direction).sum().backward()
    (expected * direction).sum().backward()
    named = list(itertools.chain(*zip(method.hidden, method.norms, strict=True)))
    ours = [p.grad for module in [*named, method.last] for p in module.parameters()]
    assert len(ours) == len(list(oracle.parameters())) == 3 + 6 + 2
    for gradient, parameter in zip(ours, oracle.parameters(), strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
    statistics = [b for b in oracle.buffers() if b.is_floating_point()]
    kept = [b for norm in method.norms for b in norm.buffers() if b.is_floating_point()]
    for found, wanted in zip(kept, statistics, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("budget", [0.5, 0.02, 0.004, 0.0006])
def test_the_decoder_is_alive_at_every_budget(budget: float) -> None:
    """Before the first step rows differ between ids as much as the plain table's, in training and in evaluation."""
    table = table_of("dhe", 20_000, 16, budget=budget)
    std = (3 * 20_000) ** -0.5
    rows = materialised(table)
    assert rows.std(0).square().mean().sqrt() == pytest.approx(std, rel=0.1)
    assert abs(rows.mean()) < 0.1 * std
    trained = looked_up(table, torch.arange(2000)).detach()
    assert 0.7 * std < trained.std(0).square().mean().sqrt() < 1.4 * std


def train(table: Table, *, steps: int) -> None:
    dense = torch.optim.Adam(table.collection.dense_parameters(), lr=0.01)
    for step in range(steps):
        ids = torch.randint(0, table.spec.num_embeddings, (128,), generator=torch.Generator().manual_seed(step))
        dense.zero_grad()
        (looked_up(table, ids) - (ids % 5)[:, None]).square().mean().backward()
        dense.step()


def test_saved_statistics_give_the_same_rows_and_packing_folds_them_in() -> None:
    table = table_of("dhe", 500, 8, options=DheConfig(width=32))
    before = method_of(table).norms[0].running_mean.clone()
    train(table, steps=20)
    assert not torch.equal(before, method_of(table).norms[0].running_mean)
    buffer = io.BytesIO()
    torch.save(table.collection.state_dict(), buffer)
    buffer.seek(0)
    other = table_of("dhe", 500, 8, options=DheConfig(width=32), seed=9)
    assert not torch.equal(materialised(other), materialised(table))
    other.collection.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(materialised(other), materialised(table))
    torch.testing.assert_close(table.pack().lookup(torch.arange(500)), materialised(table), rtol=1e-4, atol=1e-5)


def test_all_bytes_are_counted() -> None:
    table = table_of("dhe", 500, 8, options=DheConfig(width=32))
    weights = 32 * 32 + 4 * 32 * 32 + 32 * 8
    assert table.nbytes("serving") == 4 * (weights + 5 * 32 + 8) + 12 * 32
    statistics = 5 * (2 * 4 * 32 + 8)
    assert table.nbytes("training") == 4 * (weights + 5 * 2 * 32 + 8) + statistics + 12 * 32


@pytest.mark.parametrize("budget", [1.0, 0.3, 0.05, 0.01])
def test_the_width_is_the_largest_that_fits_and_hashes_shrink_with_it(budget: float) -> None:
    table = table_of("dhe", 9000, 12, budget=budget)
    width = method_of(table).hidden[0].out_features
    assert table.nbytes("serving") <= budget * 4 * 9000 * 12
    wider = table_of("dhe", 9000, 12, options=DheConfig(width=width + 1))
    assert wider.nbytes("serving") > budget * 4 * 9000 * 12
    assert method_of(table).hash_constants.shape[1] == width + width % 2
    assert built(10, 4, options=DheConfig(width=1500, num_layers=1)).hash_constants.shape[1] == 1024


@pytest.mark.parametrize("num_ids", [0, 1])
def test_batches_without_a_variance_use_the_running_statistics(num_ids: int) -> None:
    table = table_of("dhe", 50, 4)
    before = {name: value.clone() for name, value in method_of(table).state_dict().items()}
    out = looked_up(table, torch.arange(num_ids))
    torch.testing.assert_close(out, materialised(table)[:num_ids])
    assert all(torch.equal(value, before[name]) for name, value in method_of(table).state_dict().items())


@pytest.mark.parametrize("dim", [1, 3, 2048])
def test_edge_sizes(dim: int) -> None:
    for num in (1, 2, 9):
        table = table_of("dhe", num, dim)
        rows = materialised(table)
        assert rows.isfinite().all()
        assert 0.3 < rows.square().mean().sqrt() * (3 * num) ** 0.5 < 2
        torch.testing.assert_close(table.pack().lookup(torch.arange(num)), rows)
    huge = built(2**31 + 1, dim, budget=1e-6)
    out = huge.eval().combine((), huge.side(torch.tensor([0, 2**31])))
    assert not torch.equal(out[0], out[1])


def test_refusals() -> None:
    with pytest.raises(
        BudgetError, match=r"method 'dhe' needs a decoder of width 1, 180 bytes, so its floor is budget 0\.45;"
    ):
        built(50, 2, budget=0.3)
    with pytest.raises(ConfigError, match="has num_hashes 7; use an even number from 8 to 4096"):
        built(50, 2, options=DheConfig(num_hashes=7))
    with pytest.raises(ConfigError, match="has num_layers 0; it must be at least 1"):
        built(50, 2, options=DheConfig(num_layers=0))
    with pytest.raises(ConfigError, match=r"has both budget 0\.5 and width 9"):
        built(50, 2, options=DheConfig(width=9), budget=0.5)
