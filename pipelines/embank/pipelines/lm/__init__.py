"""Language models with memory tables: a small one of our own (`embank lm`), and adapters for those of Hugging Face.

`add_engram`, `add_stem` and `load_memory` need the extra `lm`, and are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

from embank.tables.libraries import lazy_imports, public_name

if TYPE_CHECKING:
    from embank.pipelines.lm.adapters import ModelMemory, add_engram, add_stem, load_memory

__all__ = ["ModelMemory", "add_engram", "add_stem", "load_memory"]


def __getattr__(name: str) -> Any:
    return public_name(__name__, name, homes=lazy_imports(__file__))
