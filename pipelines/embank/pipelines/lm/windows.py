"""Training sequences: windows of a stream of ids, in a seeded order that depends on the step alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embank.tables.errors import DataError
from embank.tables.ids.hashing import seed_of

Order = np.ndarray[Any, np.dtype[np.int64]]


class Windows:
    """Windows of T + 1 ids (the last one is only predicted), side by side, epoch after epoch in another order.

    Args:
        stream: ids [N] of a split.
        context: T.
        batch_size: windows per step, over all ranks.
        seed: of the order.

    Raises:
        DataError: the stream is shorter than a batch.
    """

    def __init__(self, stream: Tensor, *, context: int, batch_size: int, seed: int) -> None:
        self.stream, self.context, self.batch_size, self.seed = stream, context, batch_size, seed
        self.num_windows = (len(stream) - 1) // context
        self._known: tuple[int, Order] | None = None
        if self.num_windows < batch_size:
            raise DataError(
                f"the training split has {len(stream):,} tokens, which is less than a batch of {batch_size} sequences "
                f"of {context} tokens; give more text, or a smaller train.batch_size or model.context"
            )

    @property
    def epoch_steps(self) -> int:
        """Full batches of an epoch; what is left over waits for another order."""
        return self.num_windows // self.batch_size

    def _first(self, epoch: int) -> int:
        """Where the windows of an epoch begin. Every second epoch's end with the stream: what stands behind the last
        full window would never be read otherwise."""
        return epoch % 2 * ((len(self.stream) - 1) % self.context)

    def batch(self, step: int, *, rank: int = 0, count: int = 1) -> Tensor:
        """The windows [B / count, T + 1] of a rank in a step."""
        epoch, place = divmod(step, self.epoch_steps)
        first, last = (self.batch_size * r // count for r in (rank, rank + 1))
        chosen = self.order(epoch)[place * self.batch_size + first : place * self.batch_size + last]
        places = self._first(epoch) + chosen[:, None] * self.context + np.arange(self.context + 1)
        return self.stream[torch.from_numpy(places)]

    def num_unread(self, num_steps: int) -> int:
        """Tokens of the stream but its first that none of so many steps predicts, over all ranks."""
        chosen = np.zeros((2, self.num_windows), dtype=bool)  # of even and odd epochs
        for epoch in range(-(-num_steps // self.epoch_steps)):
            steps = min(self.epoch_steps, num_steps - epoch * self.epoch_steps)
            chosen[epoch % 2, self.order(epoch)[: steps * self.batch_size]] = True
            if chosen.all():
                break
        read = np.zeros(len(self.stream) - 1, dtype=bool)
        for epoch, windows in enumerate(chosen):
            first = self._first(epoch)
            read[first : first + self.num_windows * self.context] |= np.repeat(windows, self.context)
        return int(np.count_nonzero(~read))

    def order(self, epoch: int) -> Order:
        """The windows of an epoch, in their order."""
        if self._known is None or self._known[0] != epoch:
            generator = np.random.default_rng(seed_of(self.seed, "windows", epoch))
            self._known = (epoch, generator.permutation(self.num_windows))
        return self._known[1]

    def all(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every window once, in as few batches as there can be, of sizes that differ by one at most: none of them is a
        lonely rest. What is left behind the last full window is one more, which goes on with the stream's beginning.

        Yields:
            Positions in the stream [B, T + 1], beyond its end where a window goes on with the beginning; and ids.
        """
        order = self.order(0)
        if (len(self.stream) - 1) % self.context:
            order = np.append(order, self.num_windows)
        for chosen in np.array_split(order, -(-len(order) // self.batch_size)):
            places_BS = torch.from_numpy(chosen[:, None] * self.context + np.arange(self.context + 1))
            yield places_BS, self.stream[places_BS % len(self.stream)]
