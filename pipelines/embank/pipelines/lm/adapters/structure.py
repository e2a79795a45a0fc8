"""Where a causal language model of transformers has what a memory needs: its decoder, layers, and up-projections."""

from typing import Any

from torch import nn

from embank.tables.errors import ConfigError


def decoder_of(model: Any) -> nn.Module:
    """The decoder below the head: the module that gets token ids and has the layers.

    Raises:
        ConfigError: the model is built in another way.
    """
    decoder = model.base_model if hasattr(model, "base_model") else None
    if not isinstance(decoder, nn.Module) or not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise ConfigError(
            f"a {type(model).__name__} has no list of decoder layers where Llama and Qwen have it "
            "(model.model.layers); a memory can be added to causal language models built like those"
        )
    return decoder


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder's layers."""
    layers = decoder_of(model).layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def up_projection(model: Any, layer: int) -> nn.Linear:
    """The up-projection of a layer's gated feed-forward part.

    Raises:
        ConfigError: the layer has none (experts, or no gate).
    """
    found = getattr(getattr(layers_of(model)[layer], "mlp", None), "up_proj", None)
    if not isinstance(found, nn.Linear):
        raise ConfigError(
            f"layer {layer} of a {type(model).__name__} has no up-projection mlp.up_proj that STEM rows could be added "
            "to; choose layers with a plain gated feed-forward part"
        )
    return found


def attention_of(model: Any, layer: int) -> nn.Module:
    """The attention of a layer.

    Raises:
        ConfigError: the layer has none.
    """
    found = getattr(layers_of(model)[layer], "self_attn", None)
    if not isinstance(found, nn.Module):
        raise ConfigError(f"layer {layer} of a {type(model).__name__} has no self_attn; choose layers with attention")
    return found


def hidden_size(model: Any) -> int:
    """Width of the residual stream."""
    return int(model.config.get_text_config().hidden_size)
