"""Rows of the tables in this folder, with pyarrow alone: `rows(load("."), "item", [3, 5])`."""

import json
from pathlib import Path

import pyarrow.dataset


def load(folder):
    """Tables by name: row i is that of id i."""
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    return {
        table["name"]: pyarrow.dataset.dataset([str(Path(folder) / part) for part in table["parts"]])
        for table in manifest["tables"]
    }


def rows(tables, name, ids):
    """The vectors of ids, in their order."""
    found = tables[name].take(ids)
    assert found["id"].to_pylist() == list(ids)
    return found["vector"].to_pylist()
