"""Dense parts of Engram layers as others have released them: projections, norms, convolution.

* deepseek-ai/Engram's demo: modules for each branch, a bias, a convolution.
* DeepSeek-V4.1: one projection `wkv` (keys of all branches, then the value) without bias, FP8 in blocks of 32 x 32,
  two gains of which only the product counts, no convolution.
* Qwen3.8-Flash-Next: projections without bias, norms over each stream whose gains are stored less 1, a convolution.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from embank.tables.errors import CheckpointError
from embank.tables.memory.engram import Engram
from embank.tables.memory.released import SCALE_BLOCK, named, scales_of


def load_demo_layer(layer: Engram, state: Mapping[str, Tensor]) -> None:
    """Loads the dense part of the demo's `Engram` module.

    Args:
        layer: of the same sizes, with a bias and a convolution.
        state: its `state_dict`; the table in it is for `fill_layer`.

    Raises:
        CheckpointError: a name is missing, or a shape is another; nothing was loaded.
    """
    what, branches = "the demo's layer", range(layer.branches)

    def stacked(pattern: str) -> Tensor:
        return torch.cat([named(state, pattern.format(m), of=what) for m in branches])

    _load(
        layer,
        {
            "project.weight": torch.cat([stacked("key_projs.{}.weight"), named(state, "value_proj.weight", of=what)]),
            "project.bias": torch.cat([stacked("key_projs.{}.bias"), named(state, "value_proj.bias", of=what)]),
            "key_gain_Md": stacked("norm1.{}.weight").view(layer.branches, -1),
            "query_gain_Md": stacked("norm2.{}.weight").view(layer.branches, -1),
            "conv_gain_Md": stacked("short_conv.norms.{}.weight").view(layer.branches, -1),
            "conv_weight": named(state, "short_conv.conv.weight", of=what),
        },
        what=what,
        copysign=False,
    )


def load_deepseek_layer(layer: Engram, state: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Loads the dense part of an Engram layer of DeepSeek-V4.1; the table is for `fill_deepseek_layer`.

    Args:
        layer: `Engram(..., branches=hc_mult, conv=False, copysign=True, eps=rms_norm_eps)`.
        state: tensors by name.
        prefix: what their names begin with, "layers.1.engram.".

    Raises:
        CheckpointError: a name is missing, or a shape or a setting is another; nothing was loaded.
    """
    what = "the DeepSeek layer"
    weight = named(state, f"{prefix}wkv.weight", of=what)
    if weight.element_size() == 1:
        weight = _block_dequantized(weight, named(state, f"{prefix}wkv.scale", of=what))
    parts = {
        "project.weight": weight,
        "query_gain_Md": named(state, f"{prefix}q_weight", of=what),
        "key_gain_Md": named(state, f"{prefix}k_weight", of=what),
    }
    _load(layer, parts, what=what, copysign=True)


def load_qwen_layer(layer: Engram, state: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Loads the dense part of Qwen's n-gram layer; the table is for `fill_qwen_layer`.

    Its gains are stored less 1. Its convolution goes on through ends of text: give `Engram` no `starts_BT`.

    Args:
        layer: `Engram(..., branches=hc_count, kernel_size=ple_conv_kernel_size, dilation=ngram_size,
            eps=rms_norm_eps)`.
        state: tensors by name.
        prefix: what their names begin with, "model.language_model.layers.1.ple.".

    Raises:
        CheckpointError: a name is missing, or a shape or a setting is another; nothing was loaded.
    """
    what = "the Qwen layer"

    def gain(name: str) -> Tensor:
        stored = named(state, f"{prefix}{name}.weight", of=what)
        if stored.numel() != layer.branches * layer.hidden_dim:
            raise CheckpointError(
                f"{what} has '{name}.weight' of shape {tuple(stored.shape)}; here it is "
                f"{layer.branches} streams of {layer.hidden_dim}"
            )
        return 1 + stored.float().view(layer.branches, layer.hidden_dim)

    keys, value = (named(state, f"{prefix}{name}_proj.weight", of=what) for name in ("key", "value"))
    parts = {
        "project.weight": torch.cat([keys.float(), value.float()]),
        "key_gain_Md": gain("norm_key"),
        "query_gain_Md": gain("norm_query"),
        "conv_gain_Md": gain("norm_conv"),
        "conv_weight": named(state, f"{prefix}conv1d.weight", of=what),
    }
    _load(layer, parts, what=what, copysign=False)


def _block_dequantized(weight: Tensor, scale: Tensor) -> Tensor:
    """FP8 weights with an exponent for each block of 32 x 32, as fp32."""
    blocks = tuple(-(-size // SCALE_BLOCK) for size in weight.shape)
    if (
        weight.dtype != torch.float8_e4m3fn
        or scale.dtype not in (torch.uint8, torch.float8_e8m0fnu)
        or tuple(scale.shape) != blocks
    ):
        raise CheckpointError(
            f"the DeepSeek layer has 'wkv.weight' of {weight.dtype}, {tuple(weight.shape)}, with exponents of "
            f"{scale.dtype}, {tuple(scale.shape)}; they must be float8_e4m3fn and uint8 (or float8_e8m0fnu) of {blocks}"
        )
    scales = scales_of(scale)
    for dim in (0, 1):
        scales = scales.repeat_interleave(SCALE_BLOCK, dim=dim)
    return weight.float() * scales[: weight.shape[0], : weight.shape[1]]


@torch.no_grad()
def _load(layer: Engram, parts: Mapping[str, Tensor], *, what: str, copysign: bool) -> None:
    """Loads all parts of a layer, or none."""
    own = dict(layer.named_parameters())
    for name, value in parts.items():
        if name not in own or own[name].shape != value.shape:
            shape = tuple(own[name].shape) if name in own else "none"
            raise CheckpointError(f"{what} has '{name}' of shape {tuple(value.shape)}; here it is {shape}")
    missing = sorted(set(own) - set(parts))
    if missing:
        raise CheckpointError(f"{what} has no '{missing[0]}', and this layer has one; make it without")
    if layer.copysign != copysign:
        raise CheckpointError(f"{what} wants Engram(..., copysign={copysign})")
    for name, value in parts.items():
        own[name].copy_(value)
