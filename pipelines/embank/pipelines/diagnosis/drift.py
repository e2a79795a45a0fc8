"""Drift: what new rows have that the training part of a model had not, and whether its predictions still fit.

The population stability index (PSI) of a feature compares shares of buckets now (a) with those of training (e): the sum
of (a - e) ln(a / e). Buckets are the most frequent ids and the rest, or about ten bins of numbers with as many training
rows each; a share below `LEAST_SHARE` counts as that. Below .1 nothing much has changed, from .25 on a lot. Of n rows
that have not changed at all, b buckets give about b / n.

Source: N. Siddiqi, "Credit Risk Scorecards", 2006, chapter 10, for the index and the two thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embank.pipelines.config.run import parse_config
from embank.pipelines.data.loading.batch import Batch
from embank.pipelines.data.loading.integrity import verify_prepared
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.prepare.like import Likeness
from embank.pipelines.data.prepare.profile import bins_of, shares_of
from embank.pipelines.data.schema import IS_MISSING, VOCAB_FOLDER, CategoricalField, NumericField, Profile, Schema
from embank.pipelines.diagnosis.slices import Slice, Slicer, slicer_of
from embank.pipelines.runs.build import served_model
from embank.pipelines.runs.evaluate import EVAL_BATCH_SIZE, new_evaluation, plain_ids
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.open import best_model, refuse_neither, refuse_other_vocabularies
from embank.pipelines.runs.score import score
from embank.pipelines.runs.scoring import Scorer
from embank.pipelines.runs.trained import schema_of
from embank.tables import Bundle, DataError, Vocabulary
from embank.tables.ids.vocabulary import UNKNOWN_ID
from embank.tables.serving.bundle import is_bundle
from embank.tables.storage.new_folder import refuse_taken

KIND = "drift report"
SOME, MUCH = 0.1, 0.25
LEAST_SHARE = 1e-4
Counts = npt.NDArray[np.int64]
Logits = Callable[[Batch], Tensor]


@dataclass(frozen=True, kw_only=True)
class FeatureDrift:
    """A feature in training and in the new rows.

    Args:
        name: of the feature.
        kind: ids, hashed ids, or numbers.
        psi: population stability index; None where nothing is known of the training part, or for hashed ids.
        unknown: share of the new values that are unknown; None where none can be.
        unknown_train, unknown_valid: the same of the training and the validation part.
        missing: share of the new rows where it is missing; None of a folder that was not prepared like another.
        missing_train: the same of the training part.
    """

    name: str
    kind: str
    psi: float | None
    unknown: float | None
    unknown_train: float | None
    unknown_valid: float | None
    missing: float | None
    missing_train: float | None

    @property
    def verdict(self) -> str:
        """The index in a word: "stable", "some", "much", or nothing."""
        if self.psi is None:
            return ""
        return "stable" if self.psi < SOME else "some" if self.psi < MUCH else "much"


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What `embank drift` found.

    Args:
        path: the run or bundle.
        data: the prepared folder.
        split: of it.
        num_rows: of that.
        mean_prediction: of the model.
        metrics: as `embank evaluate` has them; None for rows without labels.
        by: what the slices are made by; None where there are none.
        is_ordered: whether they have an order, as days do.
        slices: calibration of the rows of a day, or of a feature's value.
        features: in the schema's order.
        notes: what could not be told, and why.
        files: what was written.
    """

    path: str
    data: str
    split: str
    num_rows: int
    mean_prediction: float
    metrics: dict[str, Any] | None
    by: str | None
    is_ordered: bool
    slices: Sequence[Slice]
    features: Sequence[FeatureDrift]
    notes: Sequence[str]
    files: Sequence[Path] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self)
        values["features"] = [asdict(one) | {"verdict": one.verdict} for one in self.features]
        values["slices"] = [asdict(one) | {"calibration": one.calibration} for one in self.slices]
        del values["files"]
        return values


def drift_report(
    path: str | Path,
    *,
    data: str | Path,
    split: str = "test",
    by: str | None = None,
    out: str | Path | None = None,
) -> Drift:
    """Compares new rows with those that a model was trained on, and scores them with it.

    Args:
        path: a run directory or a bundle.
        data: a prepared folder with the vocabularies of the training data, as `prepare(..., like=path)` makes it.
        split: its train, valid or test rows.
        by: a categorical feature for whose values calibration is told; None takes days, where the rows have times.
        out: new folder for `drift.json`, `drift.csv`, `calibration.csv` and `drift.png`; None writes nothing.

    Raises:
        ConfigError: other vocabularies, or no such feature.
        CheckpointError: `out` exists.
        CheckpointError, DataError: what can't be read, or a split without rows.
        WorkError: the files can't be written.
    """
    path, data = Path(path), Path(data)
    if out is not None:
        refuse_taken(Path(out), kind=KIND)
    refuse_neither(path)
    schema = Schema.load(data)
    if not schema.split(split).num_rows:
        filled = [part.name for part in schema.splits if part.num_rows]
        raise DataError(f"'{data}' has no rows in its {split} split; those with rows: {', '.join(filled)}")
    with _opened(path, schema, data, split) as (logits, trained):
        fields = _with_profiles(trained, data)
        counts = [_Ids(field) for field in fields.categorical]
        numbers = [_Numbers(field) for field in fields.numeric]
        slicer = slicer_of(data, schema, split=split, by=by)
        sums = _score(logits, data, split, schema, counts, numbers, slicer)
    likeness = Likeness.load(data)
    features = [*(one.drift(likeness, split) for one in counts), *(one.drift(likeness, split) for one in numbers)]
    drift = Drift(
        path=str(path),
        data=str(data),
        split=split,
        num_rows=schema.split(split).num_rows,
        mean_prediction=sums.mean_prediction,
        metrics=sums.metrics,
        by=None if slicer is None else slicer.name,
        is_ordered=slicer is not None and slicer.is_ordered,
        slices=[] if slicer is None else slicer.slices(),
        features=[one for one in features if one is not None],
        notes=_notes(schema, likeness, features, slicer),
    )
    return drift if out is None else _written(drift, Path(out))


def _written(drift: Drift, out: Path) -> Drift:
    from embank.pipelines.diagnosis.drift_files import write_drift  # matplotlib takes a second to import

    return replace(drift, files=write_drift(drift, out))


@contextmanager
def _opened(path: Path, schema: Schema, data: Path, split: str) -> Iterator[tuple[Logits, Schema]]:
    """What scores batches as `embank evaluate` does, and the schema of the model's training data."""
    if is_bundle(path):
        bundle = Bundle(path)
        trained = schema_of(bundle)
        refuse_other_vocabularies(schema, data=data, trained=trained.fingerprint, path=path)
        verify_prepared(data, schema, splits=(split,), vocabularies=False)
        scorer = Scorer(bundle)
        yield lambda batch: scorer.logits(batch.dense, *plain_ids(batch.sparse, bags=scorer.multivalued)), trained
        return
    run = RunFolder(path)
    refuse_other_vocabularies(schema, data=data, trained=run.fingerprint, path=path)
    verify_prepared(data, schema, splits=(split,))
    trained = schema_of(Bundle(run.bundle, verify=False)) if is_bundle(run.bundle) else schema
    with best_model(run, schema=schema, data=data) as (model, _):
        config = parse_config(run.read_config())
        served = served_model(config, model).eval()

        def logits(batch: Batch) -> Tensor:
            values = served.tables(batch.sparse).values()
            dense = batch.dense.to(values.device)
            return score(served.network.score, dense, values, precision=config.train.precision).cpu()

        yield logits, trained


def _with_profiles(trained: Schema, data: Path) -> Schema:
    """The schema with profiles from the counts in the folder's vocabularies, where an earlier version left them out."""
    fields = []
    for field in trained.categorical:
        file = data / VOCAB_FOLDER / f"{field.name}.parquet"
        if field.training is None and field.has_vocabulary and file.is_file():
            vocabulary = Vocabulary.load(file, name=field.name)
            shares = shares_of(vocabulary.counts)
            missing = 0.0 if vocabulary.missing_id is None else float(vocabulary.counts[vocabulary.missing_id])
            profile = Profile(
                missing=missing / max(1, int(vocabulary.counts.sum())), unknown=shares[UNKNOWN_ID], shares=shares
            )
            field = replace(field, training=profile)
        fields.append(field)
    return replace(trained, categorical=tuple(fields))


@dataclass(frozen=True, kw_only=True)
class _Scored:
    mean_prediction: float
    metrics: dict[str, Any] | None


@torch.no_grad()
def _score(
    logits: Logits,
    data: Path,
    split: str,
    schema: Schema,
    counts: Sequence[_Ids],
    numbers: Sequence[_Numbers],
    slicer: Slicer | None,
) -> _Scored:
    """One pass over the rows: everything is counted and scored."""
    loader = Loader(data, split, batch_size=EVAL_BATCH_SIZE, shuffle=False)
    evaluation = new_evaluation(split, schema)
    total = 0.0
    for batch in loader.epoch(0):
        logits_B = logits(batch)
        predictions_B = torch.sigmoid(logits_B.double()).numpy()
        total += float(predictions_B.sum())
        labels_B = None if schema.label is None else batch.labels
        if labels_B is not None:
            evaluation.update(logits_B, labels_B, batch.groups)
        for feature in counts:
            feature.add(batch)
        for number, one in enumerate(numbers):
            one.add(batch.dense[:, number].numpy())
        if slicer is not None:
            slicer.add(batch, predictions_B, None if labels_B is None else labels_B.numpy())
    metrics = None if schema.label is None else evaluation.compute()
    return _Scored(mean_prediction=total / loader.num_rows, metrics=metrics)


class _Ids:
    """Counts the most frequent ids of a feature, and the rest together."""

    def __init__(self, field: CategoricalField) -> None:
        self._field = field
        self._top = len(field.training.shares) if field.training is not None else 0
        self._counts: Counts = np.zeros(self._top + 1, dtype=np.int64)
        self._unknown = 0

    def add(self, batch: Batch) -> None:
        if not self._field.has_vocabulary:
            return
        ids = batch.sparse[self._field.name].values().numpy()
        self._unknown += int(np.count_nonzero(ids == UNKNOWN_ID))
        self._counts += np.bincount(np.minimum(ids, self._top), minlength=self._top + 1)

    def drift(self, likeness: Likeness | None, split: str) -> FeatureDrift:
        field, training = self._field, self._field.training
        known = field.has_vocabulary
        unknown = self._unknown / max(1, int(self._counts.sum())) if known else None
        psi = None
        if training is not None and training.shares:
            psi = stability(np.append(training.shares, max(0.0, 1 - sum(training.shares))), self._counts)
        return FeatureDrift(
            name=field.name,
            kind="ids" if known else "hashed ids",
            psi=psi,
            unknown=unknown,
            unknown_train=None if training is None else training.unknown,
            unknown_valid=None if training is None else training.unknown_valid,
            missing=None if likeness is None else likeness.share(split, field.name, "missing"),
            missing_train=None if training is None else training.missing,
        )


class _Numbers:
    """Counts numbers of a feature by the bins of the training part."""

    def __init__(self, field: NumericField) -> None:
        self._field = field
        edges = field.training.edges if field.training is not None else ()
        self._counts: Counts = np.zeros(len(edges) + 1, dtype=np.int64)
        self._edges = edges

    def add(self, values_B: npt.NDArray[np.float32]) -> None:
        self._counts += np.bincount(bins_of(values_B, self._edges), minlength=len(self._counts))

    def drift(self, likeness: Likeness | None, split: str) -> FeatureDrift | None:
        """None for a column that says where another is missing, whose share that one tells."""
        field, training = self._field, self._field.training
        if field.transform == IS_MISSING:
            return None
        return FeatureDrift(
            name=field.name,
            kind="numbers",
            psi=None if training is None or not training.shares else stability(training.shares, self._counts),
            unknown=None,
            unknown_train=None,
            unknown_valid=None,
            missing=None if likeness is None else likeness.share(split, field.name, "missing"),
            missing_train=None if training is None else training.missing,
        )


def stability(expected: npt.ArrayLike, counts: npt.ArrayLike) -> float:
    """Population stability index of counts now against expected shares, bucket by bucket; 0 where both are empty.

    Example:
        >>> round(stability([0.5, 0.5], [60, 40]), 4)
        0.0405
    """
    expected_K, counts_K = np.asarray(expected, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    actual_K = counts_K / max(1.0, counts_K.sum())
    used = (expected_K > 0) | (actual_K > 0)
    e, a = np.maximum(expected_K[used], LEAST_SHARE), np.maximum(actual_K[used], LEAST_SHARE)
    return float(np.sum((a - e) * np.log(a / e)))


def _notes(
    schema: Schema, likeness: Likeness | None, features: Sequence[FeatureDrift | None], slicer: Slicer | None
) -> list[str]:
    notes = []
    if schema.label is None:
        notes.append("the rows have no labels, so calibration and the other metrics are left out")
    if slicer is None:
        notes.append("the rows have no times, so there is no calibration by day; --by FEATURE tells it by a feature")
    if likeness is None:
        notes.append("missing shares are left out: the folder was not prepared with --like, so nothing counted them")
    old = [one.name for one in features if one is not None and one.psi is None and one.kind != "hashed ids"]
    if old:
        notes.append(
            f"no stability index of {', '.join(old[:8])}{'' if len(old) <= 8 else f' and {len(old) - 8} more'}: the "
            "training data was prepared by an earlier version, which did not keep their shares. Prepare it again and "
            "train"
        )
    hashed = [one.name for one in features if one is not None and one.kind == "hashed ids"]
    if hashed:
        notes.append(f"no stability index of {', '.join(hashed)}: hashed columns have no vocabulary, so no counts")
    return notes
