"""Bundles of format version 1, in which each method had a packed class of its own.

What that class becomes is known to the package of the method, which says so by an entry point of the group
`embank.packed_v1`: a function of the table's spec, the class's name, its facts and its tensors.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor

from embank.tables.errors import CheckpointError
from embank.tables.method.registry import method_class
from embank.tables.serving.table import PackedTable
from embank.tables.specs import TableSpec

ENTRY_POINTS = "embank.packed_v1"


def restored_v1(spec: TableSpec, packed: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PackedTable:
    """A table of a bundle of version 1.

    Args:
        spec: of the table.
        packed: name of its packed class, with that of its module.
        facts, tensors: what it held.

    Raises:
        CheckpointError: no installed package knows the class.
        ConfigError: there is no such method.
    """
    method_class(spec.method)
    name = packed.rpartition(".")[2]
    for point in entry_points(group=ENTRY_POINTS):
        table: PackedTable | None = point.load()(spec, name, facts, tensors)
        if table is not None:
            return table
    raise CheckpointError(
        f"it is a {name}, which method '{spec.method}' no longer has; load it with the embank that wrote it, or export "
        "it again"
    )
