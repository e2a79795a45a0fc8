"""What a rank does in the tests of imported rows."""

from typing import Any

import embank.compression.fitting.regression as regression
from embank.tables import Sharding, TableCollection, TableSpec
from tests.contracts.sharded import placed


def import_sharded(rank: int, spec: TableSpec, kind: str, given: tuple[Any, ...]) -> tuple[float, Any, Any]:
    """Fits a sharded table and its whole twin; the largest difference between their rows and dense parameters, and both
    reports."""
    regression._STEPS = 20  # of networks, in this process; the suite's own has more
    whole = TableCollection([spec], backend="torch")
    tables = TableCollection([spec], backend="torch", sharding=Sharding(plan=placed(whole, kind, 2)))
    tables.methods.load_state_dict(whole.methods.state_dict())
    reports = [each.import_rows(spec.name, *given) for each in (tables, whole)]
    rows, worst = whole.weights(), 0.0
    for store in tables.row_stores():
        for shard in store.shards:
            numbers = shard.row_numbers()
            real = numbers < shard.table.num_embeddings
            columns = slice(shard.first_column, shard.first_column + shard.num_columns)
            mine = store.weight(shard.table.name)[real]
            difference = mine - rows[shard.table.name][numbers[real], columns]
            worst = max([worst, *difference.abs().flatten().tolist()])
    dense = zip(tables.methods.parameters(), whole.methods.parameters(), strict=True)
    worst = max([worst, *(float((a - b).abs().max()) for a, b in dense)])
    return worst, *reports
