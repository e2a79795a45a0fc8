"""Compression methods, one file each, on the interface of `embank.tables`."""

from embank.compression.build import METHODS, Packed, Table, build_table

__all__ = ["METHODS", "Packed", "Table", "build_table"]
