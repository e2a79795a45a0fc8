"""A map from int64 keys to int64 columns, as sorted tensors: every operation works on many keys at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class SortedColumns:
    """Distinct keys in ascending order, and columns beside them.

    Finding U of n keys takes U log n steps, a change one pass over all n.

    Args:
        num_columns: how many.

    Attributes:
        keys: int64 [n].
        columns: int64 [n] each; values may be written in place.
    """

    def __init__(self, num_columns: int) -> None:
        self.keys = torch.empty(0, dtype=torch.int64)
        self.columns = [torch.empty(0, dtype=torch.int64) for _ in range(num_columns)]

    def __len__(self) -> int:
        return self.keys.numel()

    def find(self, keys_U: Tensor) -> tuple[Tensor, Tensor]:
        """Where keys are, int64 [U], and whether they are there at all, bool [U]; positions of those that are not mean
        nothing."""
        if not len(self):
            return torch.zeros_like(keys_U), torch.zeros_like(keys_U, dtype=torch.bool)
        positions_U = torch.searchsorted(self.keys, keys_U).clamp_(max=len(self) - 1)
        return positions_U, self.keys[positions_U] == keys_U

    def insert(self, keys_U: Tensor, *columns_U: Tensor) -> None:
        """Adds distinct keys that are not there yet, in any order."""
        if not keys_U.numel():
            return
        keys_U, order = keys_U.sort()
        # Each new key moves those after it on by one, the new ones before it included.
        positions_U = torch.searchsorted(self.keys, keys_U) + torch.arange(keys_U.numel())
        is_old = torch.ones(len(self) + keys_U.numel(), dtype=torch.bool)
        is_old[positions_U] = False
        self.keys = _merged(self.keys, keys_U, positions_U, is_old)
        pairs = zip(self.columns, columns_U, strict=True)
        self.columns = [_merged(old, new[order], positions_U, is_old) for old, new in pairs]

    def remove(self, positions: Tensor) -> None:
        """Takes out the keys at some positions."""
        if positions.numel():
            stays = torch.ones(len(self), dtype=torch.bool)
            stays[positions] = False
            self.keys, self.columns = self.keys[stays], [column[stays] for column in self.columns]

    def tensors(self) -> list[Tensor]:
        """Everything that is held."""
        return [self.keys, *self.columns]


def is_column(value: Any) -> bool:
    """Whether a value is int64 [n]."""
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.dim() == 1


def is_ascending(keys: Tensor) -> bool:
    """Whether keys are 0 or more, distinct and in ascending order."""
    return not keys.numel() or (int(keys[0]) >= 0 and bool((keys[1:] > keys[:-1]).all()))


def _merged(old: Tensor, new_U: Tensor, positions_U: Tensor, is_old: Tensor) -> Tensor:
    merged = torch.empty(is_old.numel(), dtype=torch.int64)
    merged[is_old], merged[positions_U] = old, new_U
    return merged


def smallest(keys: Sequence[Tensor], count: int) -> Tensor:
    """Places of the `count` smallest entries in ascending order, compared by the first key, ties by the next one and so
    on.

    Args:
        keys: int64 [n] each; together they are distinct.
        count: at most n.

    Returns:
        int64 [count].
    """
    if not count:
        return torch.empty(0, dtype=torch.int64)
    bound = keys[0].kthvalue(count).values  # only those up to it are sorted
    chosen = (keys[0] <= bound).nonzero().squeeze(1)
    for key in reversed(keys):  # stable sorts from the last key to the first leave ties in the order of the later keys
        chosen = chosen[key[chosen].argsort(stable=True)]
    return chosen[:count]
