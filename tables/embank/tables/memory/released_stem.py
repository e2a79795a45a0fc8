"""STEM tables as their released code writes them: shards of columns, or all of them in one file.

    checkpoint/stem_shards/stem_model_mp{r}.pt          "stem_embeddings.{i}.weight" [V, f / P] of P shards
    checkpoint/consolidated/consolidated_stem.pth       "stem_embeddings.{i}.weight" [V, f]

i counts the layers that have a table, in ascending order.

Source: facebookresearch/STEM. Its consolidation joins the shards in the order in which the file system lists them,
where shard 10 often stands before shard 2: the columns of such a file are permuted, and nothing in it says how.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from embank.tables.collections.state import WIDER_ROWS, refuse_beyond
from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.memory.layouts import StemLayout
from embank.tables.memory.tables import MemoryTables

SHARDS, CONSOLIDATED = "stem_shards", "consolidated_stem.pth"
_SHARD = re.compile(r"stem_model_mp(\d+)\.pt")
_KEY = re.compile(r"(?:.+\.)?stem_embeddings\.(\d+)\.weight")

Parts = list[dict[int, Tensor]]
"""Of each shard, its columns by the table's number."""


def load_stem_tables(memory: MemoryTables, path: str | Path, *, shard_order: Sequence[int] | None = None) -> None:
    """Fills STEM tables from a released checkpoint.

    Args:
        memory: with STEM tables of the checkpoint's layers, width and vocabulary (`num_ids` of its compression, where
            the tokenizer has fewer tokens).
        path: a checkpoint's folder, its `stem_shards`, or a consolidated file. Shards beside a consolidated file are
            read in its place: they have numbers.
        shard_order: of a consolidated file without its shards: the shards' numbers in the order in which their columns
            stand in it, `range(P)` for P shards that were joined in order, `sorted(range(P), key=str)` for a listing by
            name.

    Raises:
        CheckpointError: a shard or a table is missing, damaged or of another size, or a consolidated file whose order
            nobody knows; nothing was written.
        ConfigError: `shard_order` is no order, or shards are there; or the memory's tier has a type that can't hold the
            rows, and nothing was written.

    Example:
        load_stem_tables(memory, "checkpoints/0000100000")
    """
    layout = memory.layouts.get("stem")
    if not isinstance(layout, StemLayout):
        raise CheckpointError("this memory has no STEM tables to fill")
    path = Path(path)
    folder = _shards_of(path)
    if folder is not None:
        if shard_order is not None:
            raise ConfigError(f"shard_order is given, but '{folder}' has the shards, whose names say it; leave it out")
        parts = [_read(file) for file in _in_order(folder)]
        what = f"'{folder}'"
    else:
        file = path / CONSOLIDATED if path.is_dir() else path
        if not file.is_file():
            raise CheckpointError(f"'{path}' has neither {SHARDS}/stem_model_mp0.pt nor {CONSOLIDATED}")
        parts = _cut(_read(file), shard_order, layout, file)
        what = f"'{file}'"
    _refuse_others(parts, layout, what=what)
    collection = memory.collections[layout.kind]
    names = [layout.table_name(layer) for layer in sorted(layout.layer_ids)]
    for number, name in enumerate(names):  # all of them before the first is written
        for part in parts:
            told = f"rows of table '{name}' in {what}"
            refuse_beyond(part[number], collection.tier.torch_dtype, what=told, cure=WIDER_ROWS)
    for number, name in enumerate(names):
        collection.set_rows(name, torch.cat([part[number] for part in parts], dim=1).float())


def _shards_of(path: Path) -> Path | None:
    """The folder of the shards that belong to a path; None where there is none."""
    places = [path, path / SHARDS] if path.is_dir() else []
    places += [path.parent / SHARDS, path.parent.parent / SHARDS] if path.name == CONSOLIDATED else []
    return next((place for place in places if any(place.glob("stem_model_mp*.pt"))), None)


def _in_order(folder: Path) -> list[Path]:
    """The shards by their numbers, of which none may be missing."""
    found = {int(match[1]): file for file in folder.iterdir() if (match := _SHARD.fullmatch(file.name))}
    missing = sorted(set(range(max(found, default=0) + 1)) - set(found))
    if missing:
        raise CheckpointError(
            f"'{folder}' lacks shard {missing[0]} (stem_model_mp{missing[0]}.pt), and with it a part of every row; "
            "restore it"
        )
    return [found[number] for number in sorted(found)]


def _read(file: Path) -> dict[int, Tensor]:
    """The tables in a file by their numbers."""
    try:
        loaded = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # what torch raises on bytes of others has many types
        raise CheckpointError(f"'{file}' can't be read ({type(error).__name__}); restore it") from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"'{file}' holds a {type(loaded).__name__}, and no tables by name")
    return {int(match[1]): value for name, value in loaded.items() if (match := _KEY.fullmatch(str(name)))}


def _cut(tables: dict[int, Tensor], order: Sequence[int] | None, layout: StemLayout, file: Path) -> Parts:
    """The shards of a consolidated file, in the order of their numbers."""
    if order is None:
        raise CheckpointError(
            f"'{file}' does not say in which order its columns stand: STEM's own consolidation joins shards as the "
            f"file system lists them. Put the folder {SHARDS} beside it, or give shard_order: range(P) for P shards in "
            "order, sorted(range(P), key=str) for a listing by name"
        )
    order = list(order)
    if not order or sorted(order) != list(range(len(order))) or layout.row_dim % len(order):
        raise ConfigError(
            f"shard_order is {order}; give each number from 0 to P - 1 once, where P shards divide {layout.row_dim} "
            "columns"
        )
    pieces = {number: table.tensor_split(len(order), dim=1) for number, table in tables.items() if table.dim() == 2}
    return [{number: piece[order.index(shard)] for number, piece in pieces.items()} for shard in range(len(order))]


def _refuse_others(parts: Parts, layout: StemLayout, *, what: str) -> None:
    """Refuses tables that are not those of a layout."""
    wanted = set(range(len(layout.layer_ids)))
    for shard, part in enumerate(parts):
        if set(part) != wanted:
            raise CheckpointError(
                f"shard {shard} of {what} has the tables {sorted(part)}; this memory has {len(wanted)}, for the layers "
                f"{sorted(layout.layer_ids)}, counted from 0"
            )
    num_tokens = layout.compression.num_tokens
    for number, layer in enumerate(sorted(layout.layer_ids)):
        shapes = [tuple(part[number].shape) for part in parts]
        if any(len(shape) != 2 or shape[0] != num_tokens for shape in shapes):
            raise CheckpointError(
                f"{what} has a table of shape {shapes[0]} for layer {layer}; this memory has {num_tokens:,} rows. Give "
                "its TokenCompression num_ids, the vocabulary of the checkpoint"
            )
        columns = sum(shape[1] for shape in shapes)
        if columns != layout.row_dim or len({shape[1] for shape in shapes}) > 1:
            raise CheckpointError(
                f"{what} has {columns} columns in {len(shapes)} shards for layer {layer}; rows have {layout.row_dim}. "
                "The last shards are missing, or it is of another width"
            )
