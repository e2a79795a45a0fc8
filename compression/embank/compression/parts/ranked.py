"""What methods share that keep the most frequent ids apart: ids are ranked by frequency, so these are a prefix.

`embank prepare` ranks ids once (0 is the unknown value, then from the most to the least frequent), which costs nothing
in the table. A remap of 4 bytes per id, as public implementations keep it, would be a quarter of a table of dim 4 and
would have to be counted; so tables whose ids are not ranked are refused instead.
"""

from embank.compression.budget.floors import size_within
from embank.tables import ConfigError, TableSpec


def num_rows_within(spec: TableSpec, *, num_rows: int | None, constant_nbytes: int) -> int:
    """Whole fp32 rows that a table keeps.

    Args:
        spec: of the table.
        num_rows: the option that sets them, if it is set.
        constant_nbytes: what else the packed form holds when it keeps fewer rows than there are ids.

    Returns:
        Between 1 and the number of ids; all of them without a budget and without the option.

    Raises:
        ConfigError: both a budget and an option, or an option outside 1 .. num_embeddings.
        BudgetError: the budget does not hold one row and the constants.
    """
    whole, row_nbytes = spec.num_embeddings, 4 * spec.embedding_dim
    if num_rows is not None and not 1 <= num_rows <= whole:
        raise ConfigError(
            f"table '{spec.name}' has num_rows {num_rows}; it must lie in 1 .. {whole} (its number of ids)"
        )
    return size_within(
        spec,
        num_rows=num_rows,
        default=whole,
        room=lambda nbytes: whole if nbytes == spec.plain_nbytes else (nbytes - constant_nbytes) // row_nbytes,
        needs="one row and a constant" if constant_nbytes else "one row",
        floor_nbytes=min(row_nbytes + constant_nbytes, spec.plain_nbytes),
    )


def refuse_unranked(spec: TableSpec, *, num_private: int) -> None:
    """Refuses counts that contradict the prefix: an id with a row of its own is rarer than one without.

    Id 0, the unknown value, is exempt. Without counts the ids are taken to be ranked.

    Args:
        spec: of the table.
        num_private: ids 0 .. num_private - 1 have rows of their own.

    Raises:
        ConfigError: names one such pair of ids.
    """
    counts = spec.counts
    if counts is None or num_private <= 1 or num_private >= spec.num_embeddings:
        return
    private, shared = counts[1:num_private], counts[num_private:]
    rarest, commonest = 1 + int(private.argmin()), num_private + int(shared.argmax())
    if int(counts[rarest]) < int(counts[commonest]):
        raise ConfigError(
            f"table '{spec.name}': id {rarest} occurs {int(counts[rarest]):,} times and id {commonest} "
            f"{int(counts[commonest]):,} times, but method '{spec.method}' keeps the ids below {num_private:,} apart "
            "as the most frequent ones. Rank the ids by frequency (embank prepare does), or leave counts out to keep "
            "this order"
        )
