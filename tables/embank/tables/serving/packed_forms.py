"""How a packed table is found and made again from what was saved of it. Nothing that a file names is imported or
called.

A file names a method and a class. The method comes from the registry; the class must be one of the packed tables that
the method's package has defined by then.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from embank.tables.errors import CheckpointError
from embank.tables.method.base import PackedTable, method_class
from embank.tables.specs import TableSpec


def path_of(cls: type) -> str:
    """How a class is named in a file."""
    return f"{cls.__module__}.{cls.__qualname__}"


def packed_class(method: str, path: str) -> type[PackedTable] | None:
    """The packed class "package.module.Class" of a method's package; None if there is none. No module is imported for
    it.

    Raises:
        ConfigError: there is no such method.
    """
    module, _, name = path.rpartition(".")
    folder = method_class(method).__module__.rpartition(".")[0]
    package = folder.rpartition(".")[0] or folder or method_class(method).__module__
    is_near = module == package or module.startswith(f"{package}.")
    if not is_near or module not in sys.modules:
        return None
    found = vars(sys.modules[module]).get(name)
    is_packed = isinstance(found, type) and issubclass(found, PackedTable) and path_of(found) == path
    return found if is_packed else None


def restored(
    cls: type[PackedTable], spec: TableSpec, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> PackedTable:
    """A packed table, tried on its first and its last id.

    Raises:
        CheckpointError: facts and tensors don't make one, or not one of the table's size.
    """
    ends = torch.tensor([0, spec.num_embeddings - 1])
    try:
        table = cls.restore(facts, tensors)
        shape = tuple(table.lookup(ends).shape)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a lookup of wrong tensors raises
        raise CheckpointError(f"its tensors don't make a {cls.__name__}: {error}") from error
    if shape != (2, spec.embedding_dim):
        raise CheckpointError(
            f"its tensors give rows of width {shape[-1]}, where the table has dim {spec.embedding_dim}"
        )
    return table
