"""A log of one's own, and bundles of models that were trained on it."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embank.pipelines import prepare
from tests.training.runs import train

COLUMNS = {
    "label": {"column": "click"},
    "categorical": ["user", "item"],
    "multivalued": {"tags": "|"},
    "numeric": {"price": "log1p"},
    "split": {"by": "hash", "ratios": [0.8, 0.1, 0.1]},
}
SHAPE: dict[str, Any] = {
    "model": {"name": "deepfm", "hidden_units": [8]},
}


@dataclass(frozen=True, kw_only=True)
class Bundles:
    """Of three runs.

    Args:
        first, second: the same columns, other weights.
        other_columns: with one more, `shop`.
        rows: raw rows, 40 of them.
    """

    first: Path
    second: Path
    other_columns: Path
    rows: list[dict[str, Any]]


def log_rows(number: int) -> list[dict[str, Any]]:
    """Rows whose label follows from them."""
    rng = np.random.default_rng(0)
    rows = []
    for user, item, tag, price in zip(*rng.integers(0, (30, 20, 5, 100), (number, 4)).T.tolist(), strict=True):
        tags = None if tag == 0 else "|".join("abcde"[:tag])
        row = {"user": f"u{user}", "item": f"i{item}", "tags": tags, "price": None if price < 5 else price / 4}
        rows.append(row | {"shop": f"s{item % 3}", "click": int((user + item + tag) % 3 == 0)})
    return rows


def trained_bundles(folder: Path) -> Bundles:
    """Prepares a log and trains on it, some seconds."""
    rows = log_rows(600)
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    wider = {**COLUMNS, "categorical": ["user", "item", "shop"]}
    for columns, name in ((COLUMNS, "data"), (wider, "wider")):
        prepare(columns, folder / "log.csv", folder / name, format="csv")
    for name, data, seed in (("first", "data", 0), ("second", "data", 1), ("other", "wider", 0)):
        train(folder / data, folder / name, train={"seed": seed, "epochs": 1, "table_lr": 0.2}, **SHAPE)
    columns = [*COLUMNS["categorical"], "tags", "price"]  # type: ignore[misc]
    return Bundles(
        first=folder / "first/bundle",
        second=folder / "second/bundle",
        other_columns=folder / "other/bundle",
        rows=[{name: row[name] for name in columns} for row in rows[:40]],
    )
