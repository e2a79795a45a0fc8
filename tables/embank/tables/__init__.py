"""Embedding tables: specs, collections, row storage, the method registry, bundles, vocabularies.

Names are imported when they are first used: errors and vocabularies, which preparing data needs, do without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embank.tables.addressed import Addressed, AddressedSequence
    from embank.tables.bundle import Bundle, load_bundle, save_bundle
    from embank.tables.collection import TableCollection
    from embank.tables.core import Tables
    from embank.tables.errors import BudgetError, CheckpointError, ConfigError, DataError, EmbankError, WorkError
    from embank.tables.features import IdRangeError
    from embank.tables.method import (
        Advance,
        Carry,
        LocalRows,
        Method,
        PackedTable,
        Score,
        Stage,
        build_method,
        method_class,
        register_method,
        registered_methods,
    )
    from embank.tables.packed import PackedCollection, pack_collection
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
    "Bundle",
    "Carry",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EmbankError",
    "IdRangeError",
    "LocalRows",
    "Method",
    "PackedCollection",
    "PackedTable",
    "PhysicalTable",
    "RowInit",
    "RowOptimizer",
    "RowProjection",
    "RowStore",
    "RowTier",
    "Score",
    "SequenceCollection",
    "Stage",
    "TableCollection",
    "TableSpec",
    "Tables",
    "Vocabulary",
    "WorkError",
    "build_method",
    "default_init",
    "load_bundle",
    "method_class",
    "pack_collection",
    "register_method",
    "registered_methods",
    "save_bundle",
]

_MODULES = (
    "errors",
    "specs",
    "method",
    "rows",
    "addressed",
    "features",
    "core",
    "collection",
    "sequence",
    "packed",
    "bundle",
    "vocabulary",
)


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
