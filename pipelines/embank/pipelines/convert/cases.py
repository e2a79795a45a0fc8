"""What a bundle and what it was converted to are both asked: batches of ids and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embank.ctr_models import Network
from embank.pipelines.data.loading.integrity import verify_prepared
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.preprocessing.encode import RowEncoder
from embank.pipelines.data.preprocessing.frames import chunk_of
from embank.pipelines.data.preprocessing.rules import PREPROCESS, Preprocessing
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.evaluate import plain_ids, refuse_unlabelled
from embank.pipelines.runs.model import probabilities
from embank.pipelines.runs.open import refuse_other_vocabularies
from embank.pipelines.runs.scoring import Scorer
from embank.pipelines.runs.trained import network_of, precision_of, schema_of
from embank.tables import Bundle
from embank.tables.errors import DataError
from embank.tables.ids.token_space import NUM_TOKEN_IDS
from embank.tables.serving.export.decoded import some_tables
from embank.tables.serving.lookups import Lookups

Array = npt.NDArray[Any]
DENSE, IDS, LENGTHS = "dense", "ids.", "lengths."
"""Names of the inputs; of the ids and lengths with the feature's behind them."""
MANY = 4096
MOST_ROWS = 100_000
"""Labelled rows that are compared at most."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch.

    Args:
        name: what it tries.
        num_rows: of it.
        inputs: by name: `dense` float32 [B, I] of a model with numbers; for each feature `ids.FEATURE` int64, [B] where
            a row has one id, else those of its bags one after the other, and of the latter `lengths.FEATURE` int64 [B].
        labels: of its rows, where they are known.
    """

    name: str
    num_rows: int
    inputs: Mapping[str, Array]
    labels: Array | None = None


class Original:
    """A bundle, and what it says to a case.

    Args:
        bundle: of a training run, or of tables alone.
        tables: names of those that are taken, without the network then; none takes all.

    Raises:
        ConfigError: there is no such table.

    Attributes:
        collection: its tables.
        features: what they read, in order.
        bags: those whose rows hold any number of ids: without a network, any feature may.
        last: of each feature the last id that all its tables have.
        num_dense: numeric inputs.
        network: None of a bundle of tables alone.
    """

    def __init__(self, bundle: Bundle, *, tables: Sequence[str] = ()) -> None:
        self.bundle = bundle
        self.collection = some_tables(bundle.tables(), tables) if tables else bundle.tables()
        is_whole = bundle.has_network and not tables
        self._scorer = Scorer(bundle) if is_whole else None
        self.network: Network | None = network_of(bundle) if is_whole else None
        self.num_dense = 0 if self._scorer is None else self._scorer.num_dense
        uses = [(feature, spec) for spec in self.collection.specs for feature in spec.feature_names]
        self.features = list(dict.fromkeys(feature for feature, _ in uses))
        self.bags = list(self.features if self._scorer is None else self._scorer.multivalued)
        self._lookups = Lookups(self.collection, bags=self.bags)
        self.last = {
            feature: min(spec.num_embeddings, NUM_TOKEN_IDS) - 1 for feature, spec in self._lookups.tables.items()
        }

    @property
    def precision(self) -> str:
        """Of the network: fp32 or bf16."""
        return "fp32" if self.network is None else precision_of(self.bundle)

    def scores(self, case: Case) -> Array:
        """Probabilities float64 [B]; an id that its table has not counts as unknown, id 0."""
        assert self._scorer is not None
        dense, ids, lengths = self._tensors(case)
        return probabilities(self._scorer.logits(dense, ids, lengths))

    @torch.inference_mode()
    def values(self, case: Case) -> Array:
        """Pooled rows of all tables side by side, float32 [B, sum D]."""
        _, ids, lengths = self._tensors(case)
        (values,) = self._lookups(ids, lengths, num_rows=case.num_rows)
        return values.numpy()

    @torch.inference_mode()
    def scores_of(self, case: Case, values: Array) -> Array:
        """Probabilities float64 [B] that the network gives for other values of the tables."""
        assert self._scorer is not None
        assert self.network is not None
        width = self.network.inputs.width if self.network.embeddings else 0
        dense, _, _ = self._tensors(case)
        parts = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        return probabilities(self._scorer.score(dense, parts[:, :width], parts[:, width:]))

    def _tensors(self, case: Case) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        given = {name: torch.from_numpy(array) for name, array in case.inputs.items()}
        ids = {feature: known(given[IDS + feature], last=self.last[feature]) for feature in self.features}
        lengths = {feature: given[LENGTHS + feature] for feature in self.bags}
        return given.get(DENSE, torch.empty(case.num_rows, 0)), ids, lengths


def known(ids_N: Tensor, *, last: int) -> Tensor:
    """Ids, those that a table has not as 0: what unknown values have."""
    return torch.where((ids_N < 0) | (ids_N > last), 0, ids_N)


def generated(original: Original, *, seed: int = 0) -> list[Case]:
    """The example of the bundle where there is one, and what is easily got wrong: 1, 2 and many rows, the last id of
    each table, ids that no table has, equal rows, empty bags."""
    maker = _Maker(original, np.random.default_rng(seed))
    cases = [
        *_example(original),
        maker.case("one row", 1),
        maker.case("two rows", 2),
        maker.case("many rows", MANY),
        maker.case("last ids", 3, ids=lambda last, size: np.full(size, last)),
        maker.case(
            "unseen ids", 5, ids=lambda last, size: np.where(np.arange(size) % 2, -1 - np.arange(size), last + 1)
        ),
        maker.case("equal rows", 4, ids=lambda last, size: np.full(size, last // 2)),
    ]
    if original.bags:
        cases += [maker.case("empty bags", 3, longest=0), maker.case("one row of empty bags", 1, longest=0)]
    return cases


class _Maker:
    def __init__(self, original: Original, rng: np.random.Generator) -> None:
        self.original, self.rng = original, rng

    def case(self, name: str, num_rows: int, *, ids: Any = None, longest: int = 3) -> Case:
        inputs: dict[str, Array] = {}
        if self.original.num_dense:
            shape = (num_rows, self.original.num_dense)
            inputs[DENSE] = self.rng.standard_normal(shape, dtype=np.float32)
        for feature in self.original.features:
            last, size = self.original.last[feature], num_rows
            if feature in self.original.bags:
                lengths = self.rng.integers(0, longest + 1, num_rows)
                inputs[LENGTHS + feature], size = lengths, int(lengths.sum())
            drawn = self.rng.integers(0, last, size, endpoint=True) if ids is None else _wrapped(ids, last, size)
            inputs[IDS + feature] = drawn.astype(np.int64)
        return Case(name=name, num_rows=num_rows, inputs=inputs)


def _wrapped(ids: Any, last: int, size: int) -> Array:
    """Ids near the end of int64 stay in it: behind the last hash of a token there is none, and -1 is as unknown."""
    made = np.array([int(number) for number in ids(np.uint64(last).astype(object), size)], dtype=object)
    return np.array([number if number < NUM_TOKEN_IDS else -1 for number in made], dtype=np.int64)


def _example(original: Original) -> Iterator[Case]:
    if original.network is None or not (original.bundle.path / PREPROCESS).is_file():
        return
    rules = Preprocessing.load(original.bundle.path)
    row = {name: rules.example[name] for name in rules.columns}
    encoded = RowEncoder(rules, remembers=False).encode(
        chunk_of([row], rules.columns, numeric=list(rules.config.numeric), nulls=rules.config.null_values)
    )
    inputs: dict[str, Array] = {} if not original.num_dense else {DENSE: encoded.dense}
    for feature in original.features:
        if feature in encoded.bags:
            bags = encoded.bags[feature]
            inputs[IDS + feature], inputs[LENGTHS + feature] = bags.values, np.diff(bags.offsets)
        else:
            inputs[IDS + feature] = encoded.ids[feature]
    yield Case(
        name="example",
        num_rows=1,
        inputs={name: array if name == DENSE else array.astype(np.int64) for name, array in inputs.items()},
    )


def labelled(original: Original, data: Path, *, split: str, most_rows: int = MOST_ROWS) -> list[Case]:
    """Rows of a prepared folder, the first of a split.

    Raises:
        ConfigError: the data has other vocabularies, or the bundle no network.
        DataError: it has no labels, or no rows in the split.
    """
    schema = Schema.load(data)
    refuse_unlabelled(schema, data=data)
    refuse_other_vocabularies(
        schema, data=data, trained=schema_of(original.bundle).fingerprint, path=original.bundle.path
    )
    verify_prepared(data, schema, splits=(split,), vocabularies=False)
    if not schema.split(split).num_rows:
        raise DataError(f"'{data}' has no rows in its {split} split; name another one")
    cases: list[Case] = []
    rows = 0
    for batch in Loader(data, split, batch_size=MANY, shuffle=False).epoch(0):
        ids, lengths = plain_ids(batch.sparse, bags=original.bags)
        inputs = {IDS + name: ids[name].numpy().astype(np.int64) for name in original.features}
        inputs |= {LENGTHS + name: lengths[name].numpy().astype(np.int64) for name in original.bags}
        if original.num_dense:
            inputs[DENSE] = batch.dense.numpy()
        rows += len(batch.labels)
        cases.append(
            Case(
                name=f"{split} rows to {rows:,}", num_rows=len(batch.labels), inputs=inputs, labels=batch.labels.numpy()
            )
        )
        if rows >= most_rows:
            break
    return cases
