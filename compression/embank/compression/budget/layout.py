"""Serving bytes of a table that is not built: from the shapes of its packed form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from embank.compression.budget.floors import budget_nbytes
from embank.compression.parts.quantiser import QuantisedRows
from embank.tables import Method, PackedTable, TableSpec, build_method, physical_tables
from embank.tables.serving.codecs.base import MIN_NUMBERS

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
        names: of the physical table that a matrix is, which other tables may share; "" where it is none.
        rest_nbytes: of everything else.
        is_exact: False where only training decides (pruned entries, shared blocks): then it is as many bytes as the
            budget allows.
    """

    matrices: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
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
        shape = method.quantiser.shape
        centroids = (shape.num_codebooks * shape.num_codes, spec.embedding_dim // shape.num_codebooks)
        return _layout([centroids], [""], nbytes=shape.nbytes(spec.num_embeddings, spec.embedding_dim))
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _exact(method)


def _bound(spec: TableSpec) -> Layout:
    allowed = budget_nbytes(spec)
    return Layout(matrices=(), names=(), rest_nbytes=spec.plain_nbytes if allowed is None else allowed, is_exact=False)


def is_decided_in_training(method: type[Method]) -> bool:
    """Whether the size of the packed form depends on what is trained."""
    schedule = method.traits.schedule
    return len(schedule.stages) > 1 or schedule.settles


@torch.no_grad()
def _exact(method: Method) -> Layout:
    """The layout of what a method serves of rows without data."""
    tables = physical_tables(method)
    rows = {table.name: torch.empty(table.num_embeddings, table.embedding_dim) for table in tables}
    served, own = method.served(rows), {id(matrix): name for name, matrix in rows.items()}
    plain = [matrix for matrix in served.matrices.values() if isinstance(matrix, torch.Tensor)]
    shapes = [(matrix.shape[0], matrix.shape[1]) for matrix in plain]
    names = [own.get(id(matrix), "") for matrix in plain]
    return _layout(shapes, names, nbytes=PackedTable.of(served, codec="fp32").nbytes())


def _layout(shapes: Sequence[tuple[int, int]], names: Sequence[str], *, nbytes: int) -> Layout:
    """A layout of so many bytes; small matrices stay fp32 under any codec."""
    coded = [(shape, name) for shape, name in zip(shapes, names, strict=True) if shape[0] * shape[1] >= MIN_NUMBERS]
    rest_nbytes = nbytes - sum(fp32_nbytes(*shape) for shape, _ in coded)
    return Layout(
        matrices=tuple(shape for shape, _ in coded),
        names=tuple(name for _, name in coded),
        rest_nbytes=rest_nbytes,
        is_exact=True,
    )
