"""Serving bytes of a table that is not built: from the shapes of its packed form."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from embank.compression.budget.floors import budget_nbytes
from embank.tables import Method, PackedTable, TableSpec, build_method, physical_tables

CodecNbytes = Callable[[int, int], int]
"""Bytes of a coded matrix by its rows and columns."""


def fp32_nbytes(num_rows: int, num_columns: int) -> int:
    """Bytes of a matrix that is not coded."""
    return 4 * num_rows * num_columns


PLAIN: Mapping[str, CodecNbytes] = {"fp32": fp32_nbytes}
"""The codecs by default: none."""


_MOST_PACKED = 20_000
"""Rows that are packed, all zeros, for the sake of their bytes, where the shapes alone do not do."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the packed form of a table holds.

    Args:
        matrices: rows and columns of each matrix that is served in a codec of choice.
        rest_nbytes: of everything else.
        is_exact: False where only training decides (pruned entries, shared blocks), and where packing takes long: then
            it is as many bytes as the budget allows.
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
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _exact(method, lambda rows, dim: torch.empty(rows, dim))
    except DataDependentOutputException:  # it looks at values, though its size does not depend on them
        if spec.num_embeddings > _MOST_PACKED:
            return _bound(spec)
        return _exact(method, lambda rows, dim: torch.zeros(1, dim).expand(rows, dim))


def _bound(spec: TableSpec) -> Layout:
    allowed = budget_nbytes(spec)
    return Layout(matrices=(), rest_nbytes=spec.plain_nbytes if allowed is None else allowed, is_exact=False)


def is_decided_in_training(method: type[Method]) -> bool:
    """Whether the size of the packed form depends on what is trained."""
    schedule = method.traits.schedule
    return len(schedule.stages) > 1 or schedule.settles


@torch.no_grad()
def _exact(method: Method, make: Callable[[int, int], torch.Tensor]) -> Layout:
    """The layout of what a method serves of rows that `make` makes."""
    tables = physical_tables(method)
    served = method.served({table.name: make(table.num_embeddings, table.embedding_dim) for table in tables})
    matrices = tuple((m.shape[0], m.shape[1]) for m in served.matrices.values() if isinstance(m, torch.Tensor))
    packed = PackedTable.of(served, codec="fp32")
    rest_nbytes = packed.nbytes() - sum(fp32_nbytes(*shape) for shape in matrices)
    return Layout(matrices=matrices, rest_nbytes=rest_nbytes, is_exact=True)
