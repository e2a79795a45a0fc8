"""Rows that others have released: tables of an Engram layer in one piece or in shards, and rows of 8 bits.

* deepseek-ai/Engram's demo: `multi_head_embedding.embedding.weight`, all heads of a layer one after the other.
* DeepSeek-V4.1: the same table, `embed.weight`, of FP8 rows with an exponent for each 32 numbers, `embed.scale`.
* Qwen3.8-Flash-Next: the same in shards, `ple_embedding.ngram_embedding.shard_0.weight`, filled up with rows at its
  end, beside the multipliers, primes and offsets of its hash.

Dense parts of these layers are in `embank.tables.memory.released_layers`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from embank.tables.collections.state import WIDER_ROWS, refuse_beyond
from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.memory.layouts import EngramConfig, EngramLayout
from embank.tables.memory.tables import MemoryTables

SCALE_BLOCK = 32
"""Numbers that share an exponent."""

_BIAS = 127
_QWEN = "ple_embedding."
_SHARD = re.compile(r"shards?[._](\d+)\.weight")
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.")


def fill_layer(
    memory: MemoryTables,
    layer: int,
    rows_RD: Tensor | Sequence[Tensor],
    *,
    num_rows: int | None = None,
    exponents_RB: Tensor | None = None,
) -> None:
    """Fills the heads of an Engram layer from one table, in which they lie one after the other; head by head, so that
    a large table is never whole in fp32.

    Args:
        memory: with Engram tables of the same hash; check multipliers and primes before.
        layer: 0-based.
        rows_RD: the table, or shards of it in their order; what lies behind the last head is left out.
        num_rows: its rows as its own configuration states them, padding included; None for the sum of the primes.
        exponents_RB: of FP8 rows, see `dequantized`.

    Raises:
        CheckpointError: no such layer, or a table of another size; nothing was written.
        ConfigError: the memory's tier has a type that can't hold the rows; nothing was written.
    """
    layout = _engram_of(memory, layer)
    shards = [rows_RD] if isinstance(rows_RD, Tensor) else list(rows_RD)
    primes = layout.hash.primes[layer]
    expected = sum(primes) if num_rows is None else num_rows
    shape = (sum(len(shard) for shard in shards), *{shard.shape[1:] for shard in shards}.pop()) if shards else (0,)
    if any(shard.shape[1:] != shape[1:] for shard in shards):
        raise CheckpointError(f"the shards of layer {layer} have rows of several widths")
    if shape != (expected, layout.head_dim) or expected < sum(primes):
        raise CheckpointError(
            f"the table of layer {layer} has shape {shape}; its {len(primes)} heads need "
            f"({sum(primes)}, {layout.head_dim}) and its configuration says {expected} rows. It is of another hash, or "
            "padded: give num_rows"
        )
    if exponents_RB is not None:
        _refuse_other_exponents(shape, {shard.dtype for shard in shards}, exponents_RB)
    elif any(shard.element_size() == 1 for shard in shards):
        raise CheckpointError(
            f"the table of layer {layer} has rows of {shards[0].dtype}, which mean nothing without their exponents; "
            "give exponents_RB"
        )
    collection = memory.collections[layout.kind]

    def heads() -> Iterator[tuple[str, Tensor]]:
        for name, prime, first in zip(layout.table_names(layer), primes, layout.hash.offsets(layer), strict=True):
            head_RD = _span(shards, first, first + prime)
            if exponents_RB is not None:
                head_RD = dequantized(head_RD, exponents_RB[first : first + prime])
            yield name, head_RD

    if collection.tier.is_half:  # all heads before the first is written
        for name, head_RD in heads():
            refuse_beyond(head_RD, collection.tier.torch_dtype, what=f"rows of table '{name}'", cure=WIDER_ROWS)
    for name, head_RD in heads():
        collection.set_rows(name, head_RD.float())


def _engram_of(memory: MemoryTables, layer: int) -> EngramLayout:
    layout = memory.layouts.get("engram")
    if not isinstance(layout, EngramLayout) or layer not in layout.layer_ids:
        known = list(layout.layer_ids) if isinstance(layout, EngramLayout) else []
        raise CheckpointError(f"this memory has no Engram layer {layer}; it has {known}, counted from 0")
    return layout


def _span(shards: Sequence[Tensor], first: int, last: int) -> Tensor:
    """Rows `first` to `last` of shards that follow each other."""
    pieces, start = [], 0
    for shard in shards:
        low, high = max(first, start) - start, min(last, start + len(shard)) - start
        if low < high:
            pieces.append(shard[low:high])
        start += len(shard)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def dequantized(rows_RD: Tensor, exponents_RB: Tensor) -> Tensor:
    """FP8 rows with shared exponents as fp32.

    Args:
        rows_RD: float8_e4m3fn.
        exponents_RB: uint8 or float8_e8m0fnu, the exponent of each block of 32 numbers, plus 127 (ue8m0).

    Raises:
        CheckpointError: types or shapes that do not go together.
    """
    _refuse_other_exponents(tuple(rows_RD.shape), {rows_RD.dtype}, exponents_RB)
    scales_RD = scales_of(exponents_RB).repeat_interleave(SCALE_BLOCK, dim=1)
    return rows_RD.float() * scales_RD[:, : rows_RD.shape[1]]


def scales_of(exponents: Tensor) -> Tensor:
    """What ue8m0 exponents mean, fp32."""
    return torch.exp2(exponents.view(torch.uint8).float() - _BIAS)


def _refuse_other_exponents(shape: tuple[int, ...], dtypes: set[torch.dtype], exponents_RB: Tensor) -> None:
    if dtypes != {torch.float8_e4m3fn} or exponents_RB.dtype not in (torch.uint8, torch.float8_e8m0fnu):
        raise CheckpointError(
            f"rows are {' and '.join(map(str, dtypes))} and their exponents {exponents_RB.dtype}; they must be "
            "float8_e4m3fn and uint8 (or float8_e8m0fnu)"
        )
    blocks = -(-shape[1] // SCALE_BLOCK)
    if tuple(exponents_RB.shape) != (shape[0], blocks):
        raise CheckpointError(
            f"rows of shape {shape} have exponents of shape {tuple(exponents_RB.shape)}; there must be "
            f"{blocks} for each row"
        )


def fill_deepseek_layer(memory: MemoryTables, layer: int, state: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Fills an Engram layer from DeepSeek-V4.1's `embed.weight` and `embed.scale`.

    Args:
        memory: its configuration is the checkpoint's: `engram_layer_ids`, `engram_vocab_size` rows per order,
            `engram_n_heads`, `engram_max_ngram_size`, seed 0, and the tokenizer's compression.
        layer: 0-based.
        state: tensors by name.
        prefix: what their names begin with, "layers.1.engram.".

    Raises:
        ConfigError: the names are those of another layer.
        CheckpointError: a name is missing, or a table of another size; nothing was written.
    """
    if _engram_of(memory, layer).hash.seed is not None:  # the layer's number has drawn the multipliers
        _refuse_other_number(layer, prefix, cure="Make the memory of the checkpoint's own numbers")
    rows_RD = named(state, f"{prefix}embed.weight", of="the DeepSeek layer")
    scale = None if rows_RD.element_size() > 1 else named(state, f"{prefix}embed.scale", of="the DeepSeek layer")
    fill_layer(memory, layer, rows_RD, exponents_RB=scale)


def qwen_config(state: Mapping[str, Tensor], *, layer: int, end_token: int, prefix: str = "") -> EngramConfig:
    """The settings of Qwen's n-gram tables, of the constants that a checkpoint has beside them.

    Make the layout of it with a `TokenCompression` of `compress=False` and `num_ids` the model's `vocab_size`, and with
    the end of text as `pad_token`.

    Args:
        state: tensors by name.
        layer: 0-based (the checkpoint's own list counts from 1).
        end_token: the end of text, at which n-grams begin anew.
        prefix: what the names begin with, "model.language_model.layers.1.ple.".

    Raises:
        ConfigError: the names are those of another layer.
        CheckpointError: a name is missing, or constants that do not go together.
    """
    _refuse_other_number(layer, prefix, cure="For another layer of a model of yours, give tensors without the prefix")
    multipliers, sizes, shards = *_qwen_constants(state, prefix)[:2], qwen_shards(state, prefix=prefix)
    orders = len(multipliers) - 1
    if orders < 1 or not sizes or len(sizes) % orders:
        raise CheckpointError(
            f"the Qwen layer has {len(multipliers)} multipliers and {len(sizes)} heads; they must be N, and as many "
            "heads for each order from 2 to N"
        )
    num_heads = len(sizes) // orders
    return EngramConfig(
        layer_ids=[layer],
        rows_per_order=sizes[::num_heads],
        memory_dim=len(sizes) * shards[0].shape[1],
        max_ngram=len(multipliers),
        num_heads=num_heads,
        multipliers={layer: multipliers},
        end_token=end_token,
    )


def _refuse_other_number(layer: int, prefix: str, *, cure: str) -> None:
    """Refuses a layer that the names of its tensors give another number, as one of a list that counts from 1."""
    match = _LAYER.match(prefix)
    if match is not None and int(match[1]) != layer:
        raise ConfigError(
            f"layer {layer} is to be read from '{prefix}', which is layer {match[1]}: names in checkpoints count from "
            f"0, and so do layers here (a published list may count from 1). {cure}"
        )


def qwen_shards(state: Mapping[str, Tensor], *, prefix: str = "") -> list[Tensor]:
    """The shards of Qwen's n-gram table in their order (shard 10 stands behind shard 9, not behind shard 1).

    Raises:
        CheckpointError: one is missing, or there are none.
    """
    table = f"{prefix}{_QWEN}ngram_embedding."
    if f"{table}weight" in state:
        return [state[f"{table}weight"]]
    found = {
        int(match[1]): name
        for name in state
        if name.startswith(table) and (match := _SHARD.fullmatch(name.removeprefix(table)))
    }
    missing = sorted(set(range(max(found, default=0) + 1)) - set(found))
    if missing:
        raise CheckpointError(
            f"the Qwen layer lacks shard {missing[0]} of its table ('{table}shard_{missing[0]}.weight')"
        )
    return [state[found[number]] for number in sorted(found)]


def fill_qwen_layer(memory: MemoryTables, layer: int, state: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Fills an Engram layer from the shards of Qwen's n-gram table; rows behind the last head are left out.

    Args:
        memory: of `qwen_config`.
        layer: 0-based.
        state: tensors by name.
        prefix: what the names begin with.

    Raises:
        CheckpointError: a shard is missing, constants that are not those of the memory, rows of fewer bits than
            bf16 (packed checkpoints), or a table of another size; nothing was written.
    """
    hash = _engram_of(memory, layer).hash
    own = (hash.multipliers[layer], hash.primes[layer], tuple(hash.offsets(layer)))
    for name, theirs, mine in zip(_CONSTANTS, _qwen_constants(state, prefix), own, strict=True):
        if tuple(theirs) != tuple(mine):
            raise CheckpointError(
                f"the Qwen layer has {name} {theirs}; this memory has {list(mine)}, so that every n-gram would read "
                "another row. Make it of qwen_config"
            )
    if hash.end_id is None:
        raise CheckpointError("Qwen's n-grams begin anew at the end of text, and this memory has no end_token")
    shards = qwen_shards(state, prefix=prefix)
    for number, shard in enumerate(shards):
        if not shard.is_floating_point() or shard.element_size() < 2:
            raise CheckpointError(
                f"shard {number} of the Qwen layer has numbers of {shard.dtype}: a packed checkpoint, whose form "
                "embank does not know. Use the released one, of bf16"
            )
    fill_layer(memory, layer, shards, num_rows=sum(len(shard) for shard in shards))


_CONSTANTS = ("layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets")


def _qwen_constants(state: Mapping[str, Tensor], prefix: str) -> list[list[int]]:
    """Multipliers, primes and offsets of the hash."""
    found = [named(state, f"{prefix}{_QWEN}{name}", of="the Qwen layer") for name in _CONSTANTS]
    for name, constants in zip(_CONSTANTS, found, strict=True):
        if constants.dtype != torch.int64:
            raise CheckpointError(
                f"the Qwen layer's {name} are {constants.dtype}; they must be int64, or n-grams read other rows"
            )
    return [constants.flatten().tolist() for constants in found]


def named(state: Mapping[str, Tensor], name: str, *, of: str) -> Tensor:
    """A tensor by name.

    Raises:
        CheckpointError: there is none.
    """
    if name not in state:
        raise CheckpointError(f"{of} lacks '{name}'")
    return state[name]
