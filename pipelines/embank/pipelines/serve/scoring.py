"""Scores of several requests at once, each judged by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from embank.pipelines.data.preprocessing.encoded import Encoded
from embank.pipelines.runs.model import ServedModel
from embank.pipelines.serve.refused import RefusedRequestError, malformed
from embank.pipelines.serve.rows import Row
from embank.tables.errors import DataError

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

    Each request is encoded by itself: only one that can't be is refused, and what a value means does not depend on the
    values of other clients.

    Args:
        model: scores all of them.
        requests: each a list of objects or a table; none is empty.
    """
    encoded = [_encoded(model, rows) for rows in requests]
    usable = [one for one in encoded if not isinstance(one, Exception)]
    if not usable:
        return Scored(outcomes=[one for one in encoded if isinstance(one, Exception)], unknown={}, num_rows=0)
    whole = Encoded.concatenate(usable)
    scores_N = model.score_encoded(whole)
    parts = iter(np.split(scores_N, np.cumsum([one.num_rows for one in usable])[:-1]))
    return Scored(
        outcomes=[one if isinstance(one, Exception) else _finite(next(parts)) for one in encoded],
        unknown=whole.unknown,
        num_rows=whole.num_rows,
    )


def _encoded(model: ServedModel, rows: Rows) -> Encoded | Exception:
    try:
        return model.encode(rows)
    except Exception as error:
        return _judged(model, rows, error)


def _finite(scores_N: np.ndarray) -> np.ndarray | Exception:
    bad = np.flatnonzero(~np.isfinite(scores_N))
    if not bad.size:
        return scores_N
    return malformed(
        f"row {bad[0]} has no finite score; are its numbers far from those that the model was trained on?",
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
