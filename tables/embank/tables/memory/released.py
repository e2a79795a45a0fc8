"""What others have released: an Engram layer of the demo, tables of a layer in one piece, rows of 8 bits.

* deepseek-ai/Engram's demo: `multi_head_embedding.embedding.weight`, all heads of a layer one after the other, and
  projections, norms and a convolution with a module for each branch.
* DeepSeek-V4.1: the same table, of FP8 rows with an exponent for each 32 numbers.
* Qwen's n-gram table: the same, filled up with rows at its end.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from embank.tables.errors import CheckpointError
from embank.tables.memory.engram import Engram
from embank.tables.memory.layouts import EngramLayout
from embank.tables.memory.tables import MemoryTables

SCALE_BLOCK = 32
"""Numbers that share an exponent."""

_BIAS = 127


def fill_layer(memory: MemoryTables, layer: int, rows_RD: Tensor, *, num_rows: int | None = None) -> None:
    """Fills the heads of an Engram layer from one table, in which they lie one after the other.

    Args:
        memory: with Engram tables of the same hash; check multipliers and primes before.
        layer: 0-based.
        rows_RD: the table; what lies behind the last head is left out.
        num_rows: its rows as its own configuration states them, padding included; None for the sum of the primes.

    Raises:
        CheckpointError: no such layer, or a table of another size.
    """
    layout = memory.layouts.get("engram")
    if not isinstance(layout, EngramLayout) or layer not in layout.layer_ids:
        known = list(layout.layer_ids) if isinstance(layout, EngramLayout) else []
        raise CheckpointError(f"this memory has no Engram layer {layer}; it has {known}, counted from 0")
    primes = layout.hash.primes[layer]
    expected = sum(primes) if num_rows is None else num_rows
    if tuple(rows_RD.shape) != (expected, layout.head_dim) or expected < sum(primes):
        raise CheckpointError(
            f"the table of layer {layer} has shape {tuple(rows_RD.shape)}; its {len(primes)} heads need "
            f"({sum(primes)}, {layout.head_dim}) and its configuration says {expected} rows. It is of another hash, or "
            "padded: give num_rows"
        )
    for name, prime, first in zip(layout.table_names(layer), primes, layout.hash.offsets(layer), strict=True):
        memory.collections[layout.kind].set_rows(name, rows_RD[first : first + prime].float())


def dequantized(rows_RD: Tensor, exponents_RB: Tensor) -> Tensor:
    """FP8 rows with shared exponents as fp32.

    Args:
        rows_RD: float8_e4m3fn.
        exponents_RB: uint8, the exponent of each block of 32 numbers, plus 127 (ue8m0).

    Raises:
        CheckpointError: types or shapes that do not go together.
    """
    blocks = -(-rows_RD.shape[1] // SCALE_BLOCK)
    if rows_RD.dtype != torch.float8_e4m3fn or exponents_RB.dtype != torch.uint8:
        raise CheckpointError(
            f"rows are {rows_RD.dtype} and their exponents {exponents_RB.dtype}; they must be float8_e4m3fn and uint8"
        )
    if tuple(exponents_RB.shape) != (len(rows_RD), blocks):
        raise CheckpointError(
            f"rows of shape {tuple(rows_RD.shape)} have exponents of shape {tuple(exponents_RB.shape)}; there must be "
            f"{blocks} for each row"
        )
    scales_RD = torch.exp2(exponents_RB.float() - _BIAS).repeat_interleave(SCALE_BLOCK, dim=1)
    return rows_RD.float() * scales_RD[:, : rows_RD.shape[1]]


@torch.no_grad()
def load_demo_layer(layer: Engram, state: Mapping[str, Tensor]) -> None:
    """Loads the dense part of the demo's `Engram` module.

    Args:
        layer: of the same sizes, with a bias and a convolution.
        state: its `state_dict`; the table in it is for `fill_layer`.

    Raises:
        CheckpointError: a name is missing, or a shape is another; nothing was loaded.
    """
    branches = range(layer.branches)

    def stacked(pattern: str) -> Tensor:
        return torch.cat([_named(state, pattern.format(m)) for m in branches])

    parts = {
        "project.weight": torch.cat([stacked("key_projs.{}.weight"), _named(state, "value_proj.weight")]),
        "project.bias": torch.cat([stacked("key_projs.{}.bias"), _named(state, "value_proj.bias")]),
        "key_gain_Md": stacked("norm1.{}.weight").view(layer.branches, -1),
        "query_gain_Md": stacked("norm2.{}.weight").view(layer.branches, -1),
        "conv_gain_Md": stacked("short_conv.norms.{}.weight").view(layer.branches, -1),
        "conv_weight": _named(state, "short_conv.conv.weight"),
    }
    own = dict(layer.named_parameters())
    for name, value in parts.items():
        if name not in own or own[name].shape != value.shape:
            shape = tuple(own[name].shape) if name in own else "none"
            raise CheckpointError(f"the demo's layer has '{name}' of shape {tuple(value.shape)}; here it is {shape}")
    for name, value in parts.items():
        own[name].copy_(value)


def _named(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise CheckpointError(f"the demo's layer lacks '{name}'")
    return state[name]
