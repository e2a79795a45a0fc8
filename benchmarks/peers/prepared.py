"""Reads a folder of `embank prepare` with pyarrow and numpy alone, so that peers can do it in their own
environments."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


@dataclass(frozen=True, kw_only=True)
class Bags:
    """A multi-valued column: row i holds `ids[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray  # [N] int64
    offsets: np.ndarray  # [rows + 1] int64

    def padded(self, width: int, *, shift: int) -> np.ndarray:
        """[rows, width] int64: each bag's ids plus `shift`, filled up with zeros; longer bags are cut."""
        lengths = np.diff(self.offsets)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        places = np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], lengths)
        kept = places < width
        out = np.zeros((len(lengths), width), dtype=np.int64)
        out[rows[kept], places[kept]] = self.ids[kept] + shift
        return out

    @property
    def longest(self) -> int:
        return int(np.diff(self.offsets).max(initial=0))


def schema(folder: Path) -> dict:
    return json.loads((folder / "schema.json").read_text())


def columns(folder: Path, split: str, *, max_rows: int | None = None) -> dict[str, np.ndarray | Bags]:
    """`label`, every categorical, multi-valued and numeric feature of one split, in file order, whole in memory."""
    description = schema(folder)
    multivalued = {field["name"] for field in description["categorical"] if field["multivalued"]}
    names = ["label"] + [field["name"] for kind in ("categorical", "numeric") for field in description[kind]]
    table = pq.read_table(sorted((folder / split).glob("part-*.parquet")), columns=names)
    table = table if max_rows is None else table.slice(0, max_rows)
    return {name: bags(table[name]) if name in multivalued else table[name].to_numpy() for name in names}


def bags(column) -> Bags:
    """A list column of any number of chunks as one `Bags`."""
    array = column.combine_chunks()
    ids = array.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    return Bags(ids=ids, offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
