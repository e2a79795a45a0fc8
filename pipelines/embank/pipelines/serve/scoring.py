"""Scores of several requests at once, each judged by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from embank.pipelines.data.preprocessing.encoded import Encoded
from embank.pipelines.data.preprocessing.few import MOST_ROWS
from embank.pipelines.runs.model import NO_SCORE, ServedModel
from embank.pipelines.serve.refused import RefusedRequestError, malformed
from embank.pipelines.serve.rows import Row
from embank.tables.errors import DataError

_NUMBERS = frozenset((int, float, type(None)))
_TOKENS = frozenset((str, int, type(None)))
Rows: TypeAlias = Sequence[Row] | Any
"""A list of objects, or a pyarrow.Table."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What came of several requests.

    Args:
        outcomes: of each request its scores, or why it has none.
        unknown: values that the vocabularies lack, by feature.
        num_rows: that were scored.
    """

    outcomes: list[np.ndarray | Exception]
    unknown: Mapping[str, int]
    num_rows: int


def score_requests(model: ServedModel, requests: Sequence[Rows]) -> Scored:
    """Scores the rows of all requests in one pass through the network.

    Args:
        model: scores all of them.
        requests: each a list of objects or a table; none is empty.
    """
    parts, refused = _encoded(model, requests)
    if not parts:
        return Scored(outcomes=[refused[number] for number in range(len(requests))], unknown={}, num_rows=0)
    whole = Encoded.concatenate(parts)
    sizes = [len(rows) for number, rows in enumerate(requests) if number not in refused]
    scores = iter(np.split(model.score_encoded(whole), np.cumsum(sizes)[:-1]))
    return Scored(
        outcomes=[refused.get(number) or _finite(next(scores)) for number in range(len(requests))],
        unknown=whole.unknown,
        num_rows=whole.num_rows,
    )


def _encoded(model: ServedModel, requests: Sequence[Rows]) -> tuple[list[Encoded], dict[int, Exception]]:
    """The rows of those requests that can be encoded, in order, and why others can't, by their place."""
    parts: list[Encoded] = []
    refused: dict[int, Exception] = {}
    for group in _groups(requests, numeric=[n for n, facts in model.features.items() if facts["type"] == "numeric"]):
        if len(group) > 1:
            try:
                parts.append(model.encode([row for number in group for row in requests[number]]))
                continue
            except Exception:  # one of them can't be: each by itself then, so that only that one is refused
                pass
        for number in group:
            try:
                parts.append(model.encode(requests[number]))
            except Exception as error:
                refused[number] = _judged(model, requests[number], error)
    return parts, refused


def _groups(requests: Sequence[Rows], *, numeric: Sequence[str]) -> list[list[int]]:
    """Places of neighbouring requests that are encoded in one call, which has costs of its own.

    Only plain rows are: where a column holds numbers as text in some rows, it is read as text in all of them, and what
    a client's value means must not depend on other clients.
    """
    groups: list[list[int]] = []
    num_rows = MOST_ROWS
    for number, rows in enumerate(requests):
        size = len(rows) if _is_plain(rows, numeric) else MOST_ROWS + 1
        if num_rows + size <= MOST_ROWS:
            groups[-1].append(number)
            num_rows += size
        else:
            groups.append([number])
            num_rows = size
    return groups


def _is_plain(rows: Rows, numeric: Sequence[str]) -> bool:
    """Whether few rows have numbers where the model has, and text or whole numbers elsewhere."""
    if len(rows) > MOST_ROWS or isinstance(rows, pa.Table):
        return False
    numbers = frozenset(numeric)
    return all(type(cell) in (_NUMBERS if name in numbers else _TOKENS) for row in rows for name, cell in row.items())


def _finite(scores_N: np.ndarray) -> np.ndarray | Exception:
    bad = np.flatnonzero(~np.isfinite(scores_N))
    if not bad.size:
        return scores_N
    return malformed(
        f"row {bad[0]} {NO_SCORE}",
        row=int(bad[0]),
        expected="numbers like those of the training data",
    )


def _judged(model: ServedModel, rows: Rows, error: Exception) -> Exception:
    """What a client is told of an error while its rows were encoded.

    Where the error does not say which row, the first is looked for that can't be encoded by itself. If there is one,
    the row is at fault, whatever the preprocessing made of it.
    """
    if isinstance(error, DataError) and error.row is not None:
        return refused_data(error, value=_content(rows, error.row).get(error.field or ""))
    if isinstance(error, MemoryError):
        return error
    for number in range(len(rows)):
        try:
            model.encode(rows.slice(number, 1) if isinstance(rows, pa.Table) else rows[number : number + 1])
        except DataError as found:
            return refused_data(found, row=number, value=_content(rows, number).get(found.field or ""))
        except Exception as found:
            return malformed(
                f"row {number} can't be read ({type(found).__name__}); send text, numbers or null in each column",
                row=number,
                value=_content(rows, number),
            )
    return refused_data(error) if isinstance(error, DataError) else error


def _content(rows: Rows, number: int) -> Row:
    row: Row = rows.slice(number, 1).to_pylist()[0] if isinstance(rows, pa.Table) else rows[number]
    return row


def refused_data(error: DataError, *, row: int | None = None, value: object = None) -> RefusedRequestError:
    """A model's refusal of a value, as a client is told.

    Args:
        error: of the preprocessing.
        row, value: the row's number and the value, where the error does not say them.
    """
    facts = {
        "field": error.field,
        "row": error.row if row is None else row,
        "value": value if error.value is None else error.value,
    }
    return malformed(str(error), **{name: fact for name, fact in facts.items() if fact is not None})
