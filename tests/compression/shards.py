"""A process's part of a table, without the other processes."""

from torch import Tensor, arange

from embank.tables import LocalRows


class Shard(LocalRows):
    """Rows first .. last of a table, whose sums are those of this part alone.

    Args:
        table_RD: all rows.
        first, last: which of them are held.
    """

    def __init__(self, table_RD: Tensor, first: int, last: int) -> None:
        self.first, self.rows = first, table_RD[first:last]

    def __getitem__(self, name: str) -> Tensor:
        return self.rows

    def row_numbers(self, name: str, first: int, last: int) -> Tensor:
        return arange(self.first + first, self.first + last)

    def find(self, name: str, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("what reads parts of a table goes through their rows in order")

    def sum(self, values: Tensor) -> Tensor:
        return values
