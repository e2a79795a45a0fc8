"""Scripts of benchmarks/ as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    """The script benchmarks/NAME.py, loaded but not run."""
    found = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
