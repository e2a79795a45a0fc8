"""Vectors that others have trained, as a caller gives them: their ids or tokens found in a table, and all of it
checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embank.tables.errors import ConfigError, DataError
from embank.tables.ids.vocabulary import UNKNOWN_ID, Vocabulary
from embank.tables.method.fitting import Wanted
from embank.tables.specs import TableSpec
from embank.tables.wording import shown

_LEAST_WEIGHT = 1e-9
"""Of an id of weight 0, where the mean is 1: it counts where no other id does."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenRows:
    """Vectors for the ids of a table.

    Args:
        ids: int64 [K], ids of the table, or K tokens: a sequence, a NumPy array or a polars Series.
        vectors: [K, D], floating point; a tensor or a NumPy array.
        vocabulary: what finds the ids of tokens. A table without a vocabulary hashes its tokens.
        weights: [K], 0 or more: how much each id counts where ids share numbers (how often it occurs in training, for
            example); None for equally much. An id of weight 0 counts where no other id does.

    Example:
        >>> given = GivenRows(ids=torch.tensor([2, 0]), vectors=torch.rand(2, 8), weights=torch.tensor([10, 3]))
    """

    ids: Any
    vectors: Any
    vocabulary: Vocabulary | None = None
    weights: Any = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found in a table of what was given.

    Args:
        wanted: the vectors of the table's ids.
        surplus: vectors whose id or token the table does not have.
        duplicates: vectors that were there before, for the same id.
    """

    wanted: Wanted
    surplus: int
    duplicates: int


def find(spec: TableSpec, given: GivenRows) -> Found:
    """Checks given vectors and finds the ids of their tokens.

    Raises:
        ConfigError: shapes or types that don't fit the table, tokens without a vocabulary.
        DataError: an id below 0, numbers that are not finite, one id with two vectors, no vector for any id.
    """
    what = f"the vectors for table '{spec.name}'"
    ids_K, is_tokens = _ids(spec, given)
    vectors_KD = _vectors(spec, given.vectors, num=len(ids_K), what=what)
    weights_K = _weights(given.weights, num=len(ids_K), what=what)
    inside = (ids_K >= 0) & (ids_K < spec.num_embeddings if spec.has_vocabulary else True)
    kept_k = inside.nonzero()[:, 0]
    if not kept_k.numel():
        raise _nothing_taken(spec, given, num=len(ids_K), is_tokens=is_tokens)
    ids_k, order = ids_K[kept_k].sort(stable=True)
    is_again = torch.cat([torch.zeros(1, dtype=torch.bool), ids_k[1:] == ids_k[:-1]])
    kept_k = kept_k[order]
    for again in is_again.nonzero()[:, 0].tolist():
        if not torch.equal(vectors_KD[kept_k[again]], vectors_KD[kept_k[again - 1]]):
            raise DataError(
                f"{what} have two that differ for id {int(ids_k[again])} (rows {int(kept_k[again - 1])} and "
                f"{int(kept_k[again])}, counted from 0); leave one out"
            )
    firsts = kept_k[~is_again]
    chosen = weights_K[firsts].double()
    mean = float(chosen.mean())
    wanted = Wanted(
        ids_K=ids_K[firsts],
        vectors_KD=vectors_KD[firsts],
        weights_K=(chosen / mean if mean else torch.ones_like(chosen)).clamp(min=_LEAST_WEIGHT).float(),
    )
    return Found(wanted=wanted, surplus=len(ids_K) - len(kept_k), duplicates=int(is_again.sum()))


def _vectors(spec: TableSpec, given: Any, *, num: int, what: str) -> Tensor:
    vectors = _tensor(given, what=what)
    if vectors.dim() != 2 or vectors.shape[0] != num:
        raise ConfigError(
            f"{what} have shape {tuple(vectors.shape)} and there are {num:,} ids; give one vector for each, [{num}, "
            f"{spec.embedding_dim}]"
        )
    if vectors.shape[1] != spec.embedding_dim:
        raise ConfigError(
            f"{what} have dim {vectors.shape[1]}, the table has embedding_dim {spec.embedding_dim}; make the table "
            f"with embedding_dim {vectors.shape[1]}, or project the vectors first"
        )
    if not vectors.is_floating_point():
        raise ConfigError(f"{what} are {vectors.dtype}; give floating-point numbers")
    vectors_KD = vectors.to(dtype=torch.float32, device="cpu")
    is_good_K = vectors_KD.isfinite().all(1)
    if not bool(is_good_K.all()):
        row = int(is_good_K.int().argmin())
        raise DataError(
            f"{what} have a number that is not finite (NaN, infinite, or too large for fp32) in row {row}, counted "
            f"from 0; {int((~is_good_K).sum()):,} rows have. Mend or leave them out"
        )
    return vectors_KD


def _weights(given: Any, *, num: int, what: str) -> Tensor:
    if given is None:
        return torch.ones(num)
    weights_K = _tensor(given, what=f"the weights of {what.removeprefix('the ')}").to("cpu", torch.float64)
    if weights_K.shape != (num,):
        raise ConfigError(
            f"the weights of {what.removeprefix('the ')} have shape {tuple(weights_K.shape)}; give one number for each "
            f"of the {num:,} ids, [{num}]"
        )
    if not bool((weights_K.isfinite() & (weights_K >= 0)).all()):
        raise DataError(
            f"the weights of {what.removeprefix('the ')} have one that is negative or not finite; they are counts, 0 "
            "or more"
        )
    return weights_K


def _tensor(value: Any, *, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} are a {type(value).__name__} ({error}); give a tensor or a NumPy array") from error


def _ids(spec: TableSpec, given: GivenRows) -> tuple[Tensor, bool]:
    """Ids [K], -1 for a token that the table does not have; and whether tokens were given."""
    if given.vocabulary is None and not _are_texts(given.ids):
        return _whole_ids(spec, given.ids), False
    if given.vocabulary is None:
        return torch.from_numpy(_hashed(spec, given.ids)), True
    vocabulary = given.vocabulary
    if len(vocabulary) > spec.num_embeddings:
        raise ConfigError(
            f"vocabulary '{vocabulary.name}' has {len(vocabulary):,} ids and table '{spec.name}' has "
            f"{spec.num_embeddings:,}; take the vocabulary that the table's data was prepared with"
        )
    series = _series(given.ids, spec)
    ids_K = torch.from_numpy(vocabulary.encode(series))
    if vocabulary.missing_id is None:
        return torch.where(ids_K == UNKNOWN_ID, -1, ids_K), True
    is_null_K = torch.from_numpy(series.is_null().to_numpy().copy())
    return torch.where((ids_K == UNKNOWN_ID) & ~is_null_K, -1, ids_K), True


def _are_texts(ids: Any) -> bool:
    """Whether ids are tokens: texts, bytes or nulls."""
    if isinstance(ids, Tensor):
        return False
    if isinstance(ids, np.ndarray):
        return ids.dtype.kind in "OSUT"
    if hasattr(ids, "dtype"):  # a Series
        return str(ids.dtype) in ("String", "Utf8", "Categorical", "Binary", "object")
    return isinstance(ids, Sequence) and any(item is None or isinstance(item, str | bytes) for item in ids)


def _whole_ids(spec: TableSpec, ids: Any) -> Tensor:
    ids_K = _tensor(ids, what=f"the ids for table '{spec.name}'").to("cpu")
    if ids_K.dim() != 1 or ids_K.is_floating_point() or ids_K.is_complex() or ids_K.dtype == torch.bool:
        raise ConfigError(
            f"the ids for table '{spec.name}' have shape {tuple(ids_K.shape)} and type {ids_K.dtype}; give whole "
            "numbers [K], or tokens and their vocabulary"
        )
    ids_K = ids_K.long()
    if ids_K.numel() and int(ids_K.min()) < 0:
        raise DataError(
            f"the ids for table '{spec.name}' have {int(ids_K.min())} (row {int(ids_K.argmin())}, counted from 0); ids "
            "are 0 or more"
        )
    return ids_K


def _hashed(spec: TableSpec, tokens: Any) -> "np.ndarray[Any, np.dtype[np.int64]]":
    if spec.has_vocabulary:
        raise ConfigError(
            f"the rows for table '{spec.name}' are named by tokens, and only a vocabulary knows their ids; give "
            "vocabulary=..., or ids"
        )
    from embank.tables.ids.token_hash import token_ids

    return token_ids(tokens)


def _series(tokens: Any, spec: TableSpec) -> Any:
    import polars as pl

    try:
        if isinstance(tokens, pl.Series):
            return tokens.cast(pl.String)
        listed = tokens.tolist() if isinstance(tokens, Tensor | np.ndarray) else list(tokens)
        return pl.Series("token", listed).cast(pl.String)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(f"the tokens for table '{spec.name}' can't be read as texts ({error})") from error


def _nothing_taken(spec: TableSpec, given: GivenRows, *, num: int, is_tokens: bool) -> DataError:
    if not num:
        return DataError(f"there are no vectors for table '{spec.name}'; give at least one")
    first = given.ids[0]
    if is_tokens:
        return DataError(
            f"none of the {num:,} tokens for table '{spec.name}' is in its vocabulary (the first one is "
            f"{shown(first.item() if isinstance(first, Tensor) else first)}); give the vocabulary that they were named "
            "by, or leave it out if they are ids"
        )
    return DataError(
        f"none of the {num:,} ids for table '{spec.name}' is in it (the first one is {int(first)}, the table has 0 .. "
        f"{spec.num_embeddings - 1:,}); tokens need a vocabulary=..."
    )
