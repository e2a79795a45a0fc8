"""Served tables as plain rows, some at a time: what targets write that know nothing of methods."""

import math
from collections.abc import Callable, Collection, Iterator
from typing import BinaryIO

import torch
from torch import Tensor

from embank.tables.errors import ConfigError
from embank.tables.ids.token_space import NUM_TOKEN_IDS
from embank.tables.serving.packed import PackedCollection
from embank.tables.serving.table import PackedTable, looked_up
from embank.tables.specs import TableSpec
from embank.tables.wording import nearest_or_all

CHUNK_NBYTES = 2**24
"""Bytes of rows that are decoded at once."""


def some_tables(collection: PackedCollection, names: Collection[str]) -> PackedCollection:
    """A collection of some of its tables, shared, not copied.

    Raises:
        ConfigError: there is no such table.
    """
    known = {spec.name: (spec, pack) for spec, pack in collection.packed_tables()}
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no table '{name}'; {nearest_or_all(name, known, label='there are')}")
    found = [pair for name, pair in known.items() if name in names]
    return PackedCollection([spec for spec, _ in found], [pack for _, pack in found]).eval()


def listed_tables(collection: PackedCollection, *, target: str) -> list[tuple[TableSpec, PackedTable]]:
    """Tables whose rows can be listed.

    Args:
        collection: of a bundle.
        target: what they are written as, for messages.

    Raises:
        ConfigError: the ids of one are hashes of tokens.
    """
    found = list(collection.packed_tables())
    hashed = [spec.name for spec, _ in found if spec.num_embeddings >= NUM_TOKEN_IDS]
    if hashed:
        listed = [spec.name for spec, _ in found if spec.name not in hashed]
        cure = f"name the others ({' '.join(f'--table {name}' for name in listed)}), or take" if listed else "take"
        raise ConfigError(
            f"target '{target}' lists the row of each id, and the ids of table '{hashed[0]}' are hashes of tokens, "
            f"2**63 of them; {cure} target pt2 or onnx, which compute rows from hashes"
        )
    return found


def chunk_rows(spec: TableSpec) -> int:
    """Rows of a table that are decoded at once."""
    return max(1, CHUNK_NBYTES // (4 * spec.embedding_dim))


@torch.inference_mode()
def decoded(spec: TableSpec, pack: PackedTable, first: int, last: int) -> Tensor:
    """The logical rows of the ids from `first` to before `last`, fp32.

    Raises:
        CheckpointError: what is served of the table is damaged.
    """
    return looked_up(pack, torch.arange(first, last), spec=spec)


def decoded_chunks(spec: TableSpec, pack: PackedTable) -> Iterator[Tensor]:
    """All logical rows of a table in order, fp32, some at a time."""
    step = chunk_rows(spec)
    for first in range(0, spec.num_embeddings, step):
        yield decoded(spec, pack, first, min(first + step, spec.num_embeddings))


def write_rows(
    file: BinaryIO, spec: TableSpec, pack: PackedTable, *, dtype: torch.dtype, written: Callable[[int], None]
) -> None:
    """Writes all logical rows of a table, one after the other, in a few chunks' memory.

    Args:
        file: open for writing.
        spec, pack: the table.
        dtype: of the numbers.
        written: is told of each number of rows that are written.

    Raises:
        ConfigError: fp16 can't hold them, or, where it is to hold them, they are NaN.
    """
    largest = 0.0
    for rows_ND in decoded_chunks(spec, pack):
        if dtype is torch.float16:
            own = largest_of(rows_ND)
            refuse_beyond_fp16(spec, own)  # NaN too, which a maximum with other chunks may lose
            largest = max(largest, own)
        file.write(rows_ND.to(dtype).contiguous().numpy().tobytes())
        written(len(rows_ND))
    if dtype is torch.float16:
        refuse_below_fp16(spec, largest)


def largest_of(rows_ND: Tensor) -> float:
    """The largest number without its sign; 0 of none, NaN where one is."""
    return float(rows_ND.abs().max()) if rows_ND.numel() else 0.0


def refuse_beyond_fp16(spec: TableSpec, largest: float) -> None:
    """Raises ConfigError where fp16 would make infinities of a table's numbers, or they are none."""
    if math.isnan(largest):
        raise ConfigError(
            f"rows of table '{spec.name}' hold NaN, which is no number in any dtype; train with a lower rate"
        )
    if not torch.tensor(largest).half().isfinite():
        raise ConfigError(
            f"rows of table '{spec.name}' reach {largest:.4g}, and fp16, in which rows or their steps and offsets "
            f"would be held, ends at {torch.finfo(torch.float16).max:,.0f}; take dtype fp32"
        )


def refuse_below_fp16(spec: TableSpec, largest: float) -> None:
    """Raises ConfigError where fp16 would make next to nothing of a table's numbers."""
    if 0 < largest < torch.finfo(torch.float16).tiny:
        raise ConfigError(
            f"rows of table '{spec.name}' reach {largest:.4g} at most, and fp16, in which rows or their steps and "
            f"offsets would be held, is exact from {torch.finfo(torch.float16).tiny:.1g} on; take dtype fp32"
        )


_MOST_NAME = 200
"""Bytes of a name: systems take 255, and some come behind it."""


def folder_names(specs: Collection[TableSpec], *, taken: Collection[str] = ()) -> dict[str, str]:
    """A name in a file system for each table, as near to its own as one can be, and none of those that are taken."""
    names: dict[str, str] = {}
    for spec in specs:
        plain = "".join(sign if sign.isalnum() or sign in "-_." else "." for sign in spec.name).lstrip(".") or "table"
        plain = plain.encode()[:_MOST_NAME].decode(errors="ignore")
        name, number = plain, 2
        while name in names.values() or name in taken:
            name, number = f"{plain}.{number}", number + 1
        names[spec.name] = name
    return names


def table_facts(spec: TableSpec) -> dict[str, object]:
    """What the manifest of an output says of a table."""
    return {
        "name": spec.name,
        "num_embeddings": spec.num_embeddings,
        "embedding_dim": spec.embedding_dim,
        "feature_names": list(spec.feature_names),
        "pooling": spec.pooling,
        "method": spec.method,
    }
