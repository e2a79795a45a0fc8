"""`add_engram` and `add_stem`: memory tables for a model that is trained already. It starts as it was."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from embank.pipelines.lm.adapters.model_memory import ModelMemory
from embank.pipelines.lm.adapters.structure import decoder_of, hidden_size, layers_of, up_projection
from embank.tables import ConfigError, RowOptimizer, RowTier
from embank.tables.memory import (
    Engram,
    EngramConfig,
    EngramLayout,
    MemoryTables,
    StemConfig,
    StemLayout,
    TokenCompression,
)
from embank.tables.memory.layouts import refuse_other_layers
from embank.tables.rows.store_spec import Backend
from embank.tables.scalars import as_whole, whole


def add_engram(
    model: Any,
    tokenizer: Any,
    *,
    layers: Sequence[int],
    rows: int = 100_000,
    memory_dim: int | None = None,
    max_ngram: int = 3,
    num_heads: int = 8,
    pad_token: int | None = None,
    end_token: int | None = None,
    compress: bool = True,
    seed: int = 0,
    multipliers: Mapping[int, Sequence[int]] | None = None,
    optimizer: RowOptimizer | None = None,
    backend: Backend = "fbgemm",
    tier: RowTier | None = None,
) -> ModelMemory:
    """Adds Engram tables: rows of hashed n-grams, gated into the residual stream before some layers.

    The value projections start at zero, so that the model says what it said. Training moves them and the rows.

    Args:
        model: a causal language model built as Llama and Qwen are.
        tokenizer: the model's own, of transformers or tokenizers.
        layers: 0-based numbers of decoder layers. Published lists often count from 1 (the paper's 2 and 15 are 1 and 14
            here), which shows only where one goes past the last layer.
        rows: of each head at least.
        memory_dim: the total width that a layer reads; None takes 16 per head.
        max_ngram: the longest n-gram; all from 2 on are looked up.
        num_heads: hashes per order.
        pad_token: whose compressed id stands where a look-back ends; None takes the tokenizer's first of begin, pad and
            end of text, or 0.
        end_token: a token that ends documents, such as the tokenizer's end of text: no n-gram reaches back over it.
            None knows packed documents by `position_ids` alone.
        compress: hash normalised tokens (case, accents, spaces) instead of the tokenizer's own.
        seed: of the hash and of initial values.
        multipliers: of the hash, by layer, where a released model's own are to be kept; None draws them by the seed.
        optimizer: of the rows; None takes row-wise Adagrad at .8.
        backend: fbgemm, or its slow twin torch, which has Adam and rows of two bytes.
        tier: where rows are held.

    Raises:
        ConfigError: layers that the model does not have, sizes that do not go together, a model built in another way.

    Example:
        memory = add_engram(model, tokenizer, layers=[1])
        optimizer = torch.optim.AdamW([*model.parameters(), *memory.parameters()])
        ...
        loss.backward(); optimizer.step(); memory.update_rows()
    """
    refuse_other_layers(layers, num_layers=len(layers_of(model)), kind="engram")
    pad = _pad_token(tokenizer) if pad_token is None else pad_token
    compression = _compression(model, tokenizer, compress=compress, pad_token=pad, end_token=end_token)
    columns = (max_ngram - 1) * num_heads
    config = EngramConfig(
        layer_ids=list(layers),
        rows_per_order=rows,
        memory_dim=16 * columns if memory_dim is None else memory_dim,
        max_ngram=max_ngram,
        num_heads=num_heads,
        seed=seed,
        multipliers=multipliers,
        end_token=end_token,
    )
    layout = EngramLayout(config, compression, pad_token=pad, num_layers=len(layers_of(model)))
    return attach_engram(model, layout, compress=compress, seed=seed, optimizer=optimizer, backend=backend, tier=tier)


def attach_engram(
    model: Any,
    layout: EngramLayout,
    *,
    compress: bool,
    seed: int = 0,
    optimizer: RowOptimizer | None = None,
    backend: Backend = "fbgemm",
    tier: RowTier | None = None,
) -> ModelMemory:
    """A memory of a layout on a model, with initial values."""
    dim, like = hidden_size(model), next(decoder_of(model).parameters())
    with torch.random.fork_rng(devices=[]):  # other draws of the program stay what they are
        torch.default_generator.manual_seed(whole(seed, what="seed is", least=0))
        dense = {layer: Engram(dim, layout.row_dim, conv=False, identity=True) for layer in layout.layer_ids}
    for module in dense.values():
        module.to(device=like.device, dtype=like.dtype)
    tables = MemoryTables([layout], optimizer=optimizer, backend=backend, tier=tier, seed=seed)
    return ModelMemory(model, tables, layers=dense, compress=compress)


def add_stem(
    model: Any,
    tokenizer: Any,
    *,
    layers: Sequence[int],
    seed: int = 0,
    optimizer: RowOptimizer | None = None,
    backend: Backend = "fbgemm",
    tier: RowTier | None = None,
) -> ModelMemory:
    """Adds STEM tables: a row per token, added to the up-projection of some layers' feed-forward parts.

    Rows start at zero, so that the model says what it said.

    Args:
        model, tokenizer, layers, seed, optimizer, backend, tier: as for `add_engram`.

    Raises:
        ConfigError: layers that the model does not have, or that have no up-projection.
    """
    num_layers = len(layers_of(model))
    compression = _compression(model, tokenizer, compress=False)
    refuse_other_layers(layers, num_layers=num_layers, kind="stem")
    widths = {up_projection(model, layer).out_features for layer in layers}
    if len(widths) > 1:
        raise ConfigError(
            f"the up-projections of layers {list(layers)} have widths {sorted(widths)}; add STEM tables to "
            "layers of one width"
        )
    config = StemConfig(layer_ids=list(layers), ffn_dim=widths.pop(), init_std=0.0)
    layout = StemLayout(config, compression, num_layers=num_layers)
    return attach_stem(model, layout, seed=seed, optimizer=optimizer, backend=backend, tier=tier)


def attach_stem(
    model: Any,
    layout: StemLayout,
    *,
    seed: int = 0,
    optimizer: RowOptimizer | None = None,
    backend: Backend = "fbgemm",
    tier: RowTier | None = None,
) -> ModelMemory:
    """A memory of a layout on a model."""
    tables = MemoryTables([layout], optimizer=optimizer, backend=backend, tier=tier, seed=seed)
    return ModelMemory(model, tables, layers={}, compress=False)


def _compression(
    model: Any, tokenizer: Any, *, compress: bool, pad_token: int = 0, end_token: int | None = None
) -> TokenCompression:
    """The tokenizer's compression, for all ids that the model has: its vocabulary may be larger than the tokenizer's
    (Qwen pads it), and generation may choose any of it. Ids without a token are read as the pad token where tokens are
    compressed, so that V' stays the tokenizer's, and have an id of their own otherwise.

    Raises:
        ConfigError: it has tokens that the model does not have, or no such pad token or end token.
    """
    compression = TokenCompression.from_tokenizer(tokenizer, compress=compress)
    refuse_larger_vocabulary(model, compression)
    num_ids = vocab_size_of(model)
    known = compression.num_tokens if compress else num_ids
    for name, token in (("pad_token", pad_token), ("end_token", end_token)):
        number = 0 if token is None else as_whole(token)
        if number is None or not 0 <= number < known:
            whose = f"the tokenizer's {known:,} tokens" if compress else f"the model's {known:,} ids"
            cure = ", or compress=False" if number is not None and 0 <= number < num_ids else ""
            raise ConfigError(f"{name} is {token!r}; give the number of one of {whose}{cure}")
    if compression.num_tokens == num_ids:
        return compression
    return TokenCompression.from_tokenizer(
        tokenizer, compress=compress, num_ids=num_ids, absent_as=pad_token if compress else 0
    )


def vocab_size_of(model: Any) -> int:
    """The ids that a model has."""
    return int(model.config.get_text_config().vocab_size)


def refuse_larger_vocabulary(model: Any, compression: TokenCompression) -> None:
    """Raises ConfigError if a tokenizer has more tokens than a model: it is another model's."""
    vocab_size = vocab_size_of(model)
    if compression.num_tokens > vocab_size:
        raise ConfigError(
            f"the tokenizer has {compression.num_tokens:,} tokens and the model {vocab_size:,}; give the model's own, "
            "or enlarge the model first (resize_token_embeddings)"
        )


def _pad_token(tokenizer: Any) -> int:
    names = ("bos_token_id", "pad_token_id", "eos_token_id")
    return next((int(found) for name in names if (found := getattr(tokenizer, name, None)) is not None), 0)
