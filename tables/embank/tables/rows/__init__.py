"""Where rows live and are updated: one interface, a fast implementation on FBGEMM and a slow, obvious one in torch."""

from embank.tables.rows.base import RowStore
from embank.tables.rows.build import build_rows
from embank.tables.rows.store_spec import ROW_OPTIMIZERS, Backend, RowOptimizer, RowTier, StoreSpec

__all__ = ["ROW_OPTIMIZERS", "Backend", "RowOptimizer", "RowStore", "RowTier", "StoreSpec", "build_rows"]
