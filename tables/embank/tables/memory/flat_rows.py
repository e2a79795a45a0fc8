"""Rows of many tables as one matrix: the read path of decoding, where a token asks each table for one row.

FBGEMM's kernels, offsets of bags and checks are made for thousands of ids; for sixteen they cost a hundred times what
the rows do. Tables of one width lie one after the other in a store's memory, so one `index_select` reads them all.
"""

from bisect import bisect
from collections.abc import Sequence

import torch
from torch import Tensor

from embank.tables.collections.sequence import SequenceCollection
from embank.tables.errors import ConfigError


class FlatRows:
    """A view of the rows of a collection's plain tables.

    It shares their memory: what training or editing writes is read at once. On a GPU with a cache, make it anew after
    rows have changed.

    Args:
        tables: plain tables of one width, all of whose rows this process holds.

    Attributes:
        first_rows: of each table in the matrix, by name.
        dim: width of a row.

    Raises:
        ConfigError: rows of other processes, of several widths, or of tables that compute them.
    """

    def __init__(self, tables: SequenceCollection) -> None:
        _refuse_others(tables)
        self.device = tables.device
        self._files = tables.row_stores() if tables.tier.name == "disk" else []
        self.dim = tables.specs[0].embedding_dim
        views = tables.weights()
        names = [spec.name for spec in tables.specs]
        self.first_rows: dict[str, int] = {}
        matrix = _one_matrix([views[name] for name in names])
        self.is_view = matrix is not None
        if matrix is None:  # tables in memory of their own: read one by one
            self._parts = [views[name] for name in names]
            first = 0
            for name, view in zip(names, self._parts, strict=True):
                self.first_rows[name] = first
                first += len(view)
            self._bounds = [self.first_rows[name] for name in names]
        else:
            self._matrix, firsts = matrix
            self.first_rows = dict(zip(names, firsts, strict=True))

    def take(self, rows: Sequence[int]) -> Tensor:
        """Rows [N, dim] by their numbers in the matrix: `first_rows[table] + row`. Numbers are not checked.

        Raises:
            WorkError: a file of the disk tier was cut.
        """
        for store in self._files:
            store.check()
        rows_N = torch.tensor(rows, dtype=torch.int64)
        if self.is_view:
            if self._matrix.device != rows_N.device:
                rows_N = rows_N.to(self._matrix.device)
            taken_ND = self._matrix.index_select(0, rows_N)
        else:
            parts = [self._parts[t][row - self._bounds[t]] for row in rows if (t := bisect(self._bounds, row) - 1) >= 0]
            taken_ND = torch.stack(parts) if parts else torch.empty(0, self.dim)
        taken_ND = taken_ND.float()
        if taken_ND.dtype != torch.float32:  # as lookups give them
            taken_ND = taken_ND.float()
        return taken_ND if taken_ND.device == self.device else taken_ND.to(self.device, non_blocking=True)


def _one_matrix(views: Sequence[Tensor]) -> tuple[Tensor, list[int]] | None:
    """The memory that all views [R, D] lie in as one matrix [all rows, D], and the first row of each; None where there
    is none."""
    first = views[0]
    base, stride = first.untyped_storage().data_ptr(), first.stride(0)
    width = stride * first.element_size()
    offsets = [view.data_ptr() - base for view in views]
    start = min(offsets) % width
    shared = all(view.untyped_storage().data_ptr() == base and view.stride() == first.stride() for view in views)
    if not shared or any(offset % width != start for offset in offsets):
        return None
    num_rows = max(offset // width + len(view) for offset, view in zip(offsets, views, strict=True))
    matrix = first.as_strided((num_rows, first.shape[1]), (stride, 1), start // first.element_size())
    return matrix, [offset // width for offset in offsets]


def _refuse_others(tables: SequenceCollection) -> None:
    if tables.sharding is not None:
        raise ConfigError(
            "the rows are spread over processes, so a token's rows can't be read here alone; load a checkpoint of them "
            "into one process"
        )
    computed = [method.spec for method in tables.built_methods() if not method.traits.is_plain]
    if computed:
        raise ConfigError(
            f"table '{computed[0].name}' has method '{computed[0].method}', which computes its rows; read it through "
            "the collection"
        )
    dims = {spec.embedding_dim for spec in tables.specs}
    if len(dims) > 1:
        raise ConfigError(f"the tables have widths {sorted(dims)}; one matrix needs one width")
