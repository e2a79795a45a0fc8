"""Embedding tables: specs, collections, row storage, the method registry, bundles, vocabularies.

Names are imported when they are first used: errors and vocabularies, which preparing data needs, do without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embank.tables.libraries import missing_library

if TYPE_CHECKING:
    from embank.tables.collections.addressed import Addressed, AddressedSequence
    from embank.tables.collections.bags import IdRangeError
    from embank.tables.collections.base import Tables
    from embank.tables.collections.pooled import TableCollection
    from embank.tables.collections.sequence import SequenceCollection
    from embank.tables.errors import BudgetError, CheckpointError, ConfigError, DataError, EmbankError, WorkError
    from embank.tables.ids.vocabulary import Vocabulary
    from embank.tables.method.base import (
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
    from embank.tables.method.local_rows import LocalRows, Score
    from embank.tables.method.options import option_class
    from embank.tables.rows import ROW_OPTIMIZERS, RowOptimizer, RowStore, RowTier
    from embank.tables.rows.physical import PhysicalTable, RowInit, RowProjection, default_init
    from embank.tables.serving.bundle import Bundle, load_bundle, save_bundle
    from embank.tables.serving.packed import PackedCollection, pack_collection
    from embank.tables.sharding.plan import Plan, load_plan, save_plan
    from embank.tables.sharding.planner import PlanRequest, plan_tables
    from embank.tables.sharding.sharded_rows import Sharding
    from embank.tables.specs import TableSpec
    from embank.tables.storage.checkpoint import load_checkpoint, save_checkpoint

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
    "option_class",
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
    "Addressed": "collections.addressed",
    "AddressedSequence": "collections.addressed",
    "Advance": "method.base",
    "BudgetError": "errors",
    "Bundle": "serving.bundle",
    "Carry": "method.base",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "EmbankError": "errors",
    "IdRangeError": "collections.bags",
    "LocalRows": "method.local_rows",
    "Method": "method.base",
    "PackedCollection": "serving.packed",
    "PackedTable": "method.base",
    "PhysicalTable": "rows.physical",
    "Plan": "sharding.plan",
    "PlanRequest": "sharding.planner",
    "RowInit": "rows.physical",
    "RowOptimizer": "rows",
    "RowProjection": "rows.physical",
    "RowStore": "rows",
    "RowTier": "rows",
    "Score": "method.local_rows",
    "SequenceCollection": "collections.sequence",
    "Sharding": "sharding.sharded_rows",
    "Stage": "method.base",
    "TableCollection": "collections.pooled",
    "TableSpec": "specs",
    "Tables": "collections.base",
    "Vocabulary": "ids.vocabulary",
    "WorkError": "errors",
    "build_method": "method.base",
    "default_init": "rows.physical",
    "load_bundle": "serving.bundle",
    "load_checkpoint": "storage.checkpoint",
    "load_plan": "sharding.plan",
    "method_class": "method.base",
    "option_class": "method.options",
    "pack_collection": "serving.packed",
    "plan_tables": "sharding.planner",
    "register_method": "method.base",
    "registered_methods": "method.base",
    "save_bundle": "serving.bundle",
    "save_checkpoint": "storage.checkpoint",
    "save_plan": "sharding.plan",
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
