"""The examples in docstrings run as they stand, and what a package exports has one.

An example may use `torch`, the names of its own module and the public names of `embank.tables` and of the packages that
the module is in. White space does not count, so that long output may be broken.
"""

import doctest
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import embank.tables

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
ROOT = Path(__file__).parents[1]


def _modules_with_examples() -> list[str]:
    sources = [source for source in ROOT.glob("*/embank/**/*.py") if ">>> " in source.read_text()]
    paths = [source.relative_to(ROOT).with_suffix("").parts[1:] for source in sources]
    return sorted(".".join(path).removesuffix(".__init__") for path in paths)


def _public(package: Any) -> dict[str, Any]:
    return {name: getattr(package, name) for name in getattr(package, "__all__", ())}


def _scope(module: str) -> dict[str, Any]:
    parts = module.split(".")
    names = {"torch": torch, **_public(embank.tables)}
    for length in range(2, len(parts)):
        names |= _public(import_module(".".join(parts[:length])))
    return names


@pytest.mark.parametrize("name", _modules_with_examples())
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, scope = import_module(name), _scope(name)
    examples = [test for test in doctest.DocTestFinder().find(module, extraglobs=scope) if test.examples]
    assert examples
    for test in examples:
        folder = tmp_path / test.name
        folder.mkdir()
        monkeypatch.chdir(folder)  # an example may write what it likes
        assert not doctest.DocTestRunner(optionflags=OPTIONS).run(test).failed, f"{name}, line {test.lineno}"


def _needs_an_example(value: Any) -> bool:
    """Classes and functions, but for errors, protocols and what can't be made without a subclass."""
    if inspect.isclass(value):
        is_protocol = getattr(value, "_is_protocol", False)
        return not (issubclass(value, BaseException) or is_protocol or inspect.isabstract(value))
    return inspect.isfunction(value)


@pytest.mark.parametrize("package", ["tables", "compression"])
def test_every_public_class_and_function_has_an_example(package: str) -> None:
    public = _public(import_module(f"embank.{package}"))
    without = [name for name, value in public.items() if _needs_an_example(value) and ">>> " not in value.__doc__]
    assert len(public) > len(without)
    assert not without


def test_every_package_is_looked_through() -> None:
    """A glob that matches nothing would pass in silence."""
    packages = {name.split(".")[1] for name in _modules_with_examples()}
    assert packages <= {"tables", "compression", "search", "ctr_models", "pipelines"}
    assert {"tables", "compression"} <= packages
