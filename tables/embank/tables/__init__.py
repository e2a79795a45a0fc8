"""Embedding tables: specs, collections, row storage, the method registry, bundles, vocabularies.

Names are imported when they are first used: errors and vocabularies, which preparing data needs, do without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embank.tables.libraries import missing_library

if TYPE_CHECKING:
    from embank.tables.addressed import Addressed, AddressedSequence
    from embank.tables.bundle import Bundle, load_bundle, save_bundle
    from embank.tables.checkpoint import load_checkpoint, save_checkpoint
    from embank.tables.collection import TableCollection
    from embank.tables.core import Tables
    from embank.tables.errors import BudgetError, CheckpointError, ConfigError, DataError, EmbankError, WorkError
    from embank.tables.features import IdRangeError
    from embank.tables.local_rows import LocalRows, Score
    from embank.tables.method import (
        Advance,
        Carry,
        Method,
        PackedTable,
        Stage,
        build_method,
        method_class,
        register_method,
        registered_methods,
    )
    from embank.tables.packed import PackedCollection, pack_collection
    from embank.tables.plan import Plan, load_plan, save_plan
    from embank.tables.planning import PlanRequest, plan_tables
    from embank.tables.rows import ROW_OPTIMIZERS, RowOptimizer, RowStore, RowTier
    from embank.tables.rows.sharded import Sharding
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
    "Plan",
    "PlanRequest",
    "RowInit",
    "RowOptimizer",
    "RowProjection",
    "RowStore",
    "RowTier",
    "Score",
    "SequenceCollection",
    "Sharding",
    "Stage",
    "TableCollection",
    "TableSpec",
    "Tables",
    "Vocabulary",
    "WorkError",
    "build_method",
    "default_init",
    "load_bundle",
    "load_checkpoint",
    "load_plan",
    "method_class",
    "pack_collection",
    "plan_tables",
    "register_method",
    "registered_methods",
    "save_bundle",
    "save_checkpoint",
    "save_plan",
]

_HOME = {
    "ROW_OPTIMIZERS": "rows",
    "Addressed": "addressed",
    "AddressedSequence": "addressed",
    "Advance": "method",
    "BudgetError": "errors",
    "Bundle": "bundle",
    "Carry": "method",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "EmbankError": "errors",
    "IdRangeError": "features",
    "LocalRows": "local_rows",
    "Method": "method",
    "PackedCollection": "packed",
    "PackedTable": "method",
    "PhysicalTable": "specs",
    "Plan": "plan",
    "PlanRequest": "planning",
    "RowInit": "specs",
    "RowOptimizer": "rows",
    "RowProjection": "specs",
    "RowStore": "rows",
    "RowTier": "rows",
    "Score": "local_rows",
    "SequenceCollection": "sequence",
    "Sharding": "rows.sharded",
    "Stage": "method",
    "TableCollection": "collection",
    "TableSpec": "specs",
    "Tables": "core",
    "Vocabulary": "vocabulary",
    "WorkError": "errors",
    "build_method": "method",
    "default_init": "specs",
    "load_bundle": "bundle",
    "load_checkpoint": "checkpoint",
    "load_plan": "plan",
    "method_class": "method",
    "pack_collection": "packed",
    "plan_tables": "planning",
    "register_method": "method",
    "registered_methods": "method",
    "save_bundle": "bundle",
    "save_checkpoint": "checkpoint",
    "save_plan": "plan",
}
"""The module of each name."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'embank.tables' has no attribute '{name}'")
    try:
        found = getattr(import_module(f"embank.tables.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        cure = missing_library(error)
        if cure is None:
            raise
        raise ImportError(f"embank.tables.{name}: {cure}", name=error.name) from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
