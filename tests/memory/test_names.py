"""The names of the memory package are there, each in its module."""

import pytest

from embank.tables import memory


def test_names_are_those_of_their_modules() -> None:
    assert set(memory.__all__) == set(memory._HOME) == set(dir(memory))
    assert all(getattr(memory, name) is not None for name in memory.__all__)
    with pytest.raises(AttributeError, match="module 'embank.tables.memory' has no attribute 'nothing'"):
        _ = memory.nothing
