"""`ModelMemory`: memory tables beside a model of transformers, which reads them through hooks.

Rows and the layers that read them stand outside of the model's module tree: its `state_dict`, `save_pretrained`,
`half()` and `parameters()` are those of the model alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from embank.pipelines.lm.adapters.cached_history import (
    HistoryLayer,
    cache_in,
    checked_history,
    history_of,
    values_of,
)
from embank.pipelines.lm.adapters.padding import dead_positions
from embank.pipelines.lm.adapters.structure import attention_of, decoder_of, layers_of, up_projection
from embank.tables.errors import ConfigError, DataError
from embank.tables.memory import (
    DEAD,
    AddressedMemory,
    MemoryLayout,
    MemoryReader,
    MemoryTables,
    mark_tokens,
    starts_of_positions,
)
from embank.tables.sharding.processes import is_one_of_many

KEYWORD = "embank_memory"
"""Rows travel from the decoder's call to its layers by a keyword of this name, so that a layer that is run again
(gradient checkpointing) gets the rows of its own pass."""
FEW = 8
"""Sequences up to which single tokens are addressed in Python's integers."""

Rows = Mapping[int, Tensor]


class ModelMemory:
    """Memory tables that a model reads; made by `add_engram`, `add_stem` and `load_memory`.

    Args:
        model: a causal language model.
        tables: its memory, of one kind.
        layers: dense parts by layer; empty for STEM.
        compress: how the compression was made, see `add_engram`.

    Attributes:
        model, tables: as given.
        layers: trained with the model's own parameters: give `memory.parameters()` to the optimizer too.

    Raises:
        ConfigError: the model is built in another way than Llama and Qwen.
    """

    def __init__(self, model: Any, tables: MemoryTables, *, layers: Mapping[int, nn.Module], compress: bool) -> None:
        (self.layout,) = tables.layouts.values()
        self.model, self.tables, self.compress = model, tables, compress
        self.layers = nn.ModuleDict({str(layer): module for layer, module in layers.items()})
        self.is_enabled = True
        self._rows: dict[int, Tensor] = {}
        self._unread: set[int] = set()
        self._reader: MemoryReader | None = None
        self._pending: Tensor | None = None
        self.key = _free_key(model, self.layout)
        stem_layers = self.layout.layer_ids if self.layout.kind == "stem" else ()
        inner = [(number, attention_of(model, number), up_projection(model, number)) for number in stem_layers]
        # From here on nothing is refused: a model has all hooks, or none.
        self._handles = [
            decoder_of(model).register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            decoder_of(model).register_forward_hook(self._after_decoder, with_kwargs=True),
        ]
        for number, layer in enumerate(layers_of(model)):
            self._handles.append(layer.register_forward_pre_hook(partial(self._before_layer, number), with_kwargs=True))
        for number, attention, up in inner:
            before, after = partial(self._before_attention, number), partial(self._after_up_projection, number)
            self._handles.append(attention.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(up.register_forward_hook(after))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of the dense parts. Rows are none: they have an optimizer of their own."""
        return self.layers.parameters()

    def update_rows(self) -> None:
        """Ends a training step: call it after each backward pass."""
        self.tables.step()

    def set_lr(self, lr: float) -> None:
        """Sets the rows' learning rate for the next step."""
        self.tables.set_lr(lr)

    def train(self, mode: bool = True) -> "ModelMemory":
        """Training or evaluation mode of rows and dense parts; the model has its own."""
        self.tables.train(mode)
        self.layers.train(mode)
        return self

    def eval(self) -> "ModelMemory":
        """Evaluation mode."""
        return self.train(False)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model without the memory, for as long as the context lasts; give it a cache of its own there."""
        before, self.is_enabled = self.is_enabled, False
        try:
            yield
        finally:
            self.is_enabled = before

    def remove(self) -> None:
        """Takes the memory off the model, which is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def save(self, folder: Any) -> None:
        """Writes an adapter folder: rows with their optimizer's state, dense parts, and what they belong to.

        Raises:
            CheckpointError: the folder exists.
            WorkError: it can't be written.
        """
        from embank.pipelines.lm.adapters.folder import save_memory

        save_memory(self, folder)

    def _before_decoder(self, _decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Looks all layers' rows up, and hands them down."""
        self._pending, self._unread = None, set()
        if not self.is_enabled:
            return None
        token_ids_BT = kwargs.get("input_ids", args[0] if args else None)
        if token_ids_BT is None:
            raise DataError(
                "the model was called with inputs_embeds, from which the memory can't tell the tokens; give input_ids"
            )
        cache = cache_in(values_of(args, kwargs))
        history = None
        if cache is not None and self.layout.lookback:
            history = checked_history(
                cache, self.key, num_sequences=len(token_ids_BT), num_layers=len(layers_of(self.model))
            )
        marked_BT = self._marked(token_ids_BT, kwargs, before=0 if history is None else history.get_seq_length())
        before_BS = None if history is None else history.marked_BS[:, -self.layout.lookback :]
        rows = self._look_up(token_ids_BT, marked_BT, before_BS)
        if history is not None:
            history.extend(marked_BT)
        elif self.layout.lookback:
            self._pending = marked_BT  # the decoder may make a cache of its own
        in_use = int(
            self.model.config.get_text_config().num_hidden_layers
        )  # fewer while a model drafts by an early exit
        self._unread = {layer for layer in self.layout.layer_ids if layer < in_use}
        handed = {**kwargs.get(KEYWORD, {}), self.key: (rows, marked_BT == DEAD)}
        return args, {**kwargs, KEYWORD: handed}

    def _after_decoder(self, _decoder: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        """Puts the tokens into a cache that the decoder has made itself.

        Raises:
            ConfigError: a layer has not got its rows.
        """
        if self._unread:
            raise ConfigError(
                f"layer {min(self._unread)} of a {type(self.model).__name__} has not read its rows: the model does not "
                "hand keywords down to it as Llama and Qwen do. Choose other layers, or another model"
            )
        pending, self._pending = self._pending, None
        if pending is None:
            return
        cache = cache_in(output.values() if isinstance(output, Mapping) else output)
        if cache is not None and history_of(cache, self.key) is None:
            cache.layers.append(HistoryLayer(self.key, pending))

    def _marked(self, token_ids_BT: Tensor, kwargs: Mapping[str, Any], *, before: int = 0) -> Tensor:
        """Compressed ids, marked where there is padding or another document begins; in host memory.

        Args:
            token_ids_BT: as the model gets them.
            kwargs: the rest of its arguments.
            before: positions that its cache holds.
        """
        ids_BT = token_ids_BT.detach().cpu()
        dead_BT = None
        if self.layout.lookback:  # a row of STEM depends on its own token alone, and nobody reads what padding says
            dead_BT = dead_positions(kwargs.get("attention_mask"), ids_BT.shape, before=before)
        positions = kwargs.get("position_ids")
        starts_BT = None
        if positions is not None and positions.dim() == 2 and ids_BT.shape[1] > 1:
            starts_BT = starts_of_positions(positions.cpu().expand_as(ids_BT), last_B=None)
            starts_BT[:, 0] = False  # a piece goes on from the one before
        if dead_BT is not None:
            ids_BT = ids_BT.masked_fill(dead_BT, 0)
        return mark_tokens(self.tables.compression(ids_BT), dead_BT=dead_BT, starts_BT=starts_BT)

    def _look_up(self, token_ids_BT: Tensor, marked_BT: Tensor, before_BS: Tensor | None) -> Rows:
        """What each layer reads [B, T, row_dim], on the tables' device."""
        ids_BT = token_ids_BT.detach().cpu()
        num, length = ids_BT.shape
        if not torch.is_grad_enabled() and length == 1 and num <= FEW and not is_one_of_many():
            self._reader = self._reader or MemoryReader(self.tables)
            before = [[]] * num if before_BS is None else before_BS.tolist()
            marked = [row + own for row, own in zip(before, marked_BT.tolist(), strict=True)]
            ids = [0 if own[-1] == DEAD else token for token, own in zip(ids_BT[:, 0].tolist(), marked, strict=True)]
            return self._reader.read(ids, marked)[self.layout.kind]
        addressed = AddressedMemory(
            by_kind={
                kind: self.tables.collections[kind].address(layout.ids(ids_BT, marked_BT, before_BS))
                for kind, layout in self.tables.layouts.items()
            },
            marked_BT=marked_BT,
        )
        return self.tables.look_up(addressed)[self.layout.kind]

    def _before_layer(self, number: int, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Takes the rows off the arguments, and adds what an Engram layer makes of them."""
        own, kept = _taken(kwargs, self.key)
        if own is None:
            return None
        rows, dead_BT = own
        if number not in rows:
            return args, kept
        if self.layout.kind == "stem":  # they go on to the attention, from where `_before_attention` takes them
            return None
        self._unread.discard(number)
        hidden = args[0] if args else kept.pop("hidden_states")
        read, dense = rows[number].to(hidden.device), self.layers[str(number)]
        if (
            next(dense.parameters()).device != hidden.device
        ):  # the model was moved, or its layers are on several devices
            dense.to(hidden.device)
        added = dense(hidden, read, dead_BT=dead_BT.to(hidden.device))
        return (hidden + added, *args[1:]), kept

    def _before_attention(self, number: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Keeps the rows for the up-projection that comes next. Here, since gradient checkpointing runs the inside of a
        layer again, and not the hooks of the layer itself."""
        own, kept = _taken(kwargs, self.key)
        if own is None:
            return None
        self._rows[number] = own[0][number]
        return args, kept

    def _after_up_projection(self, number: int, _linear: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        """Adds a STEM layer's rows to its up-projection."""
        rows = self._rows.pop(number, None)
        if rows is not None:
            self._unread.discard(number)
        return None if rows is None else output + rows.to(device=output.device, dtype=output.dtype)


def _taken(kwargs: dict[str, Any], key: str) -> tuple[Any, dict[str, Any]]:
    """What a call's arguments have for a memory, and the arguments without it."""
    handed = dict(kwargs.get(KEYWORD) or {})
    own = handed.pop(key, None)
    kept = {name: value for name, value in kwargs.items() if name != KEYWORD}
    return own, {**kept, KEYWORD: handed} if handed else kept


def _free_key(model: Any, layout: MemoryLayout) -> str:
    """A name that no other memory of the model has.

    Raises:
        ConfigError: the model has a memory of this kind already.
    """
    for hook in decoder_of(model)._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, ModelMemory) and owner.layout.kind == layout.kind:
            raise ConfigError(
                f"the model has a memory of kind '{layout.kind}' already; remove() it first, or name all layers at once"
            )
    return layout.kind
