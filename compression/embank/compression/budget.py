"""One byte budget for a collection of tables: who gets how much, and the floor of the whole when it can't be kept.

Accounting is that of serving bytes: everything that packed forms hold, plain small tables included.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from embank.tables import BudgetError, TableSpec, build_method, method_class


def share(specs: Sequence[TableSpec], *, budget: float, plain_below: int = 0) -> list[TableSpec]:
    """Specs whose serving bytes together are at most `budget` of the plain tables' bytes.

    Tables of few ids stay plain, since they cost little and each of their rows is looked up often. The rest of the bytes goes to the
    methods of the other tables in proportion to their plain bytes, and each method shares its part out (`Method.allocate`).
    A table that can't do with what it gets is given its floor, and the others share what is then left.

    Args:
        specs: tables with any mix of methods; their own budgets are replaced.
        budget: serving bytes / bytes of the plain fp32 tables, in (0, 1], over all of these tables.
        plain_below: tables of fewer ids stay plain.

    Returns:
        The specs in the same order, with budgets or options set.

    Raises:
        BudgetError: the plain small tables alone, or all floors together, exceed the budget; states the floor.
        ConfigError: what methods refuse.
    """
    allowed_nbytes = budget * sum(spec.plain_nbytes for spec in specs)
    small = {spec.name: _plain(spec) for spec in specs if spec.num_embeddings < plain_below}
    _refuse_small(specs, small, budget=budget, plain_below=plain_below)
    pinned: dict[str, tuple[TableSpec, int]] = {}
    with torch.random.fork_rng(devices=[]):  # methods draw initial values when they are built
        while True:
            waiting = [spec for spec in specs if spec.name not in small and spec.name not in pinned]
            taken = [*(spec.plain_nbytes for spec in small.values()), *(nbytes for _, nbytes in pinned.values())]
            left_nbytes = math.floor(allowed_nbytes - sum(taken))
            if left_nbytes < 0 or (waiting and left_nbytes == 0):
                floors = pinned | {spec.name: at_floor(spec) for spec in waiting}
                raise _infeasible(specs, small, floors, budget=budget)
            done, failed = _allocate(waiting, left_nbytes)
            if not failed:
                chosen = small | {name: spec for name, (spec, _) in pinned.items()} | done
                return [chosen[spec.name] for spec in specs]
            pinned |= {spec.name: at_floor(spec) for spec in failed}


def at_floor(spec: TableSpec) -> tuple[TableSpec, int]:
    """A table at the smallest budget that its method takes, and the bytes of that; the plain table if it takes none.

    Found by bisection over `build_method`, so that it holds for any method.
    """
    smallest, largest = 1, spec.plain_nbytes
    if not _builds(_with_nbytes(spec, largest)):
        return _plain(spec), spec.plain_nbytes
    while smallest < largest:
        middle = (smallest + largest) // 2
        smallest, largest = (smallest, middle) if _builds(_with_nbytes(spec, middle)) else (middle + 1, largest)
    return _with_nbytes(spec, largest), largest


def _allocate(specs: Sequence[TableSpec], nbytes: int) -> tuple[dict[str, TableSpec], list[TableSpec]]:
    """Shares bytes between tables: those that were given enough, by name, and those that were not."""
    plain_nbytes = sum(spec.plain_nbytes for spec in specs)
    groups: dict[type, list[TableSpec]] = {}
    for spec in specs:
        groups.setdefault(method_class(spec.method), []).append(spec)
    done: dict[str, TableSpec] = {}
    failed: list[TableSpec] = []
    for group in groups.values():
        own_nbytes = nbytes * sum(spec.plain_nbytes for spec in group) // plain_nbytes
        try:
            allocated = method_class(group[0].method).allocate(group, own_nbytes)
        except BudgetError:
            failed += group
            continue
        for asked, given in zip(group, allocated, strict=True):
            if _builds(given):
                done[given.name] = given
            else:
                failed.append(asked)
    return done, failed


def _builds(spec: TableSpec) -> bool:
    try:
        build_method(spec)
    except BudgetError:
        return False
    return True


def _with_nbytes(spec: TableSpec, nbytes: int) -> TableSpec:
    budget = nbytes / spec.plain_nbytes
    if budget * spec.plain_nbytes < nbytes:  # rounded down, which would cost a byte
        budget = math.nextafter(budget, 1.0)
    return replace(spec, budget=budget)


def _plain(spec: TableSpec) -> TableSpec:
    return replace(spec, method="full", options=None, budget=None)


def _refuse_small(
    specs: Sequence[TableSpec], small: Mapping[str, TableSpec], *, budget: float, plain_below: int
) -> None:
    total_nbytes = sum(spec.plain_nbytes for spec in specs)
    small_nbytes = sum(spec.plain_nbytes for spec in small.values())
    if small_nbytes > budget * total_nbytes:
        raise BudgetError(
            f"the budget of all tables is {budget}, but the tables of fewer than {plain_below} ids alone are "
            f"{small_nbytes / total_nbytes:.4f} of all bytes; raise the budget above that or keep fewer tables plain "
            "('tables.plain_below' in a configuration)"
        )


def _infeasible(
    specs: Sequence[TableSpec],
    small: Mapping[str, TableSpec],
    floors: Mapping[str, tuple[TableSpec, int]],
    *,
    budget: float,
) -> BudgetError:
    total_nbytes = sum(spec.plain_nbytes for spec in specs)
    small_nbytes = sum(spec.plain_nbytes for spec in small.values())
    floor_nbytes = small_nbytes + sum(nbytes for _, nbytes in floors.values())
    largest = max(floors, key=lambda name: floors[name][1])
    return BudgetError(
        f"the budget of {len(specs)} tables is {budget}, {budget * total_nbytes:,.0f} bytes, but their floor is {floor_nbytes:,} bytes, "
        f"budget {floor_nbytes / total_nbytes:.6g}: {small_nbytes:,} for {len(small)} plain small tables, the largest other part "
        f"{floors[largest][1]:,} for table '{largest}' by method '{floors[largest][0].method}'. Raise the budget, or choose a method with a lower floor"
    )
