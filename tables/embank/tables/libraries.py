"""The libraries that embank's metadata doesn't ask for: a CPU and a GPU need other builds of them, or few need them."""

import ast
from collections.abc import Mapping
from importlib import import_module
from typing import Any

_CURES = {
    "torch": "install torch 2.13.0: the CPU build, or the one for your CUDA version",
    "torchrec": (
        "install it beside the FBGEMM of this machine: without a GPU 'pip install fbgemm-gpu-cpu==1.8.0' and "
        "'pip install --no-deps torchrec==1.8.0', with one \"pip install 'embank[gpu]'\""
    ),
    "fastapi": "pip install 'embank[serve]'",
    "prometheus_client": "pip install 'embank[serve]'",
    "starlette": "pip install 'embank[serve]'",
    "uvicorn": "pip install 'embank[serve]'",
    "onnx": "pip install 'embank[onnx]'",
    "onnxruntime": "pip install 'embank[onnx]'",
    "onnxscript": "pip install 'embank[onnx]'",
    "tokenizers": "pip install 'embank[lm]'",
    "transformers": "pip install 'embank[lm]'",
    "fbgemm_gpu": "without a GPU 'pip install fbgemm-gpu-cpu==1.8.0', with one \"pip install 'embank[gpu]'\"",
}


def missing_library(error: ImportError) -> str | None:
    """What to install where one of these libraries is missing: a sentence.

    Args:
        error: as an import raised it.

    Returns:
        None where another module is missing.

    Example:
        >>> missing_library(ModuleNotFoundError(name="torchrec"))[:32]
        'torchrec is not installed; insta'
    """
    library = (error.name or "").partition(".")[0]
    return f"{library} is not installed; {_CURES[library]}" if library in _CURES else None


def lazy_imports(file: str) -> dict[str, str]:
    """The module of each name that a package imports under its `if TYPE_CHECKING:`.

    Type checkers and editors read these imports; so does this, and the names stand in one place.

    Args:
        file: as in `__file__` of the package.
    """
    with open(file, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def public_name(package: str, name: str, *, homes: Mapping[str, str]) -> Any:
    """What a package exports under a name, imported now: the body of its `__getattr__`.

    Args:
        package: as in `__name__`.
        name: that was asked for.
        homes: the module of each public name.

    Raises:
        AttributeError: the package has no such name.
        ImportError: a library is missing; the message says which, and how to install it.
    """
    if name not in homes:
        raise AttributeError(f"module '{package}' has no attribute '{name}'")
    try:
        return getattr(import_module(homes[name]), name)
    except ModuleNotFoundError as error:
        cure = missing_library(error)
        if cure is None:
            raise
        raise ImportError(f"{package}.{name}: {cure}", name=error.name) from error
