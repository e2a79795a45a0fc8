"""From a budget to bytes, and from the bytes of a collection to the bytes of each of its tables."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, Decimal
from functools import partial

from embank.tables import BudgetError, ConfigError, TableSpec

Cost = Callable[[int], int]
"""Serving bytes of a table at a level of a method's hyper-parameter; higher levels never need fewer bytes."""


def budget_nbytes(spec: TableSpec) -> int | None:
    """Serving bytes that a table may have; None without a budget."""
    return None if spec.budget is None else int(spec.budget * spec.plain_nbytes)


def with_nbytes(spec: TableSpec, nbytes: int) -> TableSpec:
    """A spec whose budget is this many serving bytes, to the byte.

    Args:
        spec: any.
        nbytes: at least 1 and at most the plain table's.
    """
    budget = nbytes / spec.plain_nbytes
    while int(budget * spec.plain_nbytes) < nbytes:  # the quotient was rounded down
        budget = math.nextafter(budget, math.inf)
    return replace(spec, budget=min(1.0, budget))


def as_plain(spec: TableSpec) -> TableSpec:
    """The same table, stored as it is."""
    return replace(spec, method="full", options=None, budget=None)


def share_text(nbytes: int, plain_nbytes: int) -> str:
    """A budget that holds some bytes, to six digits, rounded up: what a message says will do does."""
    exact = Decimal(nbytes) / Decimal(plain_nbytes)
    digit = Decimal(1).scaleb(exact.adjusted() - 5)
    rounded = exact.quantize(digit, rounding=ROUND_CEILING)
    if float(rounded) * plain_nbytes < nbytes:
        rounded += digit
    return f"{float(rounded):.6g}"


def floor_error(spec: TableSpec, *, needs: str, floor_nbytes: int) -> BudgetError:
    """What to raise when a table's budget is below its method's floor. A table of few ids may be smaller than any form
    of a method.

    Args:
        spec: of the table.
        needs: what the method can't do without.
        floor_nbytes: serving bytes of the smallest form.
    """
    is_above = floor_nbytes > spec.plain_nbytes
    above = ", more than the plain table" if is_above else ""
    cure = "Keep the table plain" if is_above else "Raise the budget, or keep the table plain"
    return BudgetError(
        f"table '{spec.name}': method '{spec.method}' needs {needs}, {floor_nbytes:,} bytes, so its floor is budget "
        f"{share_text(floor_nbytes, spec.plain_nbytes)}{above}; the budget is {spec.budget}. {cure} with method 'full'"
    )


def refuse_small_budget(spec: TableSpec, *, needs: str, floor_nbytes: int) -> None:
    """Raises BudgetError if a table's budget is below its method's floor; see `floor_error`."""
    if spec.budget is not None and floor_nbytes > spec.budget * spec.plain_nbytes:
        raise floor_error(spec, needs=needs, floor_nbytes=floor_nbytes)


def common_floor_error(specs: Sequence[TableSpec], *, needs: str, floor_nbytes: int, nbytes: int) -> BudgetError:
    """What to raise when bytes for several tables are below the floor of all.

    Args:
        specs: of the tables.
        needs: who can't do without what, and in how many bytes.
        floor_nbytes: serving bytes of the smallest form of all.
        nbytes: what there is for them.
    """
    plain = sum(spec.plain_nbytes for spec in specs)
    return BudgetError(
        f"{needs}, so their floor is budget {share_text(floor_nbytes, plain)}; they were given {nbytes:,} bytes "
        f"({nbytes / plain:.6g}). Raise the budget"
    )


def refuse_both(spec: TableSpec, **sizes: float | None) -> None:
    """Raises ConfigError if a table has a budget and an option that fixes its size as well."""
    for name, value in sizes.items():
        if value is not None and spec.budget is not None:
            raise ConfigError(f"table '{spec.name}' has both budget {spec.budget} and {name} {value}; keep one of them")


def refuse_below_one(spec: TableSpec, **sizes: int | None) -> None:
    """Raises ConfigError for an option below 1."""
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ConfigError(f"table '{spec.name}' has {name} {value}; it must be at least 1")


def refuse_sizes(spec: TableSpec, **sizes: int | None) -> None:
    """Raises ConfigError for an option below 1, or one that fixes a size beside a budget."""
    refuse_below_one(spec, **sizes)
    refuse_both(spec, **sizes)


def refuse_fixed(spec: TableSpec, *, of: str = "", **sizes: int | None) -> None:
    """Raises ConfigError if an option fixes the size of a table that is to get its share of a collection's budget."""
    for name, value in sizes.items():
        if value is not None:
            raise ConfigError(
                f"table '{spec.name}' has {name} {value}{of} while the collection has a budget; keep one of them"
            )


def size_within(
    spec: TableSpec, *, default: int, room: Callable[[int], int], needs: str, floor_nbytes: int, **option: int | None
) -> int:
    """The size of a table (its rows, a rank, a width): by its option, or the largest within its budget.

    Args:
        spec: of the table.
        default: with neither.
        room: the largest size that some bytes hold; below 1 if they hold none.
        needs: what the method can't do without, for the error.
        floor_nbytes: serving bytes of size 1.
        option: the option by its name, if one fixes the size.

    Raises:
        BudgetError: the budget does not hold size 1.
        ConfigError: an option below 1, or one beside a budget.
    """
    refuse_sizes(spec, **option)
    limit = budget_nbytes(spec)
    if limit is None:
        return next((value for value in option.values() if value is not None), default)
    size = room(limit)
    if size < 1:
        raise floor_error(spec, needs=needs, floor_nbytes=floor_nbytes)
    return size


def share(specs: Sequence[TableSpec], costs: Sequence[Cost], *, num_levels: int, nbytes: int) -> list[TableSpec]:
    """Gives every table the highest common level that fits, and what is left to the smallest tables first.

    A table that is no larger plain than at the common level stays plain. What is left buys, from the smallest table to
    the largest, first the next level for all that it lasts for, then as much as it can. So no table is at a lower level
    than under a rule of one common level, and the small ones, whose rows are used the most, are higher or plain.

    Args:
        specs: tables of one method.
        costs: bytes by level, 0 .. num_levels - 1, of each table.
        num_levels: levels that exist.
        nbytes: serving bytes for all tables.

    Returns:
        The specs, each with the budget that it got, or with method 'full'.

    Raises:
        BudgetError: level 0 needs more for all; states the floor.
    """

    def size(i: int, level: int) -> int:
        """Plain above the highest level."""
        return min(specs[i].plain_nbytes, costs[i](level)) if level < num_levels else specs[i].plain_nbytes

    def total(level: int) -> int:
        return sum(size(i, level) for i in range(len(specs)))

    common = bisect_right(range(num_levels), nbytes, key=total) - 1
    if common < 0:
        needs = f"{len(specs)} tables of method '{specs[0].method}' need {total(0):,} bytes"
        raise common_floor_error(specs, needs=needs, floor_nbytes=total(0), nbytes=nbytes)
    sizes = [size(i, common) for i in range(len(specs))]
    spare = nbytes - sum(sizes)
    for reach in (common + 1, num_levels):
        for i in sorted(range(len(specs)), key=lambda i: specs[i].plain_nbytes):
            levels = range(common, reach + 1)
            best = levels[bisect_right(levels, sizes[i] + spare, key=partial(size, i)) - 1]
            upgraded = max(sizes[i], size(i, best))
            spare -= upgraded - sizes[i]
            sizes[i] = upgraded
    return [
        as_plain(spec) if nbytes == spec.plain_nbytes else with_nbytes(spec, nbytes)
        for spec, nbytes in zip(specs, sizes, strict=True)
    ]
