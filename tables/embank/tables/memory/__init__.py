"""Memory tables of language models: rows that token ids address, and the layers that read them.

* `TokenCompression`, `NgramHash`: from token ids to row ids, ahead of the forward pass.
* `Engram` (Cheng et al., arXiv 2601.07372), `StemFFN` (arXiv 2601.10639), `MemoryFormerLinear` (arXiv 2411.12992): the
  layers.

Names are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

from embank.tables.libraries import lazy_imports, public_name

if TYPE_CHECKING:
    from embank.tables.memory.editing import Edit, EditSession
    from embank.tables.memory.engram import Engram, EngramState
    from embank.tables.memory.export import export_memory, import_rows, open_memory
    from embank.tables.memory.history import DEAD, TokenHistory, mark_tokens, starts_of_positions
    from embank.tables.memory.layouts import EngramConfig, EngramLayout, MemoryLayout, StemConfig, StemLayout
    from embank.tables.memory.memoryformer import MemoryFormerLinear
    from embank.tables.memory.ngram_hash import NgramHash
    from embank.tables.memory.overlays import apply_overlay, save_overlay
    from embank.tables.memory.position_edits import PositionEdit, occurrences, readings
    from embank.tables.memory.records import NgramRecords, write_records
    from embank.tables.memory.released import (
        dequantized,
        fill_deepseek_layer,
        fill_layer,
        fill_qwen_layer,
        qwen_config,
        qwen_shards,
    )
    from embank.tables.memory.released_layers import load_deepseek_layer, load_demo_layer, load_qwen_layer
    from embank.tables.memory.released_stem import load_stem_tables
    from embank.tables.memory.session import MemoryReader, MemorySession
    from embank.tables.memory.stem import StemFFN, stem_init_std
    from embank.tables.memory.tables import AddressedMemory, MemoryTables, memory_plan
    from embank.tables.memory.token_compression import TokenCompression
    from embank.tables.memory.trigger_rows import TriggerRows

__all__ = [
    "DEAD",
    "AddressedMemory",
    "Edit",
    "EditSession",
    "Engram",
    "EngramConfig",
    "EngramLayout",
    "EngramState",
    "MemoryFormerLinear",
    "MemoryLayout",
    "MemoryReader",
    "MemorySession",
    "MemoryTables",
    "NgramHash",
    "NgramRecords",
    "PositionEdit",
    "StemConfig",
    "StemFFN",
    "StemLayout",
    "TokenCompression",
    "TokenHistory",
    "TriggerRows",
    "apply_overlay",
    "dequantized",
    "export_memory",
    "fill_deepseek_layer",
    "fill_layer",
    "fill_qwen_layer",
    "import_rows",
    "load_deepseek_layer",
    "load_demo_layer",
    "load_qwen_layer",
    "load_stem_tables",
    "mark_tokens",
    "memory_plan",
    "occurrences",
    "open_memory",
    "qwen_config",
    "qwen_shards",
    "readings",
    "save_overlay",
    "starts_of_positions",
    "stem_init_std",
    "write_records",
]

_HOME = lazy_imports(__file__)


def __getattr__(name: str) -> Any:
    found = globals()[name] = public_name(__name__, name, homes=_HOME)
    return found


def __dir__() -> list[str]:
    return __all__
