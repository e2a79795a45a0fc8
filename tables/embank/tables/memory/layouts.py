"""Which tables a memory has, and which of their rows a batch of tokens asks for. Pure: nothing here holds a row."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from embank.tables.collections.ids import int64_ids
from embank.tables.errors import CheckpointError, ConfigError, DataError
from embank.tables.memory.history import DEAD, mark_tokens
from embank.tables.memory.ngram_hash import NgramHash
from embank.tables.memory.stem import stem_init_std
from embank.tables.memory.token_compression import TokenCompression
from embank.tables.scalars import whole
from embank.tables.specs import TableSpec


class MemoryLayout(Protocol):
    """The tables of one kind of memory.

    Attributes:
        kind: its name.
        layer_ids: 0-based layers that have one.
        row_dim: width of what one layer reads at a position.
        specs: of the tables.
        compression: of the tokenizer.
        lookback: tokens before a position that decide on its rows.
    """

    @property
    def kind(self) -> str: ...
    @property
    def layer_ids(self) -> tuple[int, ...]: ...
    @property
    def row_dim(self) -> int: ...
    @property
    def specs(self) -> list[TableSpec]: ...
    @property
    def compression(self) -> TokenCompression: ...
    @property
    def lookback(self) -> int: ...

    def ids(self, token_ids_BT: Tensor, marked_BT: Tensor, before_BS: Tensor | None) -> dict[str, Tensor]:
        """Ids [B, T, tables] of the groups of a SequenceCollection of `specs`.

        Args:
            token_ids_BT: the tokens; any value where they are dead.
            marked_BT: their compressed ids, marked (`mark_tokens`).
            before_BS: those before them, where sequences come in pieces.
        """

    def by_layer(self, rows: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """What each layer reads, [B, T, row_dim], of the groups' rows."""

    def manifest(self) -> dict[str, Any]:
        """Everything that decides on what rows mean, as JSON."""

    def refuse_other(self, manifest: Mapping[str, Any], *, what: str) -> None:
        """Raises CheckpointError for rows of another layout; `what` is the sentence's subject."""


@dataclass(frozen=True, kw_only=True)
class EngramConfig:
    """Tables of Engram layers.

    Args:
        layer_ids: 0-based; published lists are 0-based (DeepSeek-V4.1: 1 and 14) or 1-based (the paper: 2 and 15).
        max_ngram: N, the longest n-gram.
        num_heads: K, hashes per order.
        rows_per_order: rows of each head at least: one number for all orders, or one for each.
        memory_dim: the total width of what a layer reads at a position; a head's rows have memory_dim / ((N - 1) K).
        seed: of the hash; that of initial values is the collection's.
        init_std: deviation of initial rows.
        multipliers: of the hash, by layer, as others have released them; None draws them by the seed.
        end_token: a token behind which another document begins, for the hash alone: nothing looks back on it. Tokens of
            its compressed id do the same. None knows documents by the marks of a batch only.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    layer_ids: Sequence[int]
    rows_per_order: int | Sequence[int]
    memory_dim: int
    max_ngram: int = 3
    num_heads: int = 8
    seed: int = 0
    init_std: float = 0.02
    multipliers: Mapping[int, Sequence[int]] | None = None
    end_token: int | None = None


class EngramLayout:
    """Tables of hashed n-grams: one for each layer, order and head, with a prime number of rows.

    Args:
        config: sizes.
        compression: of the tokenizer.
        pad_token: token id whose compressed id stands where a look-back ends.
        num_layers: of the model, where it is known: layer ids are checked against it.

    Raises:
        ConfigError: sizes that can't be, or a layer that the model does not have.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> words = Tokenizer(models.WordLevel({"<s>": 0, "the": 1, "The": 2}, unk_token="<s>"))
        >>> config = EngramConfig(layer_ids=[1], rows_per_order=100, memory_dim=32, num_heads=2)
        >>> layout = EngramLayout(config, TokenCompression.from_tokenizer(words), pad_token=0)
        >>> [(spec.name, spec.num_embeddings, spec.embedding_dim) for spec in layout.specs][:2]
        [('engram.layer1.order2.head0', 101, 8), ('engram.layer1.order2.head1', 103, 8)]
    """

    kind: ClassVar[str] = "engram"

    def __init__(
        self, config: EngramConfig, compression: TokenCompression, *, pad_token: int, num_layers: int | None = None
    ) -> None:
        refuse_other_layers(config.layer_ids, num_layers=num_layers, kind=self.kind)
        orders = whole(config.max_ngram, what="max_ngram is", least=2) - 1
        rows = config.rows_per_order
        self.config = config
        self.compression = compression
        self.pad_token = whole(pad_token, what="pad_token is", least=0)
        self.end_token = None if config.end_token is None else whole(config.end_token, what="end_token is", least=0)
        self.hash = NgramHash(
            layer_ids=config.layer_ids,
            max_ngram=config.max_ngram,
            num_heads=config.num_heads,
            rows_per_order=[rows] * orders if not isinstance(rows, Iterable) else rows,
            compressed_vocab_size=compression.size,
            pad_id=compression.one(self.pad_token),
            seed=config.seed,
            multipliers=config.multipliers,
            end_id=None if self.end_token is None else compression.one(self.end_token),
        )
        self.row_dim = whole(config.memory_dim, what="memory_dim is", least=1)
        if self.row_dim % self.hash.num_columns:
            raise ConfigError(
                f"memory_dim {self.row_dim} is the width of all {self.hash.num_columns} heads together, and no "
                f"multiple of their number; use {self.row_dim // self.hash.num_columns * self.hash.num_columns} or "
                f"{(self.row_dim // self.hash.num_columns + 1) * self.hash.num_columns}"
            )
        self.layer_ids = self.hash.layer_ids
        self.lookback = self.hash.lookback
        self.head_dim = self.row_dim // self.hash.num_columns

    @property
    def specs(self) -> list[TableSpec]:
        """One table for each head, layer after layer, heads in the order of the hash's columns."""
        return [
            TableSpec(
                name=name,
                num_embeddings=prime,
                embedding_dim=self.head_dim,
                feature_names=[self.group(layer)],
                init_std=self.config.init_std,
            )
            for layer in self.layer_ids
            for name, prime in zip(self.table_names(layer), self.hash.primes[layer], strict=True)
        ]

    def group(self, layer: int) -> str:
        """The group of a layer's tables."""
        return f"engram.layer{layer}"

    def table_names(self, layer: int) -> list[str]:
        """Names of a layer's tables, in the order of the hash's columns."""
        orders, heads = range(2, self.hash.max_ngram + 1), range(self.hash.num_heads)
        return [f"engram.layer{layer}.order{order}.head{head}" for order in orders for head in heads]

    def ids(self, token_ids_BT: Tensor, marked_BT: Tensor, before_BS: Tensor | None) -> dict[str, Tensor]:
        hashed = self.hash(marked_BT, before_BS=before_BS)
        return {self.group(layer): ids for layer, ids in hashed.items()}

    def by_layer(self, rows: Mapping[str, Tensor]) -> dict[int, Tensor]:
        return {layer: rows[self.group(layer)] for layer in self.layer_ids}

    def manifest(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "memory_dim": self.row_dim,
            "tokenizer": self.compression.manifest(),
            "hash": self.hash.manifest(),
        }

    def refuse_other(self, manifest: Mapping[str, Any], *, what: str) -> None:
        _refuse_other_kind(manifest, self.kind, what=what)
        self.compression.refuse_other(_part(manifest, "tokenizer", what=what), what=what)
        self.hash.refuse_other(_part(manifest, "hash", what=what), what=what)
        if manifest.get("memory_dim") != self.row_dim:
            raise CheckpointError(
                f"{what} has a memory_dim of {manifest.get('memory_dim')}; here it is {self.row_dim}. Load it with its "
                "own settings, or train anew"
            )


@dataclass(frozen=True, kw_only=True)
class StemConfig:
    """Tables of STEM layers.

    Args:
        layer_ids: 0-based; the first layer is usually left dense, so that rows can come while it runs.
        ffn_dim: width of the feed-forward layers, and so of rows.
        init_std: deviation of initial rows; None takes the released one (`stem_init_std`).
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    layer_ids: Sequence[int]
    ffn_dim: int
    init_std: float | None = None


class StemLayout:
    """Tables of token rows: one for each layer, with a row for each token. All layers share the ids.

    Args:
        config: sizes.
        compression: of the tokenizer; it says which tokens there are. Rows are the tokens' own, not compressed.
        num_layers: of the model, where it is known: layer ids are checked against it.

    Raises:
        ConfigError: sizes that can't be, or a layer that the model does not have.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> words = Tokenizer(models.WordLevel({"<s>": 0, "the": 1, "The": 2, "cat": 3}, unk_token="<s>"))
        >>> compression = TokenCompression.from_tokenizer(words)
        >>> layout = StemLayout(StemConfig(layer_ids=[1, 3], ffn_dim=64), compression, num_layers=4)
        >>> [(spec.name, spec.num_embeddings, spec.embedding_dim) for spec in layout.specs]
        [('stem.layer1', 4, 64), ('stem.layer3', 4, 64)]
    """

    kind: ClassVar[str] = "stem"
    lookback: ClassVar[int] = 0
    group: ClassVar[str] = "stem"

    def __init__(self, config: StemConfig, compression: TokenCompression, *, num_layers: int | None = None) -> None:
        refuse_other_layers(config.layer_ids, num_layers=num_layers, kind=self.kind)
        self.config = config
        self.compression = compression
        self.layer_ids = tuple(int(layer) for layer in config.layer_ids)
        self.row_dim = whole(config.ffn_dim, what="a STEM table's ffn_dim is", least=1)

    @property
    def specs(self) -> list[TableSpec]:
        """One table for each layer."""
        num, std = self.compression.num_tokens, self.config.init_std
        return [
            TableSpec(
                name=self.table_name(layer),
                num_embeddings=num,
                embedding_dim=self.row_dim,
                feature_names=[self.group],
                init_std=stem_init_std(num, self.row_dim) if std is None else std,
            )
            for layer in self.layer_ids
        ]

    def table_name(self, layer: int) -> str:
        """The name of a layer's table."""
        return f"stem.layer{layer}"

    def ids(self, token_ids_BT: Tensor, marked_BT: Tensor, before_BS: Tensor | None) -> dict[str, Tensor]:
        tokens_BT = int64_ids(token_ids_BT).masked_fill(marked_BT == DEAD, 0)
        return {self.group: tokens_BT[..., None].expand(*tokens_BT.shape, len(self.layer_ids))}

    def by_layer(self, rows: Mapping[str, Tensor]) -> dict[int, Tensor]:
        parts = torch.split(rows[self.group], self.row_dim, dim=-1)
        return dict(zip(self.layer_ids, parts, strict=True))

    def manifest(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "layer_ids": list(self.layer_ids),
            "layer_base": 0,
            "ffn_dim": self.row_dim,
            "tokenizer": self.compression.manifest(),
        }

    def refuse_other(self, manifest: Mapping[str, Any], *, what: str) -> None:
        _refuse_other_kind(manifest, self.kind, what=what)
        self.compression.refuse_other(_part(manifest, "tokenizer", what=what), what=what)
        for name, mine in self.manifest().items():
            if name != "tokenizer" and manifest.get(name) != mine:
                raise CheckpointError(
                    f"{what} has STEM tables with {name} {manifest.get(name)}; here it is {mine}. Load it with its own "
                    "settings, or train anew"
                )


def refuse_other_layers(layer_ids: Sequence[int], *, num_layers: int | None, kind: str) -> None:
    """Refuses layers that a model does not have, as a 1-based list names its last one.

    Raises:
        ConfigError: names the layer and the range.
    """
    given: Any = layer_ids
    if not isinstance(given, Iterable) or isinstance(given, Iterator):  # an iterator has been read by now
        raise ConfigError(f"the layers with {kind} tables are {layer_ids!r}; give a list, for example [1]")
    layers = [whole(layer, what=f"a layer with {kind} tables is", least=0) for layer in layer_ids]
    if not layers or len(set(layers)) < len(layers):
        raise ConfigError(f"the layers with {kind} tables are {layers}; name at least one, and each once")
    beyond = [] if num_layers is None else [layer for layer in layers if layer >= num_layers]
    if beyond:
        raise ConfigError(
            f"there is no layer {beyond[0]} for {kind} tables: layer ids are 0-based, 0 .. {(num_layers or 0) - 1} in "
            f"this model. If the list counts from 1, subtract 1: {[layer - 1 for layer in layers]}"
        )


def marked_tokens(
    compression: TokenCompression, token_ids_BT: Tensor, *, dead_BT: Tensor | None, starts_BT: Tensor | None
) -> Tensor:
    """Compressed ids of tokens, marked; dead tokens may have any id.

    Raises:
        DataError: ids that the tokenizer does not have, or other shapes.
    """
    if dead_BT is not None and dead_BT.shape == token_ids_BT.shape:
        token_ids_BT = token_ids_BT.masked_fill(dead_BT, 0)
    if token_ids_BT.dim() != 2:
        raise DataError(f"token ids have shape {tuple(token_ids_BT.shape)}; give [B, T], one row per sequence")
    return mark_tokens(compression(token_ids_BT), dead_BT=dead_BT, starts_BT=starts_BT)


def _refuse_other_kind(manifest: Mapping[str, Any], kind: str, *, what: str) -> None:
    if manifest.get("kind") != kind:
        raise CheckpointError(f"{what} has tables of kind '{manifest.get('kind')}', not '{kind}'")


def _part(manifest: Mapping[str, Any], name: str, *, what: str) -> Mapping[str, Any]:
    part = manifest.get(name)
    if not isinstance(part, Mapping):
        raise CheckpointError(f"{what} does not say its {name}; export it again")
    return part
