"""The names of a text file's columns, also where some have none or the same one: only columns that are used must be
told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from embank.tables.errors import DataError
from embank.tables.wording import did_you_mean, listing


@dataclass(frozen=True, kw_only=True)
class Header:
    """Columns of a file, in its order.

    Args:
        names: all different; a column without a name of its own (the index that pandas writes) has one in parentheses.
        twice: names that several columns have in the file. The first one keeps it in `names`.
    """

    names: tuple[str, ...]
    twice: frozenset[str] = frozenset()

    @classmethod
    def of(cls, path: Path, cells: Sequence[str], *, required: Sequence[str]) -> Self:
        """From the cells of the header.

        Raises:
            DataError: a required column is missing, or is there twice.
        """
        twice = frozenset(name for name in cells if name and cells.count(name) > 1)
        for name in required:
            if name in twice:
                raise DataError(f"{path}, line 1: {named_twice(name)}")
            if name not in cells:
                hint = did_you_mean(name, [cell for cell in cells if cell not in required])
                raise DataError(
                    f"{path}, line 1: the header has no column {name!r}.{hint} It has: {listing(cells)}. "
                    f"This format needs: {listing(required, most=40)}."
                )
        return cls(names=_all_different(cells), twice=twice)

    def check_same(self, path: Path, other: Header, *, first: Path) -> None:
        """Refuse a file with other columns than the first one has; their order may differ.

        Raises:
            DataError: naming the column.
        """
        odd = sorted(set(self.names) ^ set(other.names))
        if odd:
            raise DataError(
                f"{path}, line 1: the header differs from that of {first} in column {odd[0]!r}. Prepare files of one "
                "layout together."
            )


def named_twice(name: str) -> str:
    """The words about a name that several columns have."""
    return f"the header names column {name!r} twice. Rename one of them."


def _all_different(cells: Sequence[str]) -> tuple[str, ...]:
    names: list[str] = []
    for number, cell in enumerate(cells, start=1):
        name = cell
        if not cell or cell in names:
            name = f"(column {number}, no name)" if not cell else f"{cell} (column {number})"
        while name in names or (name != cell and name in cells):
            name += "'"
        names.append(name)
    return tuple(names)
