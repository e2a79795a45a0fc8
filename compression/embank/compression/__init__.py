"""Compression methods, one file each, on the interface of `embank.tables`."""

from embank.tables.libraries import missing_library

try:
    from embank.compression.build import METHODS, Packed, Table, build_table
except ModuleNotFoundError as error:
    if cure := missing_library(error):
        raise ImportError(cure, name=error.name) from error
    raise

__all__ = ["METHODS", "Packed", "Table", "build_table"]
