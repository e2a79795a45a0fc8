"""Runs on raw logs for tests: a log whose labels follow its rows, and what is trained on it."""

from pathlib import Path
from typing import Any

from embank.pipelines import prepare
from tests.data.test_preprocessing import CONFIG, csv_of, rows_of

MODEL = {"name": "deepfm", "hidden_units": [8]}
TABLES: dict[str, Any] = {"dim": 4, "overrides": {"page": {"method": "hash", "num_rows": 30}}}
TRAIN = {"epochs": 1, "table_lr": 0.05, "num_threads": 1}


def write_raw(folder: Path, *, num_rows: int) -> Path:
    rows = rows_of(num_rows, seed=1)
    for row in rows:
        row["click"] = int((len(str(row["city"])) + len(row["genres"]) + len(str(row["user"]))) % 3 == 0)
    csv_of(folder / "log.csv", rows)
    csv_of(folder / "test.csv", rows[num_rows * 9 // 10 :])
    prepare({**CONFIG, "hashed": ["page"]}, folder / "log.csv", folder / "data", format="csv")
    return folder
