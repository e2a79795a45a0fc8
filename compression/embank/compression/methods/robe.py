"""ROBE: all rows are cut from one small array, at places chosen by a hash.

Desai, Chou, Shrivastava, "Random Offset Block Embedding Array (ROBE) for CriteoTB Benchmark MLPerf DLRM Model: 1000x
Compression and 3.1x Faster Inference", MLSys 2022.

Legend: Z floats per chunk, C chunks per row, R physical rows; the array has R Z floats.
"""

from collections.abc import Sequence
from dataclasses import field, replace
from functools import partial

import torch
from torch import Tensor

from embank.compression.budget.floors import refuse_fixed, refuse_sizes, share, share_text, size_within
from embank.compression.fitting.means import Means
from embank.tables import (
    Allocation,
    BudgetError,
    ConfigError,
    Held,
    JointSpine,
    Method,
    TableSpec,
    Traits,
    default_init,
    option_class,
    own_table,
)
from embank.tables.ids.hashing import hash_rows, mix64, salt64
from embank.tables.method.options import options_of

_CHUNK = 64
_SALT_NBYTES = 8
_BITS = 64
_LEVELS = 1_000_000


@option_class
class RobeConfig:
    """Options of ROBE.

    Args:
        chunk: Z, how many floats of a row lie side by side in the array (the paper's meaning: a row of dim D has D / Z
            chunks); None takes the whole row, or 64.
        signs: each element of each id has a sign by a second hash.
        num_weights: floats in the array, a multiple of the chunk; None takes what the budget allows, or num_embeddings
            * dim.
        array: tables that give the same name share one array; they need the same `chunk`, `num_weights` and `init_std`,
            which `Robe.allocate` sets.
    """

    chunk: int | None = field(default=None, metadata={"choices": (4, 8, 16, 32)})
    signs: bool = field(default=False, metadata={"choices": (False, True)})
    num_weights: int | None = None
    array: str | None = None


class _Shares(Allocation):
    """The same share for every table, what rounding leaves over to the small ones; tables that share an array add
    theirs up and take the initial spread of the largest of them."""

    def share(self, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        fraction = min(1.0, nbytes / sum(spec.plain_nbytes for spec in specs))
        by_array: dict[str, list[TableSpec]] = {}
        for spec in specs:
            name = _options(spec).array
            if name:
                by_array.setdefault(name, []).append(spec)
        shared = {spec.name: spec for group in by_array.values() for spec in _sharing(group, fraction)}
        alone = [spec for spec in specs if spec.name not in shared]
        if alone:
            rest = nbytes - sum(int(fraction * sum(spec.plain_nbytes for spec in group)) for group in by_array.values())
            costs = [partial(_nbytes_at, spec) for spec in alone]
            shared |= {spec.name: spec for spec in share(alone, costs, num_levels=_LEVELS, nbytes=rest)}
        return [shared[spec.name] for spec in specs]


class Robe(JointSpine, Method):
    """Chunk j of a row is the Z floats from a hashed place on, around the end to the beginning.

    The array is stored as rows of Z floats, so that it shards and FBGEMM updates it like any table: a chunk that starts
    anywhere lies in one row and the next, which are both looked up and cut by the offset in `side`. The array's size is
    therefore a multiple of Z, up to Z - 1 floats less than the budget would allow.

    Differences from public implementations: Z is the chunk's length as in the paper (Hetu's Z is the number of chunks);
    hashes are 64 bits wide and salted by the table's name, so nothing limits the number of ids; chunks that reach the
    array's end go on at its beginning without a seam.

    Raises:
        BudgetError: the budget does not hold one chunk and the salt.
        ConfigError: a chunk outside 1 .. 2048, both a budget and a size, or an array that is shared without a common
            shape.

    Example:
        >>> table = build_table(method="robe", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.09925
    """

    Config = RobeConfig
    traits = Traits(allocation=_Shares(), fitting=Means())
    held = Held(
        facts=("chunk", "num_chunks", "num_rows", "has_signs", "dim"),
        on_host=("salt",),
        sizes=("chunk", "num_chunks", "dim"),
    )
    salt: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        config: RobeConfig = self.options
        self.dim, self.has_signs = spec.embedding_dim, config.signs
        self.chunk = _chunk(spec, config)
        self.num_chunks = -(-spec.embedding_dim // self.chunk)
        self.num_rows = _num_rows(spec, config, chunk=self.chunk)
        self.register_buffer("salt", torch.tensor(salt64("robe", spec.name)), persistent=False)
        name = f"robe/{config.array}" if config.array else spec.name
        array = own_table(spec, name=name, num_rows=self.num_rows, width=self.chunk, init=default_init(spec))
        self.physical = (array,) * (2 * self.num_chunks)

    def _starts(self, ids_N: Tensor) -> Tensor:
        return chunk_starts(ids_N, num_chunks=self.num_chunks, num_weights=self.num_rows * self.chunk, salt=self.salt)

    def address_and_side(self, ids_N: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Two rows for each chunk; offsets [N, C] of the chunks in their first rows, then the words [N, ...] of 64
        signs each."""
        starts_NC = self._starts(ids_N)
        rows = (starts_NC // self.chunk).unbind(1)
        addressed = tuple(row_N for first_N in rows for row_N in (first_N, (first_N + 1) % self.num_rows))
        offsets_NC = starts_NC % self.chunk
        if not self.has_signs:
            return addressed, offsets_NC
        return addressed, torch.cat([offsets_NC, sign_words(ids_N, dim=self.dim, salt=self.salt)], dim=1)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        assert side is not None
        pairs_NCW = torch.cat(rows, dim=1).view(-1, self.num_chunks, 2 * self.chunk)
        offsets_NC = side[:, : self.num_chunks] if self.has_signs else side
        places_NCZ = offsets_NC.unsqueeze(2) + torch.arange(self.chunk, device=side.device)
        out_ND = pairs_NCW.gather(2, places_NCZ).flatten(1)
        if out_ND.shape[1] > self.dim:
            out_ND = out_ND[:, : self.dim]
        return out_ND * signs_of(side[:, self.num_chunks :], out_ND) if self.has_signs else out_ND


def _options(spec: TableSpec) -> RobeConfig:
    return options_of(spec, RobeConfig)


def _chunk(spec: TableSpec, config: RobeConfig) -> int:
    chunk = config.chunk or min(spec.embedding_dim, _CHUNK)
    if config.chunk is not None and not 1 <= config.chunk <= 2048:
        raise ConfigError(f"table '{spec.name}' has chunk {config.chunk}; use 1 to 2048 floats")
    return chunk


def _nbytes_at(spec: TableSpec, level: int) -> int:
    """Bytes at a share of `level + 1` millionths: the salt and whole chunks, at least one."""
    chunk_nbytes = 4 * _chunk(spec, _options(spec))
    num_chunks = (spec.plain_nbytes * (level + 1) // _LEVELS - _SALT_NBYTES) // chunk_nbytes
    return max(1, num_chunks) * chunk_nbytes + _SALT_NBYTES


def _sharing(specs: Sequence[TableSpec], fraction: float) -> list[TableSpec]:
    """Specs of tables that share an array, with its size and spread."""
    name, chunk = _options(specs[0]).array, max(_chunk(spec, _options(spec)) for spec in specs)
    for spec in specs:
        _refuse_set(spec, chunk=chunk)
    weights = int(fraction * sum(spec.plain_nbytes for spec in specs) - _SALT_NBYTES * len(specs)) // 4
    weights -= weights % chunk
    if weights < chunk:
        floor = share_text(4 * chunk + _SALT_NBYTES * len(specs), sum(spec.plain_nbytes for spec in specs))
        raise BudgetError(
            f"array '{name}' of {len(specs)} tables of method 'robe' needs one chunk and the salts, so its floor is "
            f"budget {floor}; the budget is {fraction:.6g}. Raise the budget"
        )
    largest = max(specs, key=lambda spec: spec.num_embeddings)
    std = largest.init_std or (3 * largest.num_embeddings) ** -0.5
    return [
        replace(spec, budget=None, init_std=std, options=replace(_options(spec), chunk=chunk, num_weights=weights))
        for spec in specs
    ]


def _refuse_set(spec: TableSpec, *, chunk: int) -> None:
    """Refuses options of a table that sharing an array under one budget would override."""
    options = _options(spec)
    refuse_fixed(spec, num_weights=options.num_weights)
    if options.chunk not in (None, chunk):
        raise ConfigError(
            f"table '{spec.name}' has chunk {options.chunk}, but array '{options.array}' has a table with chunk "
            f"{chunk}; give all of its tables the same"
        )


def _num_rows(spec: TableSpec, config: RobeConfig, *, chunk: int) -> int:
    """Physical rows of Z floats by the options, or as many as the budget has room for."""
    refuse_sizes(spec, num_weights=config.num_weights)
    if config.array is not None and (config.num_weights is None or spec.init_std is None):
        raise ConfigError(
            f"table '{spec.name}' shares array '{config.array}' but does not say its size; let Robe.allocate share the "
            "bytes, or give all tables of the array the same chunk, num_weights and init_std"
        )
    if config.num_weights is not None:
        if config.num_weights % chunk:
            raise ConfigError(
                f"table '{spec.name}' has num_weights {config.num_weights}, which is no multiple of its chunk {chunk}; "
                f"use {-(-config.num_weights // chunk) * chunk}"
            )
        return config.num_weights // chunk
    return size_within(
        spec,
        default=-(-spec.num_embeddings * spec.embedding_dim // chunk),
        room=lambda nbytes: (nbytes - _SALT_NBYTES) // (4 * chunk),
        needs=f"one chunk of {chunk} and its salt",
        floor_nbytes=4 * chunk + _SALT_NBYTES,
    )


def chunk_starts(ids_N: Tensor, *, num_chunks: int, num_weights: int, salt: int | Tensor) -> Tensor:
    """Where each chunk starts in the array, int64 [N, C]: a hash of the id, the table's salt and the chunk's number."""
    mixed_NC = mix64(ids_N, salt=salt).unsqueeze(1)
    if num_chunks > 1:
        mixed_NC = mixed_NC + torch.arange(num_chunks, device=ids_N.device)
    return hash_rows(mixed_NC, num_rows=num_weights, salt=0)


def sign_words(ids_N: Tensor, *, dim: int, salt: int | Tensor) -> Tensor:
    """A random bit for each element of each row, in int64 words of 64."""
    words = torch.arange(-(-dim // _BITS), device=ids_N.device)
    return mix64(mix64(ids_N, salt=salt)[:, None] - 1 - words)


def signs_of(words: Tensor, like_ND: Tensor) -> Tensor:
    """+1 or -1 by the bits of the words, least significant first."""
    bits = words[:, :, None] >> torch.arange(_BITS, device=words.device) & 1
    return (2 * bits.flatten(1)[:, : like_ND.shape[1]] - 1).to(like_ND.dtype)
