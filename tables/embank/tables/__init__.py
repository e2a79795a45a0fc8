"""Embedding tables: specs, collections, row storage, the method registry, vocabularies.

Names are imported when they are first used: errors and vocabularies, which preparing data needs, do without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embank.tables.addressed import Addressed, AddressedSequence
    from embank.tables.collection import TableCollection
    from embank.tables.core import Tables
    from embank.tables.errors import BudgetError, CheckpointError, ConfigError, DataError, EmbankError, WorkError
    from embank.tables.ids import IdRangeError
    from embank.tables.method import (
        Advance,
        Carry,
        LocalRows,
        Method,
        PackedTable,
        Stage,
        build_method,
        method_class,
        register_method,
        registered_methods,
    )
    from embank.tables.rows import ROW_OPTIMIZERS, RowOptimizer, RowStore, RowTier
    from embank.tables.sequence import SequenceCollection
    from embank.tables.specs import PhysicalTable, RowInit, RowProjection, TableSpec, default_init
    from embank.tables.vocabulary import Vocabulary

__all__ = [
    "ROW_OPTIMIZERS",
    "Addressed",
    "AddressedSequence",
    "Advance",
    "BudgetError",
    "Carry",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EmbankError",
    "IdRangeError",
    "LocalRows",
    "Method",
    "PackedTable",
    "PhysicalTable",
    "RowInit",
    "RowOptimizer",
    "RowProjection",
    "RowStore",
    "RowTier",
    "SequenceCollection",
    "Stage",
    "TableCollection",
    "TableSpec",
    "Tables",
    "Vocabulary",
    "WorkError",
    "build_method",
    "default_init",
    "method_class",
    "register_method",
    "registered_methods",
]

_MODULES = ("errors", "specs", "method", "rows", "ids", "addressed", "core", "collection", "sequence", "vocabulary")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            found = vars(import_module(f"embank.tables.{module}")).get(name)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module 'embank.tables' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
