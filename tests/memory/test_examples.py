"""The examples of the memory modules' docstrings run."""

import doctest
import pkgutil
from importlib import import_module

import pytest
import torch

from embank.tables import memory

MODULES = sorted(module.name for module in pkgutil.iter_modules(memory.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    module = import_module(f"embank.tables.memory.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch, **{n: getattr(memory, n) for n in memory.__all__}})
    assert not result.failed


def test_names_are_those_of_their_modules() -> None:
    assert set(memory.__all__) == set(memory._HOME) == set(dir(memory))
    assert all(getattr(memory, name) is not None for name in memory.__all__)
    with pytest.raises(AttributeError, match="module 'embank.tables.memory' has no attribute 'nothing'"):
        _ = memory.nothing
