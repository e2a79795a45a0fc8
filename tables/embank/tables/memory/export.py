"""A memory as a folder of safetensors: rows by layer, order and head, with everything that says what they mean.

manifest.json                               settings, multipliers, primes, offsets, the tokenizer's digest
tokens.safetensors                          the compressed id of each token
rows/engram.layer1.order2.head0.safetensors "rows" [prime, D], without padding
checksums.json                              SHA-256 and bytes of each file
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embank.tables.collections.state import WIDER_ROWS, refuse_beyond
from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.memory.layouts import EngramConfig, EngramLayout, MemoryLayout, StemConfig, StemLayout
from embank.tables.memory.ngram_hash import given_multipliers
from embank.tables.memory.tables import MemoryTables
from embank.tables.memory.tensor_files import reading_tensors, refuse_non_finite, write_tensors
from embank.tables.memory.token_compression import TokenCompression
from embank.tables.method.facts import facts_of, restored
from embank.tables.serving.codecs.halves import wider_than_fp16
from embank.tables.serving.codecs.registry import encode, named_codec, row_codec
from embank.tables.storage.checksums import verify_checksums, write_checksums
from embank.tables.storage.json_text import read_json
from embank.tables.storage.new_folder import new_folder

FORMAT_VERSION = 1
MANIFEST, TOKENS, ROWS = "manifest.json", "tokens.safetensors", "rows"
ROW_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CURE = "Export the memory again"


def export_memory(memory: MemoryTables, folder: str | Path, *, codec: str = "fp32") -> None:
    """Writes rows for serving, one table at a time; at every moment either nothing or all of it is at `folder`.

    Args:
        memory: all of whose rows are in this process, in plain tables.
        folder: must not exist yet.
        codec: "fp32", "bf16" or "fp16", or the name of a codec that takes any rows, such as "int4", "pca8" or
            "pca8+int4".

    Raises:
        ConfigError: no such codec or one that only its method can make, rows that it can't hold, or rows of other
            processes.
        CheckpointError: the folder exists.
        WorkError: it can't be written.
    """
    folder = Path(folder)
    if codec not in ROW_TYPES:
        row_codec(codec)  # refuses a name that says no codec of rows
    engram = _engram_of(memory)
    facts = {
        "format_version": FORMAT_VERSION,
        "codec": codec,
        "memory": memory.manifest(),
        "pad_tokens": {"engram": engram.pad_token} if engram is not None else {},
        "end_tokens": {"engram": engram.end_token} if engram is not None else {},
    }
    with new_folder(folder, kind="memory export") as temporary:
        (temporary / MANIFEST).write_text(json.dumps(facts, indent=1))
        write_tensors(temporary / TOKENS, {"ids": memory.compression.ids_V}, facts={}, what="the export")
        for table, rows_RD in _tables_of(memory):
            tensors, about = _encoded(rows_RD, codec, table=table)
            write_tensors(temporary / ROWS / f"{table}.safetensors", tensors, facts=about, what="the export")
        write_checksums(temporary)


def import_rows(memory: MemoryTables, folder: str | Path) -> None:
    """Fills a memory with exported rows, after checking that they are of these very tables. They come in the type of
    the memory's tier.

    Raises:
        CheckpointError: damaged, or of another tokenizer, hash or size; nothing was written.
        ConfigError: the tier's type can't hold them; nothing was written.
    """
    folder = Path(folder)
    facts = _verified(folder)
    memory.refuse_other(_kinds_of(facts, folder), what=f"the export '{folder}'")
    for collection in memory.collections.values():  # all of them before the first is written
        for spec in collection.specs:
            shape = (spec.num_embeddings, spec.embedding_dim)
            found = _read_rows(folder, spec.name, codec=facts["codec"])
            if tuple(found.shape) != shape:
                raise CheckpointError(
                    f"the export '{folder}' has rows of shape {tuple(found.shape)} for table '{spec.name}'; they must "
                    f"be {shape}. {_CURE}"
                )
            what = f"rows of table '{spec.name}' in the export '{folder}'"
            refuse_beyond(found, collection.tier.torch_dtype, what=what, cure=WIDER_ROWS)
    for collection in memory.collections.values():
        for spec in collection.specs:
            collection.set_rows(spec.name, _read_rows(folder, spec.name, codec=facts["codec"]))


def open_memory(folder: str | Path, tokenizer: Any, *, num_layers: int | None = None, **options: Any) -> MemoryTables:
    """A memory from an export, for serving or to train on.

    Args:
        folder: what `export_memory` wrote.
        tokenizer: the one of the training; another one is refused.
        num_layers: of the model, where it is known.
        options: of `MemoryTables`.

    Raises:
        CheckpointError: damaged, or trained with another tokenizer.
        ConfigError: the tier's type can't hold the rows.
    """
    folder = Path(folder)
    facts = _verified(folder)
    what = f"the export '{folder}'"
    layouts: list[MemoryLayout] = []
    for kind, manifest in _kinds_of(facts, folder).items():
        compression = _compression(tokenizer, manifest.get("tokenizer") or {}, what=what)
        layouts.append(_layout(kind, manifest, compression, facts, num_layers=num_layers, what=what))
    memory = MemoryTables(layouts, **options)
    import_rows(memory, folder)
    return memory


def _compression(tokenizer: Any, manifest: Mapping[str, Any], *, what: str) -> TokenCompression:
    """The map of a tokenizer that an export was made with: compressed or not, as its digest tells."""
    plain = TokenCompression.like(manifest, tokenizer, compress=False)
    if plain.digest == manifest.get("digest"):
        return plain
    compression = TokenCompression.like(manifest, tokenizer)
    compression.refuse_other(manifest, what=what)
    return compression


def _layout(
    kind: str,
    manifest: Mapping[str, Any],
    compression: TokenCompression,
    facts: Mapping[str, Any],
    *,
    num_layers: int | None,
    what: str,
) -> MemoryLayout:
    try:
        if kind == "engram":
            hash = manifest["hash"]
            engram = EngramConfig(
                layer_ids=hash["layer_ids"],
                rows_per_order=hash["rows_per_order"],
                memory_dim=manifest["memory_dim"],
                max_ngram=hash["max_ngram"],
                num_heads=hash["num_heads"],
                seed=hash["seed"] or 0,
                multipliers=given_multipliers(hash, what=what),
                end_token=(facts.get("end_tokens") or {}).get("engram"),
            )
            return EngramLayout(engram, compression, pad_token=facts["pad_tokens"]["engram"], num_layers=num_layers)
        if kind == "stem":
            stem = StemConfig(layer_ids=manifest["layer_ids"], ffn_dim=manifest["ffn_dim"])
            return StemLayout(stem, compression, num_layers=num_layers)
    except KeyError as error:
        raise CheckpointError(f"{what} does not say its {error.args[0]}. {_CURE}") from error
    except TypeError as error:
        raise CheckpointError(f"{what} has a manifest of another form: {error}. {_CURE}") from error
    raise CheckpointError(f"{what} has memory of kind '{kind}', which this embank does not know")


def _verified(folder: Path) -> dict[str, Any]:
    """The facts of an export, after all of its files were checked."""
    checksums = verify_checksums(folder, kind="export of a memory", cure=_CURE)
    if MANIFEST not in checksums:
        raise CheckpointError(f"'{folder}' is no export of a memory: it has no {MANIFEST}. {_CURE}")
    facts = read_json(folder / MANIFEST, cure=_CURE)
    if facts.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"the export '{folder}' has format version {facts.get('format_version')}; this embank reads version "
            f"{FORMAT_VERSION}. {_CURE}"
        )
    codec: Any = facts.get("codec")
    try:
        named_codec(codec)
    except ConfigError as error:
        raise CheckpointError(
            f"the export '{folder}' has rows of codec '{codec}', which is not registered here; install the package "
            "that has it"
        ) from error
    return facts


def _kinds_of(facts: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    kinds = facts.get("memory")
    if not isinstance(kinds, dict) or not all(isinstance(manifest, dict) for manifest in kinds.values()):
        raise CheckpointError(f"the export '{folder}' does not say what its memory is. {_CURE}")
    return kinds


def _engram_of(memory: MemoryTables) -> EngramLayout | None:
    layout = memory.layouts.get("engram")
    return layout if isinstance(layout, EngramLayout) else None


def _tables_of(memory: MemoryTables) -> Iterator[tuple[str, Tensor]]:
    for collection in memory.collections.values():
        if collection.sharding is not None:
            raise ConfigError(
                "the rows are spread over processes and can't be exported here; save the memory and load it into one"
            )
        for method in collection.built_methods():
            if not method.traits.is_plain:
                raise ConfigError(
                    f"table '{method.spec.name}' has method '{method.spec.method}', which computes its rows; only "
                    "plain tables are exported as rows"
                )
        yield from collection.weights().items()


def _encoded(rows_RD: Tensor, codec: str, *, table: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Rows in the form of a codec: tensors by name, and facts to make it again from."""
    if codec not in ROW_TYPES:
        try:
            coded = encode(rows_RD.float().cpu(), codec=codec)
        except ConfigError as error:
            raise ConfigError(f"table '{table}': {error}") from error
        tensors = dict(coded.named_buffers())
        return tensors, {"num_rows": len(rows_RD), "tensors": list(tensors), "facts": facts_of(coded)}
    cast = rows_RD.to(ROW_TYPES[codec])
    if not bool(torch.stack(cast.aminmax()).isfinite().all()):
        refuse_non_finite(rows_RD, table=table)
        largest = float(rows_RD.abs().max())
        raise ConfigError(
            f"rows of table '{table}' reach {largest:.4g}, which is not finite as {codec}; use "
            f"{wider_than_fp16(largest)}"
        )
    return {"rows": cast}, {}


def _read_rows(folder: Path, table: str, *, codec: str) -> Tensor:
    """Rows of a table, fp32 [R, D]."""
    path = folder / ROWS / f"{table}.safetensors"
    with reading_tensors(path, what="the export's rows") as (about, get):
        if codec not in ROW_TYPES:
            try:
                tensors = {name: get(name) for name in about["tensors"]}
                coded = restored(named_codec(codec).cls, about["facts"], tensors)
                rows_RD: Tensor = coded.take(torch.arange(about["num_rows"]))
            except KeyError as error:
                raise CheckpointError(f"'{path}' does not say its {error.args[0]}. {_CURE}") from error
            return rows_RD.float()
        found = get("rows")
    if found.dtype != ROW_TYPES[codec]:
        raise CheckpointError(f"'{path}' has rows of {found.dtype}; the export says {codec}. {_CURE}")
    return found.float()
