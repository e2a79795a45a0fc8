"""What a vocabulary makes of a batch: rows of its table, and what came and went.

Legend: N ids of a batch, R rows of the table.
"""

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StreamCounts:
    """What happened in one batch, or in all of them.

    Args:
        lookups: ids that were looked up, repetitions included; hits + misses.
        hits: lookups that got a row of their own, those of ids admitted by the same batch included.
        misses: lookups that got the unknown row.
        admissions: ids that were given a row.
        evictions: ids that lost theirs.
        resets: rows given to an id after another had them, which start anew.
    """

    lookups: int = 0
    hits: int = 0
    misses: int = 0
    admissions: int = 0
    evictions: int = 0
    resets: int = 0

    def __add__(self, other: "StreamCounts") -> "StreamCounts":
        return StreamCounts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A batch of ids as rows of the table.

    Args:
        rows: int64 [N], in 0 .. R - 1.
        resets: int64, distinct rows that must start anew before these rows are looked up, and after every earlier
            batch has been trained on.
        draw: which fresh values they get, see `reset_rows`: the number of the batch, or of the latest one where
            nothing was learned.
        counts: of this batch.
        is_learned: whether the vocabulary learned it; False in evaluation.
        history: of the vocabulary, see `Waiting`.
    """

    rows: Tensor
    resets: Tensor
    draw: int
    counts: StreamCounts
    is_learned: bool
    history: str
