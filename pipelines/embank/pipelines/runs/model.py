"""A bundle as what it is for: raw rows in, probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embank.pipelines.config.run import refuse_language_model
from embank.pipelines.data.preprocessing.encode import RowEncoder
from embank.pipelines.data.preprocessing.encoded import Encoded
from embank.pipelines.data.preprocessing.few import MOST_ROWS, FewRows
from embank.pipelines.data.preprocessing.frames import chunk_of
from embank.pipelines.data.preprocessing.rules import PREPROCESS, Preprocessing
from embank.pipelines.runs.scoring import Scorer
from embank.tables.collections.ids import missing_ids
from embank.tables.errors import CheckpointError, ConfigError, DataError
from embank.tables.serving.bundle import Bundle, Verify, is_bundle
from embank.tables.wording import did_you_mean

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor

VECTORS = "vectors"
"""Among the facts of a bundle that `embank compress` wrote."""
Scores = npt.NDArray[np.float64]
BATCH_ROWS = 8192
"""Rows that are scored together: those of `embank evaluate`, so that the same rows in the same order have the same
scores to the bit."""


def load_model(path: str | Path, *, verify: Verify = "small") -> ServedModel:
    """The model of a bundle, ready to score raw rows: preprocessing, tables, network.

    Tables and vocabularies are mapped from their files, not read: processes share them, and pages come in as rows are
    looked up. Neither TorchRec nor training code is imported.

    Args:
        path: a bundle, or a run directory, whose bundle is taken.
        verify: "small" compares the SHA-256 of what is read in any case (rules, network), and the sizes of the others;
            True reads all files.

    Raises:
        CheckpointError: no bundle, or one that is damaged or of another version.
        ConfigError: the bundle has tables only, or no rules for raw rows.

    Example: `load_model("runs/deepfm").score([{"user_id": "u1", "genres": "a|b", "price": 3.5}])`
    """
    return ServedModel(bundle_of(path), verify=verify)


def bundle_of(path: str | Path) -> Path:
    """A bundle itself, or that of a run.

    Raises:
        CheckpointError: there is none.
        ConfigError: the run is a language model's.
    """
    path = Path(path)
    if is_bundle(path):
        return path
    inside = path / "bundle"
    if is_bundle(inside):
        return inside
    refuse_language_model(path)
    if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir():
        raise CheckpointError(
            f"the run '{path}' has no bundle yet: finish it with `embank train ... --resume`, or write one of its best "
            f"checkpoint with `embank export {path} --out BUNDLE`"
        )
    raise CheckpointError(
        f"'{path}' holds no bundle and no run; give what `embank train --out` or `embank export --out` wrote"
    )


class ServedModel:
    """A model that scores raw rows; several threads may use one.

    Children of `fork` may use one that was loaded before, if nothing was scored before: the threads of torch and polars
    that a score starts are not in a child, which would wait for them for ever. Mapped files are shared either way.

    Args:
        path: of the bundle.
        verify: see `load_model`.

    Attributes:
        path: of the bundle.
        bundle: its files and facts.
        rules: from raw rows to ids and numbers.
        scorer: from these to scores.
        checksum: SHA-256 that tells this bundle from any other.
        version: a short name for it.
    """

    def __init__(self, path: Path, *, verify: Verify = "small") -> None:
        self.path = path
        self.bundle = Bundle(path, verify=verify)
        if "config" not in self.bundle.facts and "imported" in self.bundle.facts:
            raise ConfigError(
                f"bundle '{path}' has tables only, and no model that scores rows; `embank import` writes one with "
                "--config. Look vectors up with load_vectors or load_bundle"
            )
        if not (path / PREPROCESS).is_file():
            if VECTORS in self.bundle.facts:
                raise ConfigError(
                    f"'{path}' holds vectors of `embank compress`, and no model that scores rows; look them up with "
                    "load_vectors"
                )
            raise ConfigError(
                f"bundle '{path}' has no {PREPROCESS}: it was written by an earlier version, or its training data was "
                "generated without raw rows, so it can't score any. Export its run again (`embank export RUN --out "
                "BUNDLE`)"
            )
        self.rules = Preprocessing.load(path)
        self.scorer = Scorer(self.bundle)
        self.checksum, self.version = self.bundle.checksum, self.bundle.version
        self._few = FewRows(self.rules)

    @cached_property
    def features(self) -> dict[str, dict[str, Any]]:
        """The raw columns that rows must have, with what they hold."""
        config = self.rules.config
        told: dict[str, dict[str, Any]] = {}
        for name in self.rules.columns:
            if name in config.numeric:
                told[name] = {"type": "numeric"}
            elif name in config.multivalued:
                told[name] = {"type": "multivalued", "separator": config.multivalued[name]}
            else:
                told[name] = {"type": "categorical"}
        return told

    @property
    def example(self) -> dict[str, Any]:
        """A raw row that can be scored: the commonest values of training."""
        return {name: self.rules.example[name] for name in self.rules.columns}

    def score(self, rows: Any) -> Scores:
        """Probabilities float64 [N] of N raw rows.

        A row's score does not depend on the rows beside it, to the bit; but for a row that is scored alone and rows of
        models with `tt_rec` tables, by 1e-6 at most.

        Args:
            rows: a polars or pandas DataFrame, a pyarrow Table, or a list of mappings from raw column to value, with
                all columns of `features`; others are ignored. Null is a missing value.

        Raises:
            DataError: a column is missing or a value can't be used; `field`, `row` and `value` say which. Or a row has
                no finite score.
        """
        scores = self.score_encoded(self.encode(rows))
        refuse_non_finite(scores)
        return scores

    def encode(self, rows: Any) -> Encoded:
        """Ids and numbers of raw rows, see `score`."""
        if isinstance(rows, Sequence) and 0 < len(rows) <= MOST_ROWS and self._few.is_able:
            few = self._few.encode(rows) if all(isinstance(row, Mapping) for row in rows) else None
            if few is not None:
                return few
        config = self.rules.config
        chunk = chunk_of(rows, self.rules.columns, numeric=list(config.numeric), nulls=config.null_values)
        return RowEncoder(self.rules, remembers=False).encode(chunk)

    def score_encoded(self, encoded: Encoded) -> Scores:
        """Probabilities float64 [N] of what `encode` gave."""
        parts = [
            self._score(encoded.slice(start, start + BATCH_ROWS) if encoded.num_rows > BATCH_ROWS else encoded)
            for start in range(0, encoded.num_rows, BATCH_ROWS)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0), *parts])

    def _score(self, encoded: Encoded) -> Scores:
        return probabilities(self.scorer.logits(*tensors_of(encoded)))

    def score_ids(self, features: KeyedJaggedTensor, dense_BI: Tensor | None = None) -> Scores:
        """Probabilities float64 [B] of ids that were encoded elsewhere.

        Args:
            features: a KeyedJaggedTensor with the ids of all categorical features.
            dense_BI: numbers after their transforms, fp32; None for a model without.

        Raises:
            DataError: a feature is missing, or one that holds a value in each row has bags of other sizes.
        """
        lengths_FB = features.lengths().view(len(features.keys()), -1)
        bounds = [0, *torch.cumsum(lengths_FB.sum(dim=1), dim=0).tolist()]
        places = {key: place for place, key in enumerate(features.keys())}
        ids, lengths = {}, {}
        for name in self.scorer.features:
            if name not in places:
                raise missing_ids(name, table=name, present=places)
            place = places[name]
            if name not in self.scorer.multivalued and not bool((lengths_FB[place] == 1).all()):
                row = int((lengths_FB[place] != 1).nonzero()[0])
                raise DataError(
                    f"feature '{name}' has one value in each row, and row {row:,} of the given ids has "
                    f"{int(lengths_FB[place][row])} of it"
                )
            ids[name] = features.values()[bounds[place] : bounds[place + 1]].long()
            if name in self.scorer.multivalued:
                lengths[name] = lengths_FB[place]
        dense = torch.empty(lengths_FB.shape[1], 0) if dense_BI is None else dense_BI
        return probabilities(self.scorer.logits(dense, ids, lengths))

    def embed(self, feature: str, values: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Rows float32 [N, D] of N values of a feature; a value that training did not have gets the unknown row.

        Raises:
            ConfigError: there is no such feature.
            DataError: a value is no token.
        """
        ids_N = self.ids_of(feature, values)
        rows_ND: npt.NDArray[np.float32] = self.scorer.embed(feature, torch.from_numpy(ids_N)).numpy()
        return rows_ND

    def ids_of(self, feature: str, values: Sequence[Any]) -> npt.NDArray[np.int64]:
        """Ids int64 [N] of N values of a feature, see `embed`."""
        if feature not in self.scorer.features:
            raise ConfigError(
                f"there is no categorical feature {feature!r}.{did_you_mean(feature, self.scorer.features)} There are "
                f"{', '.join(self.scorer.features)}"
            )
        return RowEncoder(self.rules, remembers=False).ids_of(feature, values)


def tensors_of(encoded: Encoded) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Numbers, ids by feature, and lengths of the bags of multi-valued features: what `Scorer.logits` takes."""
    ids = {name: torch.from_numpy(ids_R) for name, ids_R in encoded.ids.items()}
    ids |= {name: torch.from_numpy(bags.values) for name, bags in encoded.bags.items()}
    lengths = {name: torch.from_numpy(np.diff(bags.offsets)) for name, bags in encoded.bags.items()}
    return torch.from_numpy(encoded.dense), ids, lengths


NO_SCORE = "has no finite score; are its numbers far from those that the model was trained on?"


def refuse_non_finite(scores: Scores, *, where: Callable[[int], str] = "row {:,}".format) -> None:
    """Raises DataError for the first row without a finite score.

    Args:
        scores: of some rows.
        where: a row to its place in words.
    """
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise DataError(f"{where(row)} {NO_SCORE}", row=row)


def probabilities(logits_B: Tensor) -> Scores:
    """The sigmoid in float64, which tells apart what logits of 32 bits tell apart.

    By numpy: torch's gives the last few of a batch another last bit than all others.
    """
    with np.errstate(over="ignore"):  # e to the power of 1,000 is infinite, and 1 / infinite is 0
        scores: Scores = 1 / (1 + np.exp(-logits_B.numpy().astype(np.float64)))
    return scores
