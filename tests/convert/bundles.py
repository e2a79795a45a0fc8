"""Bundles that tests of conversions share: a table of each form of each method, and whole models."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embank.pipelines import prepare
from embank.tables import TableCollection, TableSpec, method_class, save_bundle
from embank.tables.collections.stages import finished
from embank.tables.ids.token_space import NUM_TOKEN_IDS
from tests.contracts.forms import FORMS, Form
from tests.contracts.specs import NAMES
from tests.serve.logs import COLUMNS, SHAPE, log_rows
from tests.training.runs import train, write_data

ALL = FORMS | {name: Form(method=name) for name in NAMES if not any(form.method == name for form in FORMS.values())}
ONE_EACH = [next(name for name, form in ALL.items() if form.method == method) for method in NAMES]
"""Of each method one form."""


HASHED = [
    TableSpec(
        name="any",
        num_embeddings=NUM_TOKEN_IDS,
        embedding_dim=4,
        feature_names=["any"],
        method="hash",
        options=method_class("hash").Config(num_rows=40),
    ),
    TableSpec(name="item", num_embeddings=10, embedding_dim=4, feature_names=["item"]),
]
"""A table whose ids are hashes of tokens, and one with a vocabulary."""


def bundle_of_forms(folder: Path, names: Sequence[str], *, others: Sequence[TableSpec] = (), **options: Any) -> Path:
    """A bundle of tables alone, one for each form, read by features of the same names."""
    path = folder / "tables"
    specs = [*(ALL[name].spec(name) for name in names), *others]
    save_bundle(path, finished(TableCollection(specs, seed=1)), **options)
    return path


def trained_bundle(folder: Path, *, data: dict[str, Any] | None = None, **sections: Any) -> tuple[Path, Path]:
    """The bundle of a run of an epoch, and its prepared data."""
    write_data(folder / "data", **(data or {}))
    train(folder / "data", folder / "run", **{"train": {"epochs": 1}, **sections})
    return folder / "run/bundle", folder / "data"


def trained_bundle_of_a_log(folder: Path) -> Path:
    """The bundle of a run on raw rows, with rules and tokens."""
    rows = log_rows(300)
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    prepare(COLUMNS, folder / "log.csv", folder / "prepared", format="csv")
    train(folder / "prepared", folder / "log_run", train={"epochs": 1}, **SHAPE)
    return folder / "log_run/bundle"


def lines_of(script: str) -> int:
    """Lines of code, without what explains them."""
    inside, count = False, 0
    for line in script.splitlines():
        quotes = line.count('"""')
        if quotes or inside:
            inside = inside != (quotes == 1)
        elif line.strip() and not line.strip().startswith("#"):
            count += 1
    return count
