"""Rows of the tables in this folder, with safetensors and NumPy alone: `rows(load("."), "item", [3, 5])`."""

from pathlib import Path

from safetensors import safe_open


def load(folder):
    """The file, mapped: rows are read as they are asked for."""
    return safe_open(Path(folder) / "tables.safetensors", framework="numpy")


def rows(file, name, ids):
    """The vectors of ids, in their order."""
    table = file.get_slice(name)
    return [table[int(number)] for number in ids]
