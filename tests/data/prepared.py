"""Small prepared folders for tests, written without `embank prepare`."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embank.pipelines.data.loading.integrity import seal
from embank.pipelines.data.schema import CategoricalField, NumericField, Schema, Split
from embank.tables.storage.checksums import CHECKSUMS

NO_FEATURES: Mapping[str, int] = MappingProxyType({})
DEFAULT_SINGLE: Mapping[str, int] = MappingProxyType({"user": 50, "item": 7})


def write_prepared(
    path: Path,
    *,
    rows: Mapping[str, int],
    single: Mapping[str, int] = DEFAULT_SINGLE,
    bags: Mapping[str, int] = NO_FEATURES,
    numeric: Sequence[str] = ("row",),
    group: bool = False,
    parts: int = 2,
    row_group_rows: int = 16,
    seed: int = 0,
) -> Schema:
    """A prepared folder of random rows whose labels follow their ids and numbers (see `effects`).

    With groups, the first single-valued feature is the group, so that groups hold several rows.

    Args:
        rows: split name to number of rows.
        single, bags: single- and multi-valued features, name to num_embeddings. The schema's order is by name.
        numeric: the column `row` counts the split's rows from 0; others are normal.
        parts: part files per split, of uneven sizes (an empty one is possible).
    """
    rng = np.random.default_rng(seed)
    tables = {name: _table(rng, count, single, bags, numeric, group) for name, count in rows.items()}
    for name, table in tables.items():
        _write_parts(path / name, table, rng, parts, row_group_rows)
    sizes = {**single, **bags}
    categorical = tuple(
        CategoricalField(name=name, num_embeddings=sizes[name], multivalued=name in bags, min_count=1)
        for name in sorted(sizes)
    )
    (path / "vocab").mkdir()
    for field in categorical:
        pq.write_table(_vocabulary(field.num_embeddings), path / "vocab" / f"{field.name}.parquet")
    schema = Schema(
        source="test",
        label="click",
        categorical=categorical,
        numeric=tuple(NumericField(name=name, transform="none", mean=None, std=None) for name in numeric),
        group="user" if group else None,
        splits=tuple(
            Split(name=name, num_rows=count, num_positive=int(np.sum(tables[name]["label"].to_numpy())))
            for name, count in rows.items()
        ),
        row_group_rows=row_group_rows,
        fingerprint=f"test-{seed}-{sorted(sizes.items())}",
    )
    schema.save(path)
    seal(path)
    return schema


def effects(name: str, size: int) -> np.ndarray:
    """What each id of a feature adds to the logit of the label: the signal that a model can learn, the same in all
    splits."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(scale=1.5, size=size)


def edit_part(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrite a part file, in row groups of 16, as if it had been written so."""
    pq.write_table(edit(pq.read_table(path)), path, row_group_size=16)
    (path.parents[1] / CHECKSUMS).unlink()
    seal(path.parents[1])


def _table(
    rng: np.random.Generator,
    count: int,
    single: Mapping[str, int],
    bags: Mapping[str, int],
    numeric: Sequence[str],
    group: bool,
) -> pa.Table:
    columns: dict[str, object] = {}
    logits = np.zeros(count)
    for name, size in single.items():
        ids = rng.integers(0, size, count).astype(np.int32)
        columns[name] = ids
        logits += effects(name, size)[ids]
    for name, size in bags.items():
        lengths = rng.integers(0, 4, count)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = rng.integers(0, size, offsets[-1]).astype(np.int32)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))
        np.add.at(logits, np.repeat(np.arange(count), lengths), effects(name, size)[ids] / 2)
    for name in numeric:
        values = np.arange(count) if name == "row" else rng.normal(size=count)
        columns[name] = values.astype(np.float32)
        logits += 0 if name == "row" else values / 2
    labels = (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    if group:
        owner = np.asarray(next(iter(columns.values()))) if single else rng.integers(0, 10, count)
        columns["group"] = owner.astype(np.int64) + (1 << 40)
    return pa.table({"label": labels, **columns})


def _write_parts(folder: Path, table: pa.Table, rng: np.random.Generator, parts: int, row_group_rows: int) -> None:
    folder.mkdir(parents=True)
    cuts = [0, *sorted(rng.integers(0, table.num_rows + 1, parts - 1).tolist()), table.num_rows]
    for part in range(parts):
        rows = table.slice(cuts[part], cuts[part + 1] - cuts[part])
        pq.write_table(rows, folder / f"part-{part:05d}.parquet", row_group_size=row_group_rows)


def _vocabulary(size: int) -> pa.Table:
    tokens = [None, *(f"t{i}" for i in range(1, size))]
    kinds = ["unknown", *(["token"] * (size - 1))]
    return pa.table({"token": pa.array(tokens, pa.string()), "kind": kinds, "count": np.arange(size, 0, -1)})
