"""Where rows live and are updated: one interface, a fast implementation on FBGEMM and a slow, obvious one in torch."""

from embank.tables.rows.base import ROW_OPTIMIZERS, RowOptimizer, RowStore, RowTier
from embank.tables.rows.build import build_rows

__all__ = ["ROW_OPTIMIZERS", "RowOptimizer", "RowStore", "RowTier", "build_rows"]
