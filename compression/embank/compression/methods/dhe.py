"""Deep hash embeddings: no table at all, a network maps many hashes of an id to its row.

Kang, Cheng, Yao, Yi, Chen, Hong, Chi, "Learning to Embed Categorical Features without Embedding Tables for
Recommendation", KDD 2021.

Legend: K hashes of an id, W width of a hidden layer, S ids of a sample.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cache, partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embank.compression.budget.floors import refuse_below_one, share, size_within
from embank.compression.fitting.regression import Regression
from embank.tables import (
    Allocation,
    ConfigError,
    Held,
    Method,
    Served,
    Spine,
    TableSpec,
    Traits,
    default_init,
    option_class,
)
from embank.tables.ids.hashing import hash_rows, salt64, seeded
from embank.tables.method.modes import is_followed, statistics_move
from embank.tables.method.options import options_of

Encoding = Literal["uniform", "gaussian"]

NUM_BUCKETS = 1_000_000
MIN_HASHES = 8
MAX_HASHES = 4096
_WIDTH = 64
_SAMPLE = 256
_IDS_PER_CHUNK = 4096


@option_class
class DheConfig:
    """Options of deep hash embeddings.

    Args:
        width: of the decoder's hidden layers; None takes the largest that the budget allows, or 64 without one.
        num_layers: hidden layers.
        num_hashes: at most this many hashes; a narrower decoder gets as many as it is wide, and at least 8.
        encoding: hashes become numbers in [-1, 1] ("uniform") or, two by two, of a normal distribution ("gaussian").
    """

    width: int | None = None
    num_layers: int = field(default=5, metadata={"choices": (2, 3, 5)})
    num_hashes: int = field(default=1024, metadata={"choices": (256, 1024)})
    encoding: Encoding = "uniform"


class _CommonWidth(Allocation):
    """The largest common width that fits, and what is left to the small tables."""

    def share(self, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        costs = [partial(_nbytes_at, spec, _options(spec)) for spec in specs]
        return share(specs, costs, num_levels=_num_levels(nbytes), nbytes=nbytes)


class Dhe(Method):
    """Codes from K hashes `((a x + b) mod p) mod 1,000,000`, decoded by layers of Linear, batch norm and Mish.

    Ids travel as the method's side input; there are no physical tables and nothing to shard.

    Differences from public implementations: the hash is computed in int64, where no product overflows for any id (32
    bits do, and make half of the codes negative); each hash has a prime of its own, just below 2**31, so that two ids
    can't agree in all of them (a prime near the number of buckets makes `x` and `x + p` equal); weights start as He et
    al. (ICCV 2015) have it and batch norm with the statistics of a sample of ids, so that the decoder tells ids apart
    before its first step; the last layer is scaled to give rows the plain table's spread; the number of hashes shrinks
    with the width, where a fixed 1,024 would leave a small budget's weights in the first layer alone. Hidden layers
    have no bias of their own, batch norm's does its work.

    A training batch of fewer than two ids has no variance; it is normalised by the running statistics.

    Raises:
        BudgetError: the budget is below hidden layers of width 1.
        ConfigError: an option out of range, or both a budget and a width.

    Example:
        >>> table = build_table(method="dhe", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> {name: tuple(rows.shape) for name, rows in table.collection.weights().items()}
        {}
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.0835
    """

    Config = DheConfig
    traits = Traits(allocation=_CommonWidth(), fitting=Regression())
    hash_constants: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        options: DheConfig = self.options
        self.encoding: Encoding = options.encoding
        widths = layer_widths(spec, options, width=_width(spec, options))
        self.register_buffer("hash_constants", hash_constants(widths[0], salt=salt64("dhe", spec.name)))
        with seeded(seed, "method", spec.name):
            self.hidden = nn.ModuleList([nn.Linear(a, b, bias=False) for a, b in pairwise(widths[:-1])])
            self.norms = nn.ModuleList([nn.BatchNorm1d(width) for width in widths[1:-1]])
            self.last = nn.Linear(widths[-2], widths[-1])
            self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """He weights, batch norm with the statistics of a sample, rows centred and as spread as the plain table's."""
        plain = default_init(self.spec)
        std = plain.scale / (3**0.5 if plain.kind == "uniform" else 1)
        num_ids = min(_SAMPLE, self.spec.num_embeddings)
        ids_S = torch.arange(num_ids) * self.spec.num_embeddings // num_ids
        x_SW = encode(ids_S, self.hash_constants, self.encoding)
        for linear, norm in self._layers():
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            x_SW = linear(x_SW)
            if num_ids > 1:
                norm.running_mean = x_SW.mean(0)
                # Of few ids, a unit's own says little.
                norm.running_var = x_SW.var(0).mean().expand(x_SW.shape[1]).clone()
            x_SW = F.mish(self._normalise(norm, x_SW, by_batch=False))
        nn.init.kaiming_normal_(self.last.weight, nonlinearity="relu")
        rows_SD = F.linear(x_SW, self.last.weight)
        mean_D = rows_SD.mean(0) if num_ids > 1 else torch.zeros(self.spec.embedding_dim)
        scale = std / (rows_SD - mean_D).square().mean().sqrt().clamp(min=1e-12)
        self.last.weight.mul_(scale)
        self.last.bias.copy_(-scale * mean_D)

    def _layers(self) -> list[tuple[nn.Linear, nn.BatchNorm1d]]:
        return list(zip(self.hidden, self.norms, strict=True))  # type: ignore[arg-type]

    def _normalise(self, norm: nn.BatchNorm1d, x_NW: Tensor, *, by_batch: bool) -> Tensor:
        """By the batch, which then moves the running statistics unless these are held, or by these."""
        needs_running = not by_batch or statistics_move()
        return F.batch_norm(
            x_NW,
            norm.running_mean if needs_running else None,
            norm.running_var if needs_running else None,
            norm.weight,
            norm.bias,
            training=by_batch,
            momentum=norm.momentum or 0.0,
            eps=norm.eps,
        )

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return ()

    def side(self, ids_N: Tensor) -> Tensor:
        return ids_N

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        assert side is not None
        x_NW = encode(side, self.hash_constants, self.encoding)
        for linear, norm in self._layers():
            x_NW = F.mish(self._normalise(norm, linear(x_NW), by_batch=self.training and side.numel() > 1))
        out_ND: Tensor = self.last(x_NW)
        return out_ND

    def folded_layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each hidden layer, with the running statistics of its batch norm folded in."""
        layers = []
        for linear, norm in self._layers():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale_W = norm.weight / (norm.running_var + norm.eps).sqrt()
            layers.append((linear.weight * scale_W[:, None], norm.bias - norm.running_mean * scale_W))
        return layers

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        return Served(spine=Decoder(self), matrices={}, lookups=())


class Decoder(Spine):
    """The network as it is served: batch norm is part of its weights.

    Args:
        method: the trained network.
    """

    held = Held(facts=("num_layers", "encoding"), sizes=("num_layers",))
    hash_constants: Tensor

    def __init__(self, method: Dhe) -> None:
        super().__init__()
        self.encoding = method.encoding
        self.register_buffer("hash_constants", method.hash_constants)
        layers = [*method.folded_layers(), (method.last.weight, method.last.bias)]
        self.num_layers = len(layers) - 1
        for i, (weight, bias) in enumerate(layers):
            self.register_buffer(f"weight{i}", weight.detach())
            self.register_buffer(f"bias{i}", bias.detach())

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return ()

    def side(self, ids_N: Tensor) -> Tensor:
        return ids_N

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        assert side is not None
        if is_followed() or side.numel() <= _IDS_PER_CHUNK:
            return self._decoded(side)
        return torch.cat([self._decoded(part) for part in torch.split(side, _IDS_PER_CHUNK)])

    def _decoded(self, ids_N: Tensor) -> Tensor:
        x_NW = encode(ids_N, self.hash_constants, self.encoding)
        for i in range(self.num_layers):
            x_NW = F.mish(F.linear(x_NW, self.get_buffer(f"weight{i}"), self.get_buffer(f"bias{i}")))
        return F.linear(x_NW, self.get_buffer(f"weight{self.num_layers}"), self.get_buffer(f"bias{self.num_layers}"))


def _options(spec: TableSpec) -> DheConfig:
    return options_of(spec, DheConfig)


def layer_widths(spec: TableSpec, options: DheConfig, *, width: int) -> tuple[int, ...]:
    """Hashes, hidden widths and the dim."""
    num_hashes = min(options.num_hashes, max(MIN_HASHES, width))
    num_hashes += num_hashes % 2  # the gaussian encoding takes them two by two
    return (num_hashes, *[width] * options.num_layers, spec.embedding_dim)


def decoder_nbytes(widths: Sequence[int]) -> int:
    """Serving bytes: weights and biases with batch norm folded in, and three 32-bit constants per hash."""
    return 4 * sum(a * b + b for a, b in pairwise(widths)) + 12 * widths[0]


def _nbytes_at(spec: TableSpec, options: DheConfig, level: int) -> int:
    return decoder_nbytes(layer_widths(spec, options, width=level + 1))


def _num_levels(nbytes: int) -> int:
    """Widths that could fit: each column of the first layer alone takes 8 weights."""
    return max(1, nbytes // (4 * MIN_HASHES))


def _width(spec: TableSpec, options: DheConfig) -> int:
    """The hidden width by the options, or the largest within the budget."""
    refuse_below_one(spec, num_layers=options.num_layers)
    if not MIN_HASHES <= options.num_hashes <= MAX_HASHES or options.num_hashes % 2:
        raise ConfigError(
            f"table '{spec.name}' has num_hashes {options.num_hashes}; use an even number from {MIN_HASHES} to "
            f"{MAX_HASHES}"
        )
    cost = partial(_nbytes_at, spec, options)
    return size_within(
        spec,
        width=options.width,
        default=_WIDTH,
        room=lambda nbytes: bisect_right(range(_num_levels(nbytes)), nbytes, key=cost),
        needs="a decoder of width 1",
        floor_nbytes=cost(0),
    )


@cache
def largest_primes(count: int) -> Tensor:
    """The largest primes below 2**31, int64 [count], by the sieve of Eratosthenes over as much as they need."""
    stop, size = 2**31, 64 * count + 1024  # near 2**31 one number in 21 is prime
    start, root = stop - size, 46_341
    small = torch.ones(root + 1, dtype=torch.bool)
    small[:2] = False
    is_prime = torch.ones(size, dtype=torch.bool)
    for factor in range(2, root + 1):
        if small[factor]:
            small[factor * factor :: factor] = False
            is_prime[-start % factor :: factor] = False
    return (is_prime.nonzero()[:, 0] + start).flip(0)[:count]


def hash_constants(num_hashes: int, *, salt: int) -> Tensor:
    """The a, b and p of each hash, int32 [3, K]: all below 2**31, the primes distinct."""
    numbers = torch.arange(2 * num_hashes)
    a_K, b_K = hash_rows(numbers, num_rows=2**30, salt=salt).view(2, num_hashes)
    return torch.stack([a_K + 1, b_K, largest_primes(num_hashes)]).int()


def codes(ids_N: Tensor, hash_constants: Tensor) -> Tensor:
    """`((a x + b) mod p) mod 1,000,000`, int64 [N, K]: exact, since x is reduced first and a x stays below 2**61."""
    a_K, b_K, p_K = hash_constants.long()
    hashed_NK: Tensor = (ids_N[:, None] % p_K * a_K + b_K) % p_K
    return hashed_NK % NUM_BUCKETS


def encode(ids_N: Tensor, hash_constants: Tensor, encoding: Encoding) -> Tensor:
    """Codes as float32 [N, K] in [-1, 1], or by the transform of Box and Muller (1958) as standard normal values."""
    codes_NK = codes(ids_N, hash_constants)
    if encoding == "uniform":
        return (2 * codes_NK - (NUM_BUCKETS - 1)).float() / (NUM_BUCKETS - 1)
    first, second = ((codes_NK + 1).float() / NUM_BUCKETS).chunk(2, dim=1)
    radius = (-2 * first.log()).sqrt()
    angle = 2 * torch.pi * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
