"""Memory tables for causal language models of Hugging Face's transformers."""

from embank.pipelines.lm.adapters.attach import add_engram, add_stem
from embank.pipelines.lm.adapters.folder import load_memory
from embank.pipelines.lm.adapters.model_memory import ModelMemory

__all__ = ["ModelMemory", "add_engram", "add_stem", "load_memory"]
