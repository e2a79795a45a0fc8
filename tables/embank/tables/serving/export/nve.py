"""Tables in the layout of NVIDIA's nv-embedding-cache: `metadata.json` (schema 2) and a file of rows for each table.

A file of rows is its magic number and version (three uint32: 0x4e564500, 0, 2), then an entry of four uint64: width,
bytes of a number and number of rows in 16, 4 and 44 bits; the layer's id; where the next entry begins; bytes of the
rows; then the rows. All is little endian. `metadata.json` lists blocks of memory and layers, which name their block.

Source: https://github.com/NVIDIA/nv-embedding-cache, release 26.06: docs/python_api.md (Shared storage and resources),
python/pynve/torch/nve_export.py, src/serialization.cpp.
"""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embank.tables.errors import ConfigError
from embank.tables.serving.export.decoded import table_facts, write_rows
from embank.tables.serving.export.safetensors import TYPES
from embank.tables.serving.table import PackedTable
from embank.tables.specs import TableSpec

SCHEMA, METADATA, WEIGHTS = 2, "metadata.json", "weights"
MAGIC, VERSION = 0x4E564500, (0, 2)
_WIDTH_BITS, _SIZE_BITS, _ROWS_BITS = 16, 4, 44
_NAMES = {"fp32": ("float32", 4), "fp16": ("float16", 2)}


def write_nve(
    folder: Path,
    tables: Sequence[tuple[TableSpec, PackedTable]],
    *,
    dtype: str = "fp32",
    written: Callable[[int], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Writes the rows of tables, decoded, each table as a bag layer of its name on the host.

    Memory is that of a few chunks, however large a table is.

    Args:
        folder: is there.
        tables: with ids that can be listed.
        dtype: fp32 or fp16.
        written: is told of each number of rows that are written.

    Returns:
        Of each table what a manifest says of it.

    Raises:
        ConfigError: a table that is too wide or too long for the format.
    """
    name, size = _NAMES[dtype]
    for spec, _ in tables:
        if spec.embedding_dim >= 1 << _WIDTH_BITS or spec.num_embeddings >= 1 << _ROWS_BITS:
            raise ConfigError(
                f"table '{spec.name}' has {spec.num_embeddings:,} rows of {spec.embedding_dim:,} numbers; nve holds "
                f"fewer than 2**{_ROWS_BITS} rows of fewer than 2**{_WIDTH_BITS}. Take target safetensors"
            )
    (folder / WEIGHTS).mkdir()
    layers, blocks, facts = [], {}, []
    for number, (spec, pack) in enumerate(tables):
        key = f"mb-{number}"
        blocks[key] = {
            "type": "Host",
            "row_elements": spec.embedding_dim,
            "num_rows": spec.num_embeddings,
            "dtype": name,
        }
        layers.append(_layer(spec, number=number, key=key, dtype=name))
        with (folder / WEIGHTS / f"{key}.nve").open("wb") as file:
            nbytes = spec.num_embeddings * spec.embedding_dim * size
            shape = spec.embedding_dim | size << _WIDTH_BITS | spec.num_embeddings << (_WIDTH_BITS + _SIZE_BITS)
            file.write(struct.pack("<3I", MAGIC, *VERSION))
            file.write(struct.pack("<4Q", shape, number, file.tell() + struct.calcsize("<4Q") + nbytes, nbytes))
            write_rows(file, spec, pack, dtype=TYPES[dtype][1], written=written)
        facts.append({**table_facts(spec), "dtype": dtype, "layer": number, "file": f"{WEIGHTS}/{key}.nve"})
    metadata = {"version": SCHEMA, "resources": {"remote_ps": {}, "memblocks": blocks}, "layers": layers}
    (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return facts


def _layer(spec: TableSpec, *, number: int, key: str, dtype: str) -> dict[str, Any]:
    """A layer on the host, which also runs where there is no GPU."""
    return {
        "id": number,
        "module_path": spec.name,
        "num_embeddings": spec.num_embeddings,
        "embedding_size": spec.embedding_dim,
        "dtype": dtype,
        "layer_type": "HostLayer",
        "gpu_cache_size": 0,
        "host_cache_size": 0,
        "optimize_for_training": False,
        "is_bag": True,
        "mode": spec.pooling,
        "storage_ref": key,
        "config": {},
    }
