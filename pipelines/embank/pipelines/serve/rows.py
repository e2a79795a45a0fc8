"""Rows of a request: their number and their columns. What cells hold is judged by the model's preprocessing."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from embank.pipelines.serve.refused import RefusedRequestError, as_json, malformed
from embank.tables.wording import did_you_mean, listing, shortened

Row = Mapping[str, Any]


def rows_of(document: Any, *, columns: Collection[str], most: int) -> list[Row]:
    """The rows of `{"rows": [{...}, ...]}`, each with every column of the model and no other.

    A column that is absent is refused, since a feature that a client forgets would be scored as missing without anyone
    knowing; null says that a value is missing.

    Args:
        document: from `read_document`.
        columns: that the model reads.
        most: rows.

    Raises:
        RefusedRequestError: names the row and the column.

    Example:
        >>> rows_of({"rows": [{"user": "u1"}]}, columns=["user"], most=10)
        [{'user': 'u1'}]
    """
    rows = only_names(document, ["rows"])["rows"]
    if not isinstance(rows, list):
        raise malformed("'rows' is not a list", field="rows", value=rows, expected="a list of objects")
    refuse_too_many(len(rows), most=most)
    wanted = dict.fromkeys(columns).keys()
    for number, row in enumerate(rows):
        if type(row) is not dict:
            raise malformed(
                f"row {number} is {as_json(row)}, not an object", row=number, value=row, expected="an object of columns"
            )
        if row.keys() != wanted:
            refuse_columns(list(row), columns=columns, row=number)
    return rows


def only_names(document: Any, names: Sequence[str]) -> dict[str, Any]:
    """A document that is an object with exactly these names.

    Raises:
        RefusedRequestError: says which it should have.
    """
    expected = "an object with " + " and ".join(f"'{name}'" for name in names)
    if not isinstance(document, dict):
        raise malformed(f"the body is {as_json(document)}, not an object", value=document, expected=expected)
    for name in document:
        if name not in names:
            raise malformed(
                f"the body has {shortened(name)!r}, which means nothing here.{did_you_mean(name, names)}",
                field=name,
                expected=expected,
            )
    for name in names:
        if name not in document:
            raise malformed(f"the body lacks '{name}'", field=name, expected=expected)
    return document


def refuse_too_many(num_rows: int, *, most: int) -> None:
    """Raises RefusedRequestError, 413, above the limit."""
    if num_rows > most:
        raise RefusedRequestError(
            413,
            "rows",
            f"the request has {num_rows:,} rows or values, and this server takes {most:,} at a time; send several "
            "requests, or start it with a larger --max-rows",
        )


def refuse_columns(names: Sequence[str], *, columns: Collection[str], row: int | None = None) -> None:
    """Raises RefusedRequestError for a column too many, given twice, or missing; names the one that is meant.

    Args:
        names: of a row or of a table.
        columns: that the model reads.
        row: its number, if it is one of several.
    """
    where = "the table" if row is None else f"row {row}"
    facts = {} if row is None else {"row": row}
    for name in names:
        if name not in columns:
            raise malformed(
                f"{where} has a column {shortened(name)!r}, which the model does not read."
                f"{did_you_mean(name, columns) or f' It reads {listing(columns)}'}",
                field=name,
                expected=list(columns)[:100],
                **facts,
            )
        if names.count(name) > 1:
            raise malformed(f"{where} has the column {shortened(name)!r} twice; send it once", field=name, **facts)
    for name in columns:
        if name not in names:
            raise malformed(
                f"{where} lacks the column '{name}'; send null where its value is missing",
                field=name,
                expected="a value, or null",
                **facts,
            )
