"""Bytes that a rank may hold for rows and their optimizer state: limits that mean something, and what helps where they
are broken."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from embank.tables.errors import ConfigError
from embank.tables.rows.shards import num_positions

if TYPE_CHECKING:
    from embank.tables.sharding.plan import Load, RankLoad


def refuse_bad_limit(limit: int | None) -> None:
    """Raises ConfigError for a limit that nothing can keep."""
    if limit is not None and limit < 1:
        raise ConfigError(
            f"the memory of a rank is {limit:,} bytes; give at least 1, or leave it out, which sets no limit"
        )


def refuse_beyond(held: Sequence["RankLoad"], limit: int) -> None:
    """Raises ConfigError if a plan that was made without regard to a limit gives a rank more."""
    fullest = max(range(len(held)), key=lambda rank: held[rank].nbytes)
    if held[fullest].nbytes > limit:
        raise ConfigError(
            f"the plan gives rank {fullest} {held[fullest].nbytes:,} bytes, the limit is {limit:,} bytes; edit the "
            f"plan, let embank's planner make one, or set a limit of {held[fullest].nbytes:,} bytes"
        )


def too_large(
    replicated: Sequence["Load"], others: Sequence["Load"], *, held: int, limit: int, world_size: int
) -> ConfigError:
    """What to say where no more can be cut.

    Args:
        replicated: tables that every rank holds.
        others: those that can be cut into rows.
        held: bytes on the fullest rank, with which the plan would fit.
        limit: bytes that it may hold.
        world_size: number of ranks.
    """
    largest = max((*replicated, *others), key=lambda load: load.nbytes)
    copies = sum(load.nbytes for load in replicated)
    ranks = fewest_ranks(replicated, others, limit=limit, above=world_size)
    if ranks is None:
        advice = (
            f"No number of ranks is enough: each holds {copies:,} bytes of replicas and a part of every other table. "
            f"Set a limit of {held:,} bytes, or use smaller tables (a budget)"
        )
    else:
        advice = f"Use {ranks:,} ranks in place of {world_size:,}, a limit of {held:,} bytes, or smaller tables"
    return ConfigError(
        f"the tables don't fit: {held:,} bytes on a rank, the limit is {limit:,} bytes; the largest table is "
        f"'{largest.table.name}' with {largest.nbytes:,} bytes ({largest.table.num_embeddings:,} rows). {advice}"
    )


def fewest_ranks(replicated: Sequence["Load"], others: Sequence["Load"], *, limit: int, above: int) -> int | None:
    """The smallest number of ranks that keeps a limit with every table cut into rows; None if none does.

    Args:
        replicated, others, limit: as above.
        above: a number of ranks that does not.
    """
    copies = sum(load.nbytes for load in replicated)

    def fits(num_ranks: int) -> bool:
        parts = (-(-num_positions(o.table.num_embeddings) // num_ranks) * o.nbytes_per_row for o in others)
        return copies + sum(parts) <= limit

    most = max((num_positions(load.table.num_embeddings) for load in others), default=0)  # more ranks hold no less
    if most <= above or not fits(most):
        return None
    numbers = range(above + 1, most + 1)
    return numbers[bisect_left(numbers, True, key=fits)]
