"""The tokens so far, kept inside a model's cache: whatever is done to the cache is done to them.

`generate` reorders a cache for beams, crops it when a draft is rejected, repeats and selects rows, copies it. A history
that stood beside it would have to be told; one more layer of the cache is, by the same loop as all others.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from embank.tables.errors import ConfigError


class HistoryLayer(CacheLayerMixin):  # type: ignore[misc] # transformers is skipped by mypy
    """Marked ids [B, S] of all positions that the cache holds, as one more of its layers.

    Args:
        key: of the memory whose history it is.
        marked_BS: the positions so far.
    """

    is_compileable = True  # what a cache is, is for the model's own layers to say: masks depend on it
    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, key: str, marked_BS: Tensor) -> None:
        super().__init__()
        self.key, self.marked_BS = key, marked_BS

    def extend(self, marked_BT: Tensor) -> None:
        """Goes on by some positions."""
        self.marked_BS = torch.cat([self.marked_BS, marked_BT], dim=1)

    def get_seq_length(self) -> int:
        """Positions so far."""
        return self.marked_BS.shape[1]

    def get_max_length(self) -> int:
        """None: it grows."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if it were attended to."""
        return self.get_seq_length() + query_length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: it holds no keys."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refused: there is no such layer in the model."""
        raise ConfigError(
            f"the cache's layer {type(self).__name__} holds tokens, and the model wrote keys to it: the cache was made "
            "for a model of fewer layers. Make a cache for this one"
        )

    def reset(self) -> None:
        """Forgets everything."""
        self.marked_BS = self.marked_BS[:, :0]

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last positions; their number is given negative."""
        if tokens_to_remove:
            self.marked_BS = self.marked_BS[:, : max(0, self.get_seq_length() - abs(tokens_to_remove))]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Goes on from other rows."""
        self.marked_BS = self.marked_BS[beam_idx.to(self.marked_BS.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row several times."""
        self.marked_BS = self.marked_BS.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Some of the rows."""
        self.marked_BS = self.marked_BS[indices.to(self.marked_BS.device)]

    def offload(self) -> None:
        """Nothing: it is in host memory."""

    def prefetch(self) -> None:
        """Nothing: it is in host memory."""


def cache_in(values: Iterable[Any]) -> Cache | None:
    """The cache among some arguments or outputs, whatever it is called there.

    Raises:
        ConfigError: keys and values as tuples, which can't hold a history, or a cache for two models.
    """
    for value in values:
        if isinstance(value, EncoderDecoderCache):
            raise ConfigError("a memory is for decoders; this cache is an encoder's and a decoder's")
        if isinstance(value, Cache):
            return value
        if isinstance(value, tuple | list) and value and isinstance(value[0], tuple | list):
            raise ConfigError(
                "keys and values are given as tuples, which have no place for the tokens so far; give a Cache, for "
                "example transformers.DynamicCache.from_legacy_cache"
            )
    return None


def history_of(cache: Cache, key: str) -> HistoryLayer | None:
    """The history that a memory keeps in a cache."""
    return next((layer for layer in cache.layers if isinstance(layer, HistoryLayer) and layer.key == key), None)


def length_of(cache: Cache) -> int:
    """Positions that the model's own layers hold. Layers of linear attention have a state, and do not count.

    Raises:
        ConfigError: no layer counts.
    """
    own = [layer for layer in cache.layers if not isinstance(layer, HistoryLayer)]
    for layer in own:
        if isinstance(layer, CacheLayerMixin):
            return int(layer.get_seq_length())
    if own:
        raise ConfigError(
            f"the cache's layers are {type(own[0]).__name__}, none of which knows how many positions it holds, so the "
            "memory can't tell that it has seen the same tokens; call the model with use_cache=False"
        )
    return 0


def checked_history(cache: Cache, key: str, *, num_sequences: int, num_layers: int) -> HistoryLayer:
    """The history in a cache; an empty one is put into an empty cache.

    Args:
        cache: of the model.
        key: of the memory.
        num_sequences: B of the tokens to come.
        num_layers: of the model, whose own layers come first.

    Raises:
        ConfigError: the cache holds other positions than the history.
    """
    history = history_of(cache, key)
    if history is None:
        if cache.layer_class_to_replicate is not None:  # it makes layers by number, and ours must not be one of them
            while len(cache.layers) < num_layers:
                cache.layers.append(cache.layer_class_to_replicate())
        history = HistoryLayer(key, torch.empty(num_sequences, 0, dtype=torch.int64))
        cache.layers.append(history)
    held, known = length_of(cache), history.get_seq_length()
    if held != known:
        raise ConfigError(
            f"the cache holds {held} positions, and the memory knows the tokens of {known}: it was filled, cut or "
            "copied without the memory, which would read the rows of other n-grams. Begin with an empty cache while "
            "the memory is attached"
        )
    if known and len(history.marked_BS) != num_sequences:
        raise ConfigError(
            f"the cache is of {len(history.marked_BS)} sequences, and {num_sequences} go on from it; reorder or repeat "
            "it by its own methods"
        )
    if not known:
        history.marked_BS = history.marked_BS.new_empty(num_sequences, 0)
    return history


def values_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """All arguments of a call."""
    return [*args, *kwargs.values()]
