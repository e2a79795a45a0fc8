"""Embedding tables: specs, collections, row storage, the method registry, bundles, vocabularies.

Names are imported when they are first used: errors and vocabularies, which preparing data needs, do without torch.
"""

from typing import TYPE_CHECKING, Any

from embank.tables.libraries import public_name

if TYPE_CHECKING:
    from embank.tables.collections.addressed import Addressed, AddressedSequence
    from embank.tables.collections.bags import IdRangeError
    from embank.tables.collections.base import Tables
    from embank.tables.collections.pipelined import PipelinedTables
    from embank.tables.collections.pooled import TableCollection
    from embank.tables.collections.sequence import SequenceCollection
    from embank.tables.collections.stages import advance, current_stage, num_stages
    from embank.tables.errors import BudgetError, CheckpointError, ConfigError, DataError, EmbankError, WorkError
    from embank.tables.ids.hashing import hash_rows
    from embank.tables.ids.token_hash import MISSING_ID, NUM_TOKEN_IDS, token_id, token_ids, token_ids_expr
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
    from embank.tables.sharding.plan import Placement, Plan, load_plan, save_plan
    from embank.tables.sharding.planner import PlanRequest, plan_tables
    from embank.tables.sharding.sharded_rows import Sharding
    from embank.tables.specs import TableSpec
    from embank.tables.storage.checkpoint import load_checkpoint, save_checkpoint
    from embank.tables.streaming import ManagedCollisionConfig, StreamingCollection, StreamingConfig, reset_rows

__all__ = [
    "MISSING_ID",
    "NUM_TOKEN_IDS",
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
    "ManagedCollisionConfig",
    "Method",
    "PackedCollection",
    "PackedTable",
    "PhysicalTable",
    "PipelinedTables",
    "Placement",
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
    "StreamingCollection",
    "StreamingConfig",
    "TableCollection",
    "TableSpec",
    "Tables",
    "Vocabulary",
    "WorkError",
    "advance",
    "build_method",
    "current_stage",
    "default_init",
    "hash_rows",
    "load_bundle",
    "load_checkpoint",
    "load_plan",
    "method_class",
    "num_stages",
    "option_class",
    "pack_collection",
    "plan_tables",
    "register_method",
    "registered_methods",
    "reset_rows",
    "save_bundle",
    "save_checkpoint",
    "save_plan",
    "token_id",
    "token_ids",
    "token_ids_expr",
]

_HOME = {
    "MISSING_ID": "ids.token_hash",
    "NUM_TOKEN_IDS": "ids.token_hash",
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
    "ManagedCollisionConfig": "streaming",
    "Method": "method.base",
    "PackedCollection": "serving.packed",
    "PackedTable": "method.base",
    "PhysicalTable": "rows.physical",
    "PipelinedTables": "collections.pipelined",
    "Placement": "sharding.plan",
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
    "StreamingCollection": "streaming",
    "StreamingConfig": "streaming",
    "TableCollection": "collections.pooled",
    "TableSpec": "specs",
    "Tables": "collections.base",
    "Vocabulary": "ids.vocabulary",
    "WorkError": "errors",
    "advance": "collections.stages",
    "build_method": "method.base",
    "current_stage": "collections.stages",
    "default_init": "rows.physical",
    "hash_rows": "ids.hashing",
    "load_bundle": "serving.bundle",
    "load_checkpoint": "storage.checkpoint",
    "load_plan": "sharding.plan",
    "method_class": "method.base",
    "num_stages": "collections.stages",
    "option_class": "method.options",
    "pack_collection": "serving.packed",
    "plan_tables": "sharding.planner",
    "register_method": "method.base",
    "registered_methods": "method.base",
    "reset_rows": "streaming",
    "save_bundle": "serving.bundle",
    "save_checkpoint": "storage.checkpoint",
    "save_plan": "sharding.plan",
    "token_id": "ids.token_hash",
    "token_ids": "ids.token_hash",
    "token_ids_expr": "ids.token_hash",
}
"""The module of each name."""


def __getattr__(name: str) -> Any:
    found = globals()[name] = public_name(__name__, name, homes=_HOME)
    return found


def __dir__() -> list[str]:
    return __all__
