"""Ids as a collection of tables takes them, checked, and the names of what comes out."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embank.tables.errors import ConfigError, DataError
from embank.tables.specs import TableSpec
from embank.tables.wording import nearest_or_all

WORD = np.dtype(np.uint64)
"""Ids are compared as unsigned words: one below 0 is larger than every table then, and one maximum finds both ends. It
is numpy's, which runs at the speed of memory; torch takes four times as long, and as long again for each feature."""
_FEW = 64
"""Ids of a feature that are compared one by one, which takes a call less."""


class IdRangeError(DataError, IndexError):
    """An id outside its table."""


def check_ids(ids: Tensor, *, table: str, feature: str, num_embeddings: int) -> None:
    """Refuses ids outside 0 .. num_embeddings - 1.

    Raises:
        IdRangeError: names table, feature, the id and the valid range.
    """
    if largest(ids) >= num_embeddings:
        low, high = (int(bound) for bound in ids.aminmax())
        raise out_of_range(f"feature '{feature}'", low=low, high=high, table=table, num_embeddings=num_embeddings)


def largest(ids: Tensor) -> int:
    """The largest of some int64 ids as an unsigned word; -1 where there are none."""
    return int(words(ids).max()) if ids.numel() else -1


def largest_of_each(ids_FN: Tensor) -> list[int]:
    """The same of every feature that has as many ids, in one pass.

    Within what `torch.compile` follows, call it from a function that is disabled: torch has no maximum of unsigned
    words. It is not disabled itself, since that imports the compiler, and bundles are opened without one.
    """
    return words(ids_FN).max(axis=1).tolist() if ids_FN.numel() else [-1] * len(ids_FN)


def words(ids: Tensor) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Int64 ids as unsigned words."""
    return ids.numpy(force=True).view(WORD)


def is_any_outside(ids_FN: np.ndarray[Any, Any], *, sizes_F1: np.ndarray[Any, np.dtype[np.uint64]]) -> bool:
    """Whether an int64 id is outside its feature's table, all features in one pass."""
    words_FN = ids_FN.view(WORD)
    if words_FN.shape[1] > _FEW:
        words_FN = words_FN.max(axis=1, keepdims=True)
    return bool(np.count_nonzero(words_FN >= sizes_F1))


def int64_ids(ids: Tensor, *, what: str = "ids") -> Tensor:
    """Ids as int64.

    Args:
        ids: of any integer type.
        what: they are, the beginning of the message.

    Raises:
        DataError: they are not integers.
    """
    refuse_no_integers(ids, what=what)
    return ids.long()


def refuse_no_integers(ids: Tensor, *, what: str) -> None:
    """Raises DataError if ids are not integers."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise DataError(f"{what} are {ids.dtype}; they must be integers")


def out_of_range(source: str, *, low: int, high: int, table: str, num_embeddings: int) -> IdRangeError:
    """The error for ids between low and high, one of which is outside; `source` is the sentence's subject, "feature
    'user'"."""
    return IdRangeError(
        f"{source} has id {low if low < 0 else high}, outside table '{table}' of {num_embeddings:,} ids (0 .. "
        f"{num_embeddings - 1:,}); prepare the data with the vocabulary that the table was made for, or give the table "
        "more rows"
    )


def missing_ids(feature: str, *, table: str, present: Iterable[str]) -> DataError:
    """The error for a batch without the ids of a feature."""
    return DataError(
        f"table '{table}' looks up feature '{feature}', which the batch lacks; "
        f"{nearest_or_all(feature, present, label='it has')}"
    )


def bag_offsets(lengths_B: Tensor) -> Tensor:
    """Where each bag starts among a feature's ids, and where the last one ends: int64 [B + 1]."""
    return torch.cat([lengths_B.new_zeros(1, dtype=torch.int64), lengths_B.cumsum(0)])


def output_key(spec: TableSpec, feature: str, *, specs: Sequence[TableSpec]) -> str:
    """The output's key of a feature in a table: "feature@table" where several tables look the feature up."""
    shared = sum(feature in other.feature_names for other in specs) > 1
    return f"{feature}@{spec.name}" if shared else feature


def refuse_bad_names(specs: Sequence[TableSpec], *, owner: str) -> None:
    """Raises ConfigError if there is no table, if two have one name, or if a feature's name is one that outputs
    need."""
    if not specs:
        raise ConfigError(f"a {owner} needs at least one TableSpec")
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two tables are named '{name}'; names must be unique in a collection")
    for feature in {f for spec in specs for f in spec.feature_names}:
        if "@" in feature:
            raise ConfigError(f"feature '{feature}' has '@' in its name, which is reserved; rename it")
