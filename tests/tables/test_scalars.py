"""Numbers of NumPy and torch are numbers; booleans are none. Paths are text or `Path`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embank.compression.methods.hash import HashConfig
from embank.tables import (
    RowOptimizer,
    RowTier,
    TableCollection,
    TableSpec,
    load_bundle,
    load_checkpoint,
    save_bundle,
    save_checkpoint,
)
from embank.tables.errors import ConfigError, DataError
from embank.tables.ids.token_hash import token_id, token_ids
from embank.tables.scalars import as_whole, plain, whole
from tests.tables.batches import random_kjt


def spec(**changes: Any) -> TableSpec:
    return TableSpec(**{"name": "t", "num_embeddings": 20, "embedding_dim": 4, "feature_names": ["f"], **changes})


@pytest.mark.parametrize("five", [5, np.int64(5), np.uint8(5), np.array(5), torch.tensor(5)], ids=repr)
def test_whole_numbers_of_any_type(five: Any) -> None:
    assert as_whole(five) == 5
    assert type(whole(five, what="x is", least=1)) is int
    made = spec(num_embeddings=five, embedding_dim=five)
    assert made == spec(num_embeddings=5, embedding_dim=5)
    assert type(made.num_embeddings) is type(made.embedding_dim) is int
    assert token_id(five) == token_id(5)
    assert token_ids([five, None, "5"]).tolist() == [token_id(5), token_id(None), token_id("5")]


@pytest.mark.parametrize(
    "other", [True, np.True_, torch.tensor(True), 5.0, np.float64(5), "5", None, [5], torch.ones(2)], ids=repr
)
def test_what_is_no_whole_number(other: Any) -> None:
    assert as_whole(other) is None
    with pytest.raises(ConfigError, match=r"table 't' has num_embeddings .*; it must be a whole number of at least 1"):
        spec(num_embeddings=other)


@pytest.mark.parametrize("other", [True, np.True_, 5.0, np.float32(5), [5]], ids=repr)
def test_what_is_no_token(other: Any) -> None:
    with pytest.raises(DataError, match="is no token; give text, bytes, an integer or None"):
        token_id(other)


@dataclass(frozen=True)
class Inner:
    rows: Any
    name: str = "a"


def test_plain_values() -> None:
    """Nothing is copied that holds no number of NumPy's."""
    values = {"a": [1, (2.0, "x")], "b": Inner(rows=3), "c": None}
    assert plain(values) is values
    found = plain({"a": [np.int64(1), (np.float32(2), np.str_("x"))], "b": Inner(rows=np.int32(3)), "c": None})
    assert found == values
    assert json.dumps([found["a"], found["b"].rows]) == '[[1, [2.0, "x"]], 3]'


def test_options_and_rates_of_numpy_are_saved_like_others(tmp_path: Path) -> None:
    made = spec(method="hash", options=HashConfig(num_rows=np.int64(7)), init_std=np.float32(0.5))
    assert made == spec(method="hash", options=HashConfig(num_rows=7), init_std=0.5)
    tables = TableCollection([made], optimizer=RowOptimizer(name="sgd", lr=np.float32(0.5)))
    save_bundle(tmp_path / "bundle", tables)
    assert load_bundle(tmp_path / "bundle").nbytes() == tables.nbytes("serving")


def test_paths_may_be_text(tmp_path: Path) -> None:
    batch = random_kjt({"f": 20}, batch_size=3, seed=0)
    tables = TableCollection([spec()], tier=RowTier(name="disk", directory=f"{tmp_path}/rows"))
    save_checkpoint(f"{tmp_path}/checkpoint", tables=tables, dense={"a": torch.ones(1)}, meta={"b": 1})
    other = TableCollection([spec(init_std=9.0)])
    dense, meta = load_checkpoint(f"{tmp_path}/checkpoint", tables=other)
    assert torch.equal(other(batch).values(), tables(batch).values())
    assert (dense["a"].item(), meta["b"]) == (1, 1)
    save_bundle(f"{tmp_path}/bundle", tables)
    assert torch.equal(load_bundle(f"{tmp_path}/bundle")(batch).values(), tables(batch).values())
