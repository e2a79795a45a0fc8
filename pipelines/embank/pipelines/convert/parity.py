"""Whether what was written says what its bundle says: asked in a second process, which reads it as its users will."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embank.ctr_models.metrics import roc_auc
from embank.pipelines.convert.cases import IDS, LENGTHS, Array, Case, Original, known
from embank.tables.collections.paths import summed
from embank.tables.errors import WorkError
from embank.tables.serving.table import looked_up

_CHECK = Path(__file__).parent / "readers" / "check.py"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """One question, and what the bundle says to it."""

    name: str
    inputs: Mapping[str, Array]
    expected: Array
    table: str | None = None
    timed: bool = False


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What came out.

    Args:
        facts: for the report.
        max_difference: of all numbers.
        relative: the largest difference in units of what it is judged by: of rows and values the largest number of
            their table, of scores 1.
        finite: whether all numbers that were read are.
    """

    facts: Mapping[str, Any]
    max_difference: float
    relative: float
    finite: bool


def compared_rows(folder: Path, original: Original, cases: Sequence[Case], data: Sequence[Case]) -> Parity:
    """Compares rows of tables, and the scores of labelled rows by rows that were read.

    Args:
        folder: what was written.
        original: its bundle.
        cases: not labelled; each table is asked for their ids.
        data: labelled.
    """
    asked = []
    for spec, pack in original.collection.packed_tables():
        end = spec.num_embeddings - 1
        wanted = [np.array([0, end, end // 2, end // 2])]
        for case in [*cases, *data]:
            wanted += [case.inputs[IDS + feature] for feature in spec.feature_names]
        ids = np.unique(np.concatenate(wanted))
        ids = np.concatenate([wanted[0], ids[(ids >= 0) & (ids <= end)]]).astype(np.int64)
        with torch.inference_mode():
            expected = looked_up(pack, _tensor(ids), spec=spec).numpy()
        asked.append(_Asked(name=spec.name, table=spec.name, inputs={"ids": ids}, expected=expected))
    answers, said = _ask(folder, asked)
    read = {question.table: (question.inputs["ids"], a) for question, a in zip(asked, answers, strict=True)}
    auc = _auc(original, data, lambda case: _pooled(original, case, read)) if data else None
    return _parity(asked, answers, said, auc, compared="rows")


def compared_batches(
    folder: Path, original: Original, cases: Sequence[Case], data: Sequence[Case], *, gives: str
) -> Parity:
    """Compares answers to batches.

    Args:
        folder: what was written.
        original: its bundle.
        cases: not labelled.
        data: labelled.
        gives: "scores", or "values": what the tables give.
    """
    expect = original.scores if gives == "scores" else original.values
    asked = [
        _Asked(name=case.name, inputs=case.inputs, expected=expect(case), timed=case.name in ("one row", "many rows"))
        for case in [*cases, *data]
    ]
    answers, said = _ask(folder, asked)
    columns = _columns(original)
    if not data:
        return _parity(asked, answers, said, None, compared=gives, columns=columns)
    read = dict(zip([case.name for case in data], answers[len(cases) :], strict=True))
    if gives == "scores":
        auc = _auc_of(data, [original.scores(case) for case in data], [read[case.name] for case in data])
    else:
        auc = _auc(original, data, lambda case: read[case.name])
    return _parity(asked, answers, said, auc, compared=gives, columns=columns)


def _columns(original: Original) -> list[slice]:
    """Columns of `Original.values` by use of a table."""
    widths = original.collection.dims
    ends = np.cumsum(widths, dtype=int).tolist()
    return [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]


def _ask(folder: Path, asked: Sequence[_Asked]) -> tuple[list[Array], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        cases, answers = Path(name) / "cases.npz", Path(name) / "answers.npz"
        told = [{"name": q.name, "inputs": list(q.inputs), "timed": q.timed} for q in asked]
        told = [one if q.table is None else {**one, "table": q.table} for one, q in zip(told, asked, strict=True)]
        arrays = {f"{number}|{key}": array for number, q in enumerate(asked) for key, array in q.inputs.items()}
        np.savez(cases, cases=np.array(json.dumps(told)), **arrays)  # type: ignore[arg-type]
        command = [sys.executable, "-I", "-B", "-W", "ignore", str(_CHECK), str(folder), str(cases), str(answers)]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # times that do not depend on who else is here
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise WorkError(
                f"what was written can't be read in a process of its own: {lines[-1] if lines else done.returncode}. "
                "Nothing was left behind; this is a mistake of embank or of the library that reads it"
            )
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        with np.load(answers) as read:
            return [read[str(number)] for number in range(len(asked))], said


def _parity(
    asked: Sequence[_Asked],
    answers: Sequence[Array],
    said: dict[str, Any],
    auc: Any,
    *,
    compared: str,
    columns: Sequence[slice] = (),
) -> Parity:
    differences = []
    for question, answer in zip(asked, answers, strict=True):
        if answer.shape != question.expected.shape:
            raise WorkError(
                f"what was written gives {list(answer.shape)} numbers for '{question.name}', its bundle "
                f"{list(question.expected.shape)}. Nothing was left behind; this is a mistake of embank"
            )
        differences.append(np.abs(answer.astype(np.float64) - question.expected.astype(np.float64)))
    count = sum(part.size for part in differences)
    largest = max((_most(part) for part in differences), default=0.0)
    facts = {
        "compared": compared,
        "numbers": count,
        "largest_number": max((_most(question.expected) for question in asked), default=0.0),
        "max_difference": largest,
        "mean_difference": sum(float(part.sum()) for part in differences) / max(count, 1),
        "auc": auc,
        "cases": [
            {
                "name": question.name,
                "numbers": part.size,
                "max_difference": _most(part),
            }
            for question, part in zip(asked, differences, strict=True)
        ],
        "second_process": said,
    }
    pairs = list(zip(differences, (question.expected for question in asked), strict=True))
    if compared == "values":  # of each table over all questions
        shares = [
            _share(max(_most(part[:, own]) for part, _ in pairs), max(_most(known[:, own]) for _, known in pairs))
            for own in columns
        ]
    else:  # rows are of one table each
        shares = [_share(_most(part), 1.0 if compared == "scores" else _most(known)) for part, known in pairs]
    relative = max(shares, default=0.0)
    finite = all(bool(np.isfinite(answer).all()) for answer in answers)
    return Parity(facts=facts, max_difference=largest, relative=relative, finite=finite)


def _most(numbers: Array) -> float:
    """The largest one without its sign; 0 of none."""
    return float(np.abs(numbers).max()) if numbers.size else 0.0


def _share(difference: float, unit: float) -> float:
    if difference == 0:
        return 0.0
    return difference / unit if unit > 0 else float("inf")


def _auc(original: Original, data: Sequence[Case], values: Any) -> dict[str, Any]:
    before = [original.scores(case) for case in data]
    return _auc_of(data, before, [original.scores_of(case, values(case)) for case in data])


def _auc_of(data: Sequence[Case], before: Sequence[Array], after: Sequence[Array]) -> dict[str, Any]:
    labels = np.concatenate([case.labels for case in data if case.labels is not None]) > 0
    defined = bool(labels.any()) and not bool(labels.all())
    figures = [
        float(roc_auc(np.concatenate(s).astype(np.float32), labels)) if defined else None for s in (before, after)
    ]
    difference = np.abs(np.concatenate(before) - np.concatenate(after).astype(np.float64))
    return {
        "rows": len(labels),
        "bundle": figures[0],
        "converted": figures[1],
        "max_score_difference": float(difference.max()),
        "mean_score_difference": float(difference.mean()),
    }


def _pooled(original: Original, case: Case, read: Mapping[str | None, tuple[Array, Array]]) -> Array:
    """What tables give whose rows were read elsewhere."""
    parts = []
    for spec in original.collection.specs:
        ids_U, rows_UD = read[spec.name]
        order = np.argsort(ids_U, kind="stable")
        for feature in spec.feature_names:
            ids = known(_tensor(case.inputs[IDS + feature]), last=original.last[feature]).numpy()
            rows_ND = _tensor(rows_UD[order[np.searchsorted(ids_U, ids, sorter=order)]])
            if feature in original.bags:
                rows_ND = summed(rows_ND, _tensor(case.inputs[LENGTHS + feature]), pooling=spec.pooling)
            parts.append(rows_ND.numpy())
    return np.concatenate(parts, axis=1)


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
