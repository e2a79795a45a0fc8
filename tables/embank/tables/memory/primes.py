"""Primes: how many rows a head has."""

from collections.abc import Mapping
from typing import Any

from embank.tables.errors import CheckpointError


def refuse_composite(primes: Any, *, what: str) -> None:
    """Refuses a manifest's row counts that are no primes.

    Raises:
        CheckpointError: names the first.
    """
    if not isinstance(primes, Mapping):
        return
    for layer, counts in primes.items():
        for count in counts:
            if not _is_prime(count):
                raise CheckpointError(
                    f"{what} says that a head of layer {layer} has {count} rows, which is no prime; heads have a prime "
                    "number of rows (padding at a table's end does not count)"
                )


def next_prime(above: int, taken: set[int]) -> int:
    """The next prime above a number that is not taken."""
    candidate = above + 1
    while candidate in taken or not _is_prime(candidate):
        candidate += 1
    return candidate


def _is_prime(number: int) -> bool:
    from sympy import isprime  # takes a while to import

    return bool(isprime(number))
