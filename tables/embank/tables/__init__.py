"""Embedding tables: specs, collections, row storage, the method registry, bundles, vocabularies.

Names are imported when they are first used: errors and vocabularies, which preparing data needs, do without torch.
"""

from typing import TYPE_CHECKING, Any

from embank.tables.libraries import lazy_imports, public_name

if TYPE_CHECKING:
    from embank.tables.collections.addressed import Addressed, AddressedSequence
    from embank.tables.collections.base import Tables
    from embank.tables.collections.fitting import fit_tables
    from embank.tables.collections.given import GivenRows
    from embank.tables.collections.ids import IdRangeError
    from embank.tables.collections.importing import ImportedRows
    from embank.tables.collections.pipelined import PipelinedTables
    from embank.tables.collections.pooled import TableCollection
    from embank.tables.collections.sequence import SequenceCollection
    from embank.tables.collections.stages import advance, current_stage, num_stages
    from embank.tables.collections.straight_through import StraightThrough
    from embank.tables.errors import BudgetError, CheckpointError, ConfigError, DataError, EmbankError, WorkError
    from embank.tables.ids.hashing import hash_rows
    from embank.tables.ids.token_hash import token_id, token_ids, token_ids_expr
    from embank.tables.ids.token_space import MISSING_ID, NUM_TOKEN_IDS
    from embank.tables.ids.vocabulary import Vocabulary
    from embank.tables.method.allocation import Allocation, WholeTables
    from embank.tables.method.base import (
        Combined,
        DistinctMethod,
        Held,
        JointSpine,
        Method,
        Served,
        Spine,
        Traits,
        own_table,
        physical_tables,
    )
    from embank.tables.method.fitting import CurrentRows, Fitted, Fitting, NewRows, OwnRows, Wanted
    from embank.tables.method.local_rows import LocalRows, Score
    from embank.tables.method.modes import statistics_move
    from embank.tables.method.options import option_class
    from embank.tables.method.registry import build_method, method_class, register_method, registered_methods
    from embank.tables.method.schedule import Advance, Carry, Schedule, Stage
    from embank.tables.rows import ROW_OPTIMIZERS, RowOptimizer, RowStore, RowTier
    from embank.tables.rows.physical import PhysicalTable, RowInit, RowProjection, default_init
    from embank.tables.serving.bundle import Bundle, load_bundle
    from embank.tables.serving.codecs.base import Coded
    from embank.tables.serving.codecs.fidelity import Fidelity, fidelity
    from embank.tables.serving.codecs.registry import (
        NamedCodec,
        codec_class,
        encode,
        named_codec,
        register_codec,
        registered_codecs,
    )
    from embank.tables.serving.packed import PackedCollection
    from embank.tables.serving.packing import pack_collection
    from embank.tables.serving.plain import PlainCollection
    from embank.tables.serving.saving import save_bundle
    from embank.tables.serving.table import PackedTable, pack_table
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
    "Allocation",
    "BudgetError",
    "Bundle",
    "Carry",
    "CheckpointError",
    "Coded",
    "Combined",
    "ConfigError",
    "CurrentRows",
    "DataError",
    "DistinctMethod",
    "EmbankError",
    "Fidelity",
    "Fitted",
    "Fitting",
    "GivenRows",
    "Held",
    "IdRangeError",
    "ImportedRows",
    "JointSpine",
    "LocalRows",
    "ManagedCollisionConfig",
    "Method",
    "NamedCodec",
    "NewRows",
    "OwnRows",
    "PackedCollection",
    "PackedTable",
    "PhysicalTable",
    "PipelinedTables",
    "Placement",
    "PlainCollection",
    "Plan",
    "PlanRequest",
    "RowInit",
    "RowOptimizer",
    "RowProjection",
    "RowStore",
    "RowTier",
    "Schedule",
    "Score",
    "SequenceCollection",
    "Served",
    "Sharding",
    "Spine",
    "Stage",
    "StraightThrough",
    "StreamingCollection",
    "StreamingConfig",
    "TableCollection",
    "TableSpec",
    "Tables",
    "Traits",
    "Vocabulary",
    "Wanted",
    "WholeTables",
    "WorkError",
    "advance",
    "build_method",
    "codec_class",
    "current_stage",
    "default_init",
    "encode",
    "fidelity",
    "fit_tables",
    "hash_rows",
    "load_bundle",
    "load_checkpoint",
    "load_plan",
    "method_class",
    "named_codec",
    "num_stages",
    "option_class",
    "own_table",
    "pack_collection",
    "pack_table",
    "physical_tables",
    "plan_tables",
    "register_codec",
    "register_method",
    "registered_codecs",
    "registered_methods",
    "reset_rows",
    "save_bundle",
    "save_checkpoint",
    "save_plan",
    "statistics_move",
    "token_id",
    "token_ids",
    "token_ids_expr",
]

_HOME = lazy_imports(__file__)


def __getattr__(name: str) -> Any:
    found = globals()[name] = public_name(__name__, name, homes=_HOME)
    return found


def __dir__() -> list[str]:
    return __all__
