"""Embedding tables: specs, collections, row storage, the method registry."""

from embank.tables.addressed import Addressed
from embank.tables.collection import IdRangeError, TableCollection
from embank.tables.errors import BudgetError, CheckpointError, ConfigError, DataError, EmbankError, WorkError
from embank.tables.method import Method, PackedTable, build_method, method_class, register_method, registered_methods
from embank.tables.rows import ROW_OPTIMIZERS, RowOptimizer, RowStore, RowTier
from embank.tables.specs import PhysicalTable, RowInit, TableSpec, default_init

__all__ = [
    "ROW_OPTIMIZERS",
    "Addressed",
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EmbankError",
    "IdRangeError",
    "Method",
    "PackedTable",
    "PhysicalTable",
    "RowInit",
    "RowOptimizer",
    "RowStore",
    "RowTier",
    "TableCollection",
    "TableSpec",
    "WorkError",
    "build_method",
    "default_init",
    "method_class",
    "register_method",
    "registered_methods",
]
