"""Unsharded twins that a rank compares its shards with: they take the batches of all ranks, as one update."""

from embank.tables import SequenceCollection, Tables
from embank.tables.rows.torch_rows import TorchRows


def sum_lookups(tables: Tables) -> None:
    """Makes the rows of a collection take the sum of all lookups' gradients at `update_rows`, where each lookup is an
    update otherwise.
    It may train beside other processes: all do the same."""
    paths = [tables.path] if isinstance(tables, SequenceCollection) else tables.paths.values()
    for path in paths:
        if path.store is not None:
            twin = TorchRows(path.store.spec, is_replica=True)
            for table, rows in path.store.weights().items():
                twin.weights()[table].copy_(rows)
            path.store = twin
    tables._would_drift = lambda: False
