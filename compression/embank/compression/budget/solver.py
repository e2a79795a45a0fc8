"""One byte budget for a collection of tables: who gets how much, and the floor of the whole when it can't be kept.

Accounting is that of serving bytes: everything that packed forms hold, plain small tables included.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from embank.compression.budget.floors import as_plain, share_text, with_nbytes
from embank.tables import BudgetError, ConfigError, TableSpec, build_method, method_class
from embank.tables.method.options import options_of


def share(specs: Sequence[TableSpec], *, budget: float, plain_below: int = 0) -> list[TableSpec]:
    """Specs whose serving bytes together are at most `budget` of the plain tables' bytes.

    Tables of few ids stay plain, since they cost little and each of their rows is looked up often: the smallest first,
    as long as together they take at most half of the bytes. The rest goes to the methods of the other tables in
    proportion to their plain bytes, and each method shares its part out (`Allocation`). A table that can't do with
    what it gets is given its floor, and the others share what is then left.

    Args:
        specs: tables with any mix of methods; their own budgets are replaced.
        budget: serving bytes / bytes of the plain fp32 tables, in (0, 1], over all of these tables.
        plain_below: tables of fewer ids stay plain, as far as half of the budget allows.

    Returns:
        The specs in the same order, with budgets or options set.

    Raises:
        BudgetError: all floors together exceed the budget; states the floor.
        ConfigError: what methods refuse.

    Example:
        >>> sizes = {"country": 60, "user": 100_000, "item": 20_000}
        >>> specs = [
        ...     TableSpec(name=n, num_embeddings=size, embedding_dim=16, feature_names=[n], method="hash")
        ...     for n, size in sizes.items()
        ... ]
        >>> [(spec.name, spec.method, spec.budget) for spec in share(specs, budget=0.1, plain_below=100)]
        [('country', 'full', None), ('user', 'hash', 0.09955), ('item', 'hash', 0.09955)]
    """
    for spec in specs:
        options_of(spec, method_class(spec.method).Config)
    allowed_nbytes = budget * sum(spec.plain_nbytes for spec in specs)
    few = [spec for spec in specs if spec.num_embeddings < plain_below]
    small = _small(few, allowed_nbytes / 2 if budget < 1 else allowed_nbytes)
    floor_of = _Floors()
    shared = _share(specs, allowed_nbytes, small, floor_of) or _share(specs, allowed_nbytes, {}, floor_of)
    if shared is None:
        raise _infeasible(specs, floor_of, budget=budget)
    return shared


class _Floors(dict[str, tuple[TableSpec, int]]):
    """`at_floor` of tables by their names, each looked for once."""

    def __call__(self, spec: TableSpec) -> tuple[TableSpec, int]:
        if spec.name not in self:
            self[spec.name] = at_floor(spec)
        return self[spec.name]


def _small(specs: Sequence[TableSpec], nbytes: float) -> dict[str, TableSpec]:
    """The smallest tables, plain, as many as these bytes hold."""
    held: dict[str, TableSpec] = {}
    for spec in sorted(specs, key=lambda spec: spec.plain_nbytes):
        nbytes -= spec.plain_nbytes
        if nbytes < 0:
            break
        held[spec.name] = as_plain(spec)
    return held


def _share(
    specs: Sequence[TableSpec],
    nbytes: float,
    small: Mapping[str, TableSpec],
    floor_of: Callable[[TableSpec], tuple[TableSpec, int]],
) -> list[TableSpec] | None:
    """Shares bytes between all tables, some of them plain in any case; None if the floors exceed them."""
    pinned: dict[str, tuple[TableSpec, int]] = {}
    while True:
        waiting = [spec for spec in specs if spec.name not in small and spec.name not in pinned]
        taken = [*(spec.plain_nbytes for spec in small.values()), *(floor for _, floor in pinned.values())]
        left_nbytes = math.floor(nbytes - sum(taken))
        if left_nbytes < 0 or (waiting and left_nbytes == 0):
            return None
        done, failed = _allocate(waiting, left_nbytes)
        if not failed:
            chosen = {**small, **{name: spec for name, (spec, _) in pinned.items()}, **done}
            return [chosen[spec.name] for spec in specs]
        pinned |= {spec.name: floor_of(spec) for spec in failed}


def at_floor(spec: TableSpec) -> tuple[TableSpec, int]:
    """A table at the smallest budget that its method takes, and the bytes of that; the plain table if it takes none, or
    none alone.

    Found by bisection over `build_method`, so that it holds for any method.
    """
    try:
        takes_one = _builds(with_nbytes(spec, spec.plain_nbytes))
    except ConfigError:  # it shares an array, whose size is decided for all of its tables together
        takes_one = False
    if not takes_one:
        return as_plain(spec), spec.plain_nbytes
    below_plain = range(1, spec.plain_nbytes)
    floor_nbytes = 1 + bisect_left(below_plain, True, key=lambda nbytes: _builds(with_nbytes(spec, nbytes)))
    return with_nbytes(spec, floor_nbytes), floor_nbytes


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
        if not own_nbytes:  # of a small group beside large ones; no method does with nothing
            failed += group
            continue
        try:
            allocated = method_class(group[0].method).traits.allocation.share(group, own_nbytes)
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


def _infeasible(
    specs: Sequence[TableSpec], floor_of: Callable[[TableSpec], tuple[TableSpec, int]], *, budget: float
) -> BudgetError:
    total_nbytes = sum(spec.plain_nbytes for spec in specs)
    floors = {spec.name: floor_of(spec) for spec in specs}
    floor_nbytes = sum(nbytes for _, nbytes in floors.values())
    largest = max(floors, key=lambda name: floors[name][1])
    part = f": the largest part is {floors[largest][1]:,} for table '{largest}' by method '{floors[largest][0].method}'"
    # Tables that share rows need less than the sum of what each needs alone.
    if _share(specs, floor_nbytes - 1, {}, floor_of) is not None:
        floor_nbytes = bisect_left(
            range(floor_nbytes), True, key=lambda nbytes: _share(specs, nbytes, {}, floor_of) is not None
        )
        part = ""
    return BudgetError(
        f"the budget of {len(specs)} tables is {budget}, {budget * total_nbytes:,.0f} bytes, but their floor is "
        f"{floor_nbytes:,} bytes, budget {share_text(floor_nbytes, total_nbytes)}{part}. Raise the budget, or choose a "
        "method with a lower floor",
        floor=floor_nbytes / total_nbytes,
    )
