"""`prepare`, the slow and obvious way: Python integers, dicts and floats, one row at a time. Also helpers to read a
folder."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

MASK = 2**64 - 1
SPLITS = ("train", "valid", "test")
Row = Mapping[str, str | None]
WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def cell(text: str | None) -> str | None:
    """A cell without white space around it (Unicode's White_Space); an empty one is missing."""
    return (text or "").strip(WHITE) or None


def mix64(value: int) -> int:
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK
    return value ^ value >> 31


def hash_token(token: str | None) -> int:
    if token is None:
        return 0x9E3779B97F4A7C15
    value = 0xCBF29CE484222325
    for byte in token.encode():
        value = ((value ^ byte) * 0x100000001B3) & MASK
    return mix64(value)


def spell(value: Any) -> str | None:
    """The token of a value of Parquet: one text for a value, whatever its type."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (float, np.floating)) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    if isinstance(value, (float, np.floating)) and value == np.rint(value):
        return str(int(value))
    if isinstance(value, (int, float, np.number, Decimal)):
        digits = format(Decimal(str(value)), "f")
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    return value.strip() or None if isinstance(value, str) else value


def hash_row(parts: Sequence[int], seed: int) -> float:
    value = mix64((seed + 0x9E3779B97F4A7C15) & MASK)
    for part in parts:
        value = mix64(((value * 0x100000001B3) & MASK) ^ part)
    return (value >> 11) * 2.0**-53


def hash_split(parts: Sequence[int], ratios: Sequence[float], seed: int = 0) -> str:
    position = hash_row(parts, seed)
    return SPLITS[(position >= ratios[0]) + (position >= ratios[0] + ratios[1])]


def transform(text: str, kind: str, mean: float = 0.0, std: float = 1.0) -> float:
    value = float(text)
    if kind == "log1p":
        return math.log1p(value) if value > 0 else 0.0
    if kind == "log_squared":
        return float(math.floor(math.log(value) ** 2)) if value > 2 else value
    return (value - mean) / std if kind == "standard" else value


def numbers(cells: Sequence[str | None], train: Sequence[str | None], kind: str, missing: str) -> list[float]:
    """What is written for the cells of a numeric feature, given those of its training part; None is a missing
    number."""
    seen = [float(cell) for cell in train if cell is not None]
    mean = math.fsum(seen) / len(seen)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in seen) / len(seen)) or 1.0
    transformed = [transform(cell, kind, mean, std) for cell in train if cell is not None]
    fill = 0.0 if missing == "zero" else math.fsum(transformed) / len(transformed)
    return [fill if cell is None else transform(cell, kind, mean, std) for cell in cells]


def vocabulary(tokens: Sequence[str | None], min_count: int) -> dict[str | None, int]:
    """Token to id; a token that is not in it has id 0."""
    counts = Counter(tokens)
    kept = [token for token, count in counts.items() if count >= min_count]
    kept.sort(key=lambda token: (-counts[token], b"" if token is None else b"\1" + token.encode()))
    return {token: rank for rank, token in enumerate(kept, start=1)}


def read_rows(folder: Path, split: str) -> list[dict[str, Any]]:
    """Rows of a split in the order of its parts."""
    parts = sorted((folder / split).glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def read_vocabulary(folder: Path, feature: str) -> list[tuple[str | None, str, int]]:
    return pl.read_parquet(folder / "vocab" / f"{feature}.parquet").rows()


def read_schema(folder: Path) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((folder / "schema.json").read_text())
    return schema


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and what is in it."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def decode(folder: Path, feature: str, ids: int | list[int]) -> Any:
    """Tokens of ids; "?" for the unknown value, None for the missing one."""
    rows = read_vocabulary(folder, feature)
    if isinstance(ids, list):
        return [decode(folder, feature, one) for one in ids]
    return "?" if ids == 0 else rows[ids][0]
