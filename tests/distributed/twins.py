"""Unsharded twins that a rank compares its shards with: they take the batches of all ranks, as one update."""

from embank.tables import RowStore
from embank.tables.collections.base import Tables
from embank.tables.rows.torch_rows import TorchRows


def sum_lookups(tables: Tables) -> None:
    """Makes the rows of a collection take the sum of all lookups' gradients at `update_rows`, where each lookup is an
    update otherwise.
    It may train beside other processes: all do the same."""
    for name, store in list(vars(tables).items()):
        if isinstance(store, RowStore):
            twin = TorchRows(store.spec, is_replica=True)
            for table, rows in store.weights().items():
                twin.weights()[table].copy_(rows)
            setattr(tables, name, twin)
    tables._would_drift = lambda: False
