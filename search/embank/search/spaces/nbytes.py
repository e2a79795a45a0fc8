"""Serving bytes of a table that is not built: from the shapes of its packed form."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from embank.compression.budget.floors import budget_nbytes
from embank.compression.parts.quantiser import QuantisedRows
from embank.tables import Method, PackedTable, TableSpec, build_method, physical_tables

CodecNbytes = Callable[[int, int], int]
"""Bytes of a coded matrix by its rows and columns."""


def fp32_nbytes(num_rows: int, num_columns: int) -> int:
    """Bytes of a matrix that is not coded."""
    return 4 * num_rows * num_columns


PLAIN: Mapping[str, CodecNbytes] = {"fp32": fp32_nbytes}
"""The codecs by default: none."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the packed form of a table holds.

    Args:
        matrices: rows and columns of each matrix that is served in a codec of choice.
        rest_nbytes: of everything else.
        is_exact: False where only training decides (pruned entries, shared blocks): then it is as many bytes as the
            budget allows.
    """

    matrices: tuple[tuple[int, int], ...]
    rest_nbytes: int
    is_exact: bool

    def nbytes(self, codec: CodecNbytes = fp32_nbytes) -> int:
        """Serving bytes with those matrices coded."""
        return self.rest_nbytes + sum(codec(rows, columns) for rows, columns in self.matrices)


def layout_of(spec: TableSpec) -> Layout:
    """The layout of a table's packed form, without its rows: the method packs tensors that have a shape and no data.

    Args:
        spec: a table whose size its options or its budget decide.

    Raises:
        BudgetError: the budget is below the method's floor.
        ConfigError: what the method refuses.
    """
    method = build_method(spec)
    if is_decided_in_training(type(method)):
        return _bound(spec)
    if isinstance(method, QuantisedRows):  # which codes are nearest, values say, but not how many bytes they have
        nbytes = method.quantiser.shape.nbytes(spec.num_embeddings, spec.embedding_dim)
        return Layout(matrices=(), rest_nbytes=nbytes, is_exact=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _exact(method)


def _bound(spec: TableSpec) -> Layout:
    allowed = budget_nbytes(spec)
    return Layout(matrices=(), rest_nbytes=spec.plain_nbytes if allowed is None else allowed, is_exact=False)


def is_decided_in_training(method: type[Method]) -> bool:
    """Whether the size of the packed form depends on what is trained."""
    schedule = method.traits.schedule
    return len(schedule.stages) > 1 or schedule.settles


@torch.no_grad()
def _exact(method: Method) -> Layout:
    """The layout of what a method serves of rows without data."""
    tables = physical_tables(method)
    served = method.served({table.name: torch.empty(table.num_embeddings, table.embedding_dim) for table in tables})
    matrices = tuple((m.shape[0], m.shape[1]) for m in served.matrices.values() if isinstance(m, torch.Tensor))
    packed = PackedTable.of(served, codec="fp32")
    rest_nbytes = packed.nbytes() - sum(fp32_nbytes(*shape) for shape in matrices)
    return Layout(matrices=matrices, rest_nbytes=rest_nbytes, is_exact=True)
