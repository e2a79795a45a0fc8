"""Small Parquet files with a column x of any type, and what `prepare` makes of them."""

import datetime as dt
import decimal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tests.data import naive_prepare as naive

from embank.pipelines.data.prepare.prepare import prepare

D = decimal.Decimal
NUM_ROWS = 24
SPLITS = ["train"] * 16 + ["valid"] * 4 + ["test"] * 4
BASE = {"label": {"column": "click"}, "categorical": ["other"], "split": {"by": "column", "column": "part"}}
UUID = "12345678-9abc-def0-1234-56789abcdef0"


def cycle(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    """The values over and over, `NUM_ROWS` of them."""
    cells = [values[row % len(values)] for row in range(NUM_ROWS)]
    if isinstance(dtype, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(dtype, pa.array(cells, dtype.storage_type))
    if dtype == pa.float16():
        return pa.array([None if cell is None else np.float16(cell) for cell in cells], dtype)
    return pa.array(cells, dtype)


def write(path: Path, **columns: pa.Array) -> Path:
    """A file with the columns and what every configuration here needs."""
    more = {"click": [row % 2 for row in range(NUM_ROWS)], "part": SPLITS, "other": ["a", "b"] * 12}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**more, **columns}), path)
    return path


def run(path: Path, out: Path, **config: Any) -> Any:
    return prepare({**BASE, **config}, [path], out, format="parquet")


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for split in naive.SPLITS for row in naive.read_rows(out, split)]


DAY, MOMENT = dt.date(2024, 5, 31), dt.datetime(2024, 5, 31, 12, 0, 0, 500000)
