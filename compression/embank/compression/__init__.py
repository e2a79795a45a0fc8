"""Compression methods, one file each, on the interface of `embank.tables`."""

from embank.tables.libraries import missing_library

try:
    from embank.compression.budget.solver import share
    from embank.compression.build import METHODS, Packed, Table, build_table
    from embank.compression.multiplexing.growth import with_doubled_rows, with_lookups
    from embank.compression.multiplexing.specs import advise, unified_specs
except ModuleNotFoundError as error:
    if cure := missing_library(error):
        raise ImportError(cure, name=error.name) from error
    raise

__all__ = [
    "METHODS",
    "Packed",
    "Table",
    "advise",
    "build_table",
    "share",
    "unified_specs",
    "with_doubled_rows",
    "with_lookups",
]
