"""Adapter folders: a memory without its model.

    manifest.json          kind, layout, model type and width, and what decides on every row (hash, tokenizer's digest)
    compression.safetensors  the map from tokens to compressed ids
    layers.safetensors     the dense parts
    rows/                  rows and their optimizer's state, see `embank.tables.memory.MemoryTables.save`
    checksums.json         over all of them

Whatever does not fit the model or the tokenizer is refused.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from embank.pipelines.lm.adapters.attach import attach_engram, attach_stem, refuse_larger_vocabulary
from embank.pipelines.lm.adapters.model_memory import ModelMemory
from embank.pipelines.lm.adapters.structure import hidden_size, layers_of
from embank.tables import CheckpointError, ConfigError, RowOptimizer, RowTier
from embank.tables.memory import EngramConfig, EngramLayout, StemConfig, StemLayout, TokenCompression
from embank.tables.memory.ngram_hash import given_multipliers
from embank.tables.rows.store_spec import Backend
from embank.tables.storage.checksums import verify_checksums, write_checksums
from embank.tables.storage.json_text import read_json
from embank.tables.storage.new_folder import new_folder

MANIFEST, FORMAT_VERSION = "manifest.json", 1
_CURE = "Restore it, or save the memory again"


def save_memory(memory: ModelMemory, folder: str | Path) -> None:
    """Writes an adapter folder; at every moment either nothing or all of it is there. See `ModelMemory.save`."""
    with new_folder(Path(folder), kind="memory") as temporary:
        (temporary / MANIFEST).write_text(json.dumps(_manifest(memory), indent=1))
        save_file({"ids": memory.tables.compression.ids_V}, temporary / "compression.safetensors")
        dense = {name: value.detach().cpu().contiguous() for name, value in memory.layers.state_dict().items()}
        save_file(dense, temporary / "layers.safetensors")
        memory.tables.save(temporary / "rows")
        write_checksums(temporary)


def _manifest(memory: ModelMemory) -> dict[str, Any]:
    layout = memory.layout
    shape: dict[str, Any]
    if isinstance(layout, EngramLayout):
        hash = layout.hash
        shape = {
            "rows_per_order": list(hash.rows_per_order),
            "memory_dim": layout.row_dim,
            "max_ngram": hash.max_ngram,
            "num_heads": hash.num_heads,
            "seed": hash.seed or 0,  # none of given multipliers, which are in the layout's own manifest
            "pad_id": hash.pad_id,
        }
    else:
        shape = {"ffn_dim": layout.row_dim}
    (collection,) = memory.tables.collections.values()
    optimizer = collection.optimizer
    return {
        "format_version": FORMAT_VERSION,
        "kind": memory.layout.kind,
        "layers": list(memory.layout.layer_ids),
        "layer_base": 0,
        "model_type": memory.model.config.model_type,
        "hidden_size": hidden_size(memory.model),
        "num_layers": len(layers_of(memory.model)),
        "shape": shape,
        "compress": memory.compress,
        "optimizer": {"name": optimizer.name, "lr": optimizer.lr, "eps": optimizer.eps, "betas": list(optimizer.betas)},
        "backend": collection.backend,
        "layout": memory.layout.manifest(),
    }


def load_memory(
    model: Any,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    backend: Backend | None = None,
    tier: RowTier | None = None,
) -> ModelMemory:
    """A memory from its folder, on a model.

    Args:
        model: the model that it was trained on, or one of the same type and shape.
        folder: what `ModelMemory.save` wrote.
        tokenizer: the model's; where it is given, it must be the one of the training. Give it: ids that mean other
            tokens read other rows, and nothing else would tell.
        backend: of the rows, see `add_engram`; None takes that of the training.
        tier: where rows are held.

    Raises:
        CheckpointError: damaged, or of another tokenizer or another model.
        ConfigError: the model has a memory of this kind already.
    """
    folder = Path(folder)
    verify_checksums(folder, kind="memory", cure=_CURE)
    manifest = read_json(folder / MANIFEST, cure=_CURE)
    _refuse_other_model(manifest, model, folder)
    compression = _compression(manifest, folder, tokenizer)
    refuse_larger_vocabulary(model, compression)
    layout = _layout(manifest, compression, num_layers=len(layers_of(model)), what=f"the memory in '{folder}'")
    layout.refuse_other(manifest["layout"], what=f"the memory in '{folder}'")
    values = manifest["optimizer"]
    optimizer = RowOptimizer(**{**values, "betas": tuple(values["betas"])})
    backend = backend or manifest.get("backend", "fbgemm")
    if isinstance(layout, EngramLayout):
        compress = manifest["compress"]
        memory = attach_engram(model, layout, compress=compress, optimizer=optimizer, backend=backend, tier=tier)
    else:
        memory = attach_stem(model, layout, optimizer=optimizer, backend=backend, tier=tier)
    try:
        memory.tables.load(folder / "rows")
        memory.layers.load_state_dict(load_file(folder / "layers.safetensors"))
    except BaseException as error:
        memory.remove()
        if isinstance(error, RuntimeError):
            raise CheckpointError(f"the memory in '{folder}' has other dense parts: {error}. {_CURE}") from error
        raise
    return memory


def _refuse_other_model(manifest: dict[str, Any], model: Any, folder: Path) -> None:
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"the memory in '{folder}' has format version {manifest.get('format_version')}; this embank reads version "
            f"{FORMAT_VERSION}. Load it with the embank that wrote it"
        )
    here = {
        "model_type": model.config.model_type,
        "hidden_size": hidden_size(model),
        "num_layers": len(layers_of(model)),
    }
    for key, value in here.items():
        if manifest.get(key) != value:
            raise CheckpointError(
                f"the memory in '{folder}' was trained on a model with {key} {manifest.get(key)!r}; this one has "
                f"{value!r}. Load it onto its own model"
            )


def _compression(manifest: dict[str, Any], folder: Path, tokenizer: Any) -> TokenCompression:
    saved = manifest["layout"]["tokenizer"]
    ids_V = load_file(folder / "compression.safetensors")["ids"]
    kept = TokenCompression(ids_V, digest=saved["digest"], padding=saved.get("padding"))
    kept.refuse_other(saved, what=f"the memory in '{folder}'")
    if tokenizer is not None:
        given = TokenCompression.like(saved, tokenizer, compress=manifest["compress"])
        given.refuse_other(saved, what=f"the memory in '{folder}'")
        if not torch.equal(given.ids_V, ids_V):
            raise CheckpointError(f"the memory in '{folder}' has another map of tokens than its digest says. {_CURE}")
    return kept


def _layout(
    manifest: dict[str, Any], compression: TokenCompression, *, num_layers: int, what: str
) -> EngramLayout | StemLayout:
    shape, layers = manifest["shape"], manifest["layers"]
    try:
        if manifest["kind"] == "stem":
            return StemLayout(
                StemConfig(layer_ids=layers, ffn_dim=shape["ffn_dim"], init_std=0.0), compression, num_layers=num_layers
            )
        hash = manifest["layout"]["hash"]

        def token_of(compressed_id: int) -> int:  # any token of a compressed id is the same to the hash
            return int((compression.ids_V == compressed_id).nonzero()[0])

        config = EngramConfig(
            layer_ids=layers,
            **{key: value for key, value in shape.items() if key != "pad_id"},
            multipliers=given_multipliers(hash, what=what),
            end_token=None if hash.get("end_id") is None else token_of(hash["end_id"]),
        )
        return EngramLayout(config, compression, pad_token=token_of(shape["pad_id"]), num_layers=num_layers)
    except (ConfigError, IndexError) as error:
        raise CheckpointError(f"{what} has sizes that can't be: {error}. {_CURE}") from error
