"""A network for narrower fields, cut out of one for wide fields whose last columns are zero."""

from dataclasses import replace

import torch
from torch import Tensor

from embank.ctr_models.network import Network
from embank.tables.errors import ConfigError

_NUM_ROWS = 64
"""Random rows on which the two networks are compared."""


def narrowed(network: Network, dims: tuple[int, ...]) -> Network:
    """The network over the first columns of each field, equal to the given one wherever the other columns are zero.

    What reads a column that is always zero is left out: columns of first layers, and where columns are passed on (cross
    layers) also rows.

    Args:
        network: in training or evaluation mode, which the result is in as well.
        dims: columns of each field that are kept, in the order of `network.inputs.names`.

    Raises:
        ConfigError: a dim is larger than the field's, or the model makes something of columns that are zero (`dcn`,
            whose cross layers add a bias to them; gates of `finalmlp` that read single fields).

    Example:
        >>> from embank.ctr_models import Inputs, build_network
        >>> wide = build_network("deepfm", inputs=Inputs(names=("user", "item"), dims=(8, 8), num_dense=0))
        >>> narrowed(wide, (8, 3)).deep.first_weight.shape
        torch.Size([400, 11])
    """
    inputs = network.inputs
    if len(dims) != inputs.num_fields or any(new > old for new, old in zip(dims, inputs.dims, strict=False)):
        raise ConfigError(
            f"fields of dims {inputs.dims} can't be cut to {dims}; give one dim for each, not above its own"
        )
    with torch.random.fork_rng(devices=[]):
        small = type(network)(network.config, inputs=replace(inputs, dims=dims, padded_dim=inputs.common_dim))
    kept_E = kept_columns(inputs.dims, dims)
    wide, own = network.state_dict(), small.state_dict()
    cut = {name: _cut(wide[name], value.shape, kept_E, offset=_offset(network)) for name, value in own.items()}
    if wide.keys() != own.keys() or any(value is None for value in cut.values()):
        raise _can_not(network)
    small.load_state_dict(cut)
    small.to(next(network.parameters()).device).train(network.training)
    _refuse_unequal(network, small, kept_E)
    return small


def kept_columns(wide: tuple[int, ...], narrow: tuple[int, ...]) -> Tensor:
    """Of fields side by side, the columns that cutting each to its narrow dim keeps, int64 [sum of narrow]."""
    starts = torch.tensor([0, *wide]).cumsum(0).tolist()
    return torch.cat([torch.arange(start, start + dim) for start, dim in zip(starts, narrow, strict=False)])


def _offset(network: Network) -> int:
    """Columns in front of the embeddings where a layer reads all inputs side by side."""
    flat = getattr(network, "flat", None)
    if flat is not None:
        return int(flat.width - flat.num_embedding_columns)
    bottom = getattr(network, "bottom", None)
    return 0 if bottom is None else int(bottom.out_features)


def _cut(value: Tensor, shape: torch.Size, kept_E: Tensor, *, offset: int) -> Tensor | None:
    """A parameter of the smaller shape; None if another axis than that of all inputs differs."""
    num_wide = [wide - narrow for wide, narrow in zip(value.shape, shape, strict=True) if wide != narrow]
    for axis, (wide, narrow) in enumerate(zip(value.shape, shape, strict=True)):
        if wide == narrow:
            continue
        num_embedding = kept_E.numel() + num_wide[0]
        if wide - narrow != num_wide[0] or wide < offset + num_embedding:
            return None
        kept = torch.cat([torch.arange(offset), kept_E + offset, torch.arange(offset + num_embedding, wide)])
        value = value.index_select(axis, kept.to(value.device))
    return value


@torch.no_grad()
def _refuse_unequal(wide: Network, narrow: Network, kept_E: Tensor) -> None:
    """Compares the two on random rows.

    Raises:
        ConfigError: they differ.
    """
    device, inputs = next(wide.parameters()).device, wide.inputs
    generator = torch.Generator().manual_seed(0)
    dense, embeddings, weights = (
        torch.randn(_NUM_ROWS, width, generator=generator)
        for width in (inputs.num_dense, kept_E.numel(), inputs.num_fields if wide.first_order else 0)
    )
    padded = torch.zeros(_NUM_ROWS, inputs.width).index_copy(1, kept_E, embeddings)
    was_training = wide.training
    wide.eval()
    narrow.eval()
    expected = wide(*(part.to(device) for part in (dense, padded, weights)))
    found = narrow(*(part.to(device) for part in (dense, embeddings, weights)))
    wide.train(was_training)
    narrow.train(was_training)
    scale = float(expected.abs().max()) or 1.0
    if not torch.allclose(found, expected, rtol=0, atol=1e-4 * scale):
        raise _can_not(wide)


def _can_not(network: Network) -> ConfigError:
    return ConfigError(
        f"{type(network).__name__} makes something of columns that are zero, so narrower fields can't be cut out of "
        "it; train it anew with these dims"
    )
