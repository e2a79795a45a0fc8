"""What a position may look back on: marked ids, and the history of sequences that come in pieces.

One integer says it all, so that a history can be cut, reordered and kept like any cache:

* `id >= 0`: a token that goes on from the one before;
* `DEAD` (-1): no token (padding, an image): it has no n-gram, and nothing looks past it;
* `-2 - id`: a token that begins a document: nothing looks past its beginning.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from embank.tables.collections.ids import int64_ids
from embank.tables.errors import ConfigError, DataError

DEAD = -1
"""A position without a token."""


def mark_tokens(ids_BT: Tensor, *, dead_BT: Tensor | None = None, starts_BT: Tensor | None = None) -> Tensor:
    """Ids with what stands between them.

    Args:
        ids_BT: (compressed) ids, 0 or more where they are not dead.
        dead_BT: bool, positions without a token.
        starts_BT: bool, positions at which another document begins; that of a sequence's first position needs no mark.

    Returns:
        int64 [B, T], see the module.

    Raises:
        DataError: another shape or type, or a negative id.

    Example:
        >>> mark_tokens(torch.tensor([[5, 7, 9]]), starts_BT=torch.tensor([[False, True, False]])).tolist()
        [[5, -9, 9]]
    """
    marked = int64_ids(ids_BT)
    if marked.dim() != 2:
        raise DataError(f"ids have shape {tuple(marked.shape)}; give [B, T], one row per sequence")
    for name, flags in (("dead_BT", dead_BT), ("starts_BT", starts_BT)):
        if flags is not None and (flags.shape != marked.shape or flags.dtype != torch.bool):
            raise DataError(
                f"{name} is {flags.dtype} of shape {tuple(flags.shape)} for ids of shape {tuple(marked.shape)}; give a "
                "bool for each id"
            )
    if starts_BT is not None:
        marked = torch.where(starts_BT, -2 - marked, marked)
    if dead_BT is not None:
        marked = marked.masked_fill(dead_BT, DEAD)
    wrong = marked < 0 if starts_BT is None else (marked < 0) & ~starts_BT
    if dead_BT is not None:
        wrong = wrong & ~dead_BT
    if bool(wrong.any()):
        raise DataError(
            f"id {int(int64_ids(ids_BT)[wrong][0])} is negative; ids are 0 or more, and padding is marked by dead_BT"
        )
    return marked


def starts_of_positions(positions_BT: Tensor, *, last_B: Tensor | None = None) -> Tensor:
    """Where documents begin, by the position of each token in its document: one that does not grow begins another.

    Args:
        positions_BT: integers.
        last_B: the position before the first, where sequences come in pieces; None for none.

    Returns:
        bool [B, T].
    """
    starts_BT = torch.ones_like(positions_BT, dtype=torch.bool)
    starts_BT[:, 1:] = positions_BT[:, 1:] <= positions_BT[:, :-1]
    if last_B is not None and positions_BT.shape[1]:
        starts_BT[:, 0] = positions_BT[:, 0] <= last_B
    return starts_BT


class TokenHistory:
    """Marked ids of the sequences of a batch so far: what chunked prefill, decoding and rollback look back on.

    In Python's integers: decoding asks for a few of them at a time.

    Args:
        num_sequences: B.

    Example:
        >>> history = TokenHistory(1)
        >>> history.append(torch.tensor([[5, 7, 9]]))
        >>> history.crop(2)
        >>> history.last(2).tolist(), history.length
        ([[5, 7]], 2)
    """

    def __init__(self, num_sequences: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(num_sequences)]

    @property
    def length(self) -> int:
        """Positions so far, dead ones included; the same for all sequences."""
        return len(self.rows[0]) if self.rows else 0

    def append(self, marked_BT: Tensor) -> None:
        """Goes on by some positions.

        Raises:
            DataError: another number of sequences.
        """
        if marked_BT.dim() != 2 or len(marked_BT) != len(self.rows):
            raise DataError(
                f"ids of shape {tuple(marked_BT.shape)} do not go on from {len(self.rows)} sequences; give one row for "
                "each"
            )
        for row, more in zip(self.rows, marked_BT.tolist(), strict=True):
            row.extend(more)

    def last(self, count: int) -> Tensor:
        """The last positions, int64 [B, count]; DEAD where there are fewer."""
        padded = [[DEAD] * (count - len(row)) + row[len(row) - min(count, len(row)) :] for row in self.rows]
        return torch.tensor(padded, dtype=torch.int64).view(len(self.rows), count)

    def crop(self, length: int) -> None:
        """Rolls back to some length, as when a draft is rejected.

        Raises:
            ConfigError: there are fewer positions.
        """
        if not 0 <= length <= self.length:
            raise ConfigError(f"a history of {self.length} positions can't be cut to {length}")
        for row in self.rows:
            del row[length:]

    def reorder(self, sequences: Sequence[int]) -> None:
        """Goes on from other sequences, as beam search does: row b becomes a copy of row `sequences[b]`."""
        self.rows = [list(self.rows[b]) for b in sequences]
