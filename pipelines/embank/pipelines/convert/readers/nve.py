"""Rows of the tables in this folder, by the format that nv-embedding-cache documents: `rows(load("."), "item", [3])`.

On a machine with pynve, `pynve.torch.nve_export.load_nve_layers(".")` makes the layers.
"""

import json
import struct
from pathlib import Path

import numpy as np


def load(folder):
    """Tables by name, mapped."""
    tables, metadata = {}, json.loads((Path(folder) / "metadata.json").read_text())
    for layer in metadata["layers"]:
        file = Path(folder) / "weights" / f"{layer['storage_ref']}.nve"
        with file.open("rb") as opened:
            magic, major, minor, packed, number, _, nbytes = struct.unpack("<3I4Q", opened.read(44))
        assert (magic, major, minor, number) == (0x4E564500, 0, 2, layer["id"])
        width, size, count = packed & 0xFFFF, packed >> 16 & 0xF, packed >> 20
        assert (width, count, nbytes) == (layer["embedding_size"], layer["num_embeddings"], width * size * count)
        tables[layer["module_path"]] = np.memmap(file, layer["dtype"], mode="r", offset=44, shape=(count, width))
    return tables


def rows(tables, name, ids):
    """The vectors of ids, in their order."""
    return tables[name][np.asarray(ids)]
