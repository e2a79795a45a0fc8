"""Errors that a user can cause and mend. Every message states the fact, with its value, and the cure.

The command line prints them without a traceback and ends with their exit code: 2 for bad input, 1 for work that failed.
Anything else is a defect of ours or of the machine, and ends with exit code 1 as well.
"""

from typing import ClassVar


class EmbankError(Exception):
    """Base of all errors caused by input: data, configuration, arguments, files.

    Attributes:
        is_told: another process of the same training says it, so that it is said once.
    """

    exit_code: ClassVar[int] = 2
    is_told: bool = False


class ConfigError(EmbankError, ValueError):
    """A configuration or an argument that can't be used."""


class DataError(EmbankError):
    """Raw or prepared data that can't be used.

    Attributes:
        field: the column that it is about, where there is one.
        row: the row, counted from 0, among those that were given, where it is about a cell.
        value: the cell's value.
    """

    def __init__(self, message: str, *, field: str | None = None, row: int | None = None, value: object = None) -> None:
        super().__init__(message)
        self.field, self.row, self.value = field, row, value


class CheckpointError(EmbankError):
    """A checkpoint, bundle or run directory that is missing, damaged, or belongs to something else."""


class BudgetError(EmbankError):
    """A byte budget that a method can't reach; the message states its floor.

    Args:
        message: for users.
        floor: the smallest budget, of all tables that share one, that would be kept; None where it isn't known.
    """

    def __init__(self, message: str, *, floor: float | None = None) -> None:
        super().__init__(message)
        self.floor = floor


class WorkError(EmbankError):
    """The input was right, but the work could not be finished: a full disk, a signal, a diverging model."""

    exit_code: ClassVar[int] = 1
