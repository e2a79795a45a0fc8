"""Ids of a batch on their way to tables: what is missing, of another type or out of range is refused early, by its name."""

import difflib
from collections.abc import Iterable

from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.tables.errors import DataError
from embank.tables.specs import TableSpec


class IdRangeError(DataError, IndexError):
    """An id outside its table."""

    @classmethod
    def of(cls, source: str, *, low: int, high: int, table: str, num_embeddings: int) -> "IdRangeError":
        """The error for ids between low and high, one of which is outside.

        Args:
            source: where the ids come from, as the sentence's subject: "feature 'user'".
        """
        return cls(
            f"{source} has id {low if low < 0 else high}, outside table '{table}' of {num_embeddings:,} ids "
            f"(0 .. {num_embeddings - 1:,}); "
            "prepare the data with the vocabulary that the table was made for, or give the table more rows"
        )


def check_ids(ids: Tensor, *, table: str, feature: str, num_embeddings: int) -> None:
    """Refuses ids outside 0 .. num_embeddings - 1.

    Raises:
        IdRangeError: names table, feature, the id and the valid range.
    """
    if not ids.numel():
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= num_embeddings:
        raise IdRangeError.of(f"feature '{feature}'", low=low, high=high, table=table, num_embeddings=num_embeddings)


def missing_ids(feature: str, *, table: str, present: Iterable[str]) -> DataError:
    """The error for a batch without the ids of a feature."""
    present = list(present)
    near = difflib.get_close_matches(feature, present, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(present)}"
    return DataError(f"table '{table}' looks up feature '{feature}', which the batch lacks; {hint}")


class JaggedIds:
    """Ids of a KeyedJaggedTensor by feature, checked.

    Raises:
        DataError: the ids carry weights, are not integers, or each feature has a batch size of its own.
    """

    def __init__(self, features: KeyedJaggedTensor) -> None:
        if features.weights_or_none() is not None:
            raise DataError("the input carries per-id weights; collections look ids up without weights")
        if features.variable_stride_per_key():
            raise DataError("the input has another batch size for each feature; give every feature one bag per row")
        if features.values().is_floating_point():
            raise DataError(f"ids are {features.values().dtype}; they must be integers")
        self.places = {key: i for i, key in enumerate(features.keys())}
        self.starts = features.offset_per_key()
        self.batch_size: int = features.stride()
        self.values = features.values().long()
        self.lengths = features.lengths().view(len(self.places), self.batch_size)

    def bags(self, spec: TableSpec, feature: str) -> tuple[Tensor, Tensor]:
        """Ids int64 [N] of a feature, bag after bag, and the bags' lengths [B].

        Args:
            spec: of the table that looks them up.

        Raises:
            IdRangeError: an id outside the table.
            DataError: the batch lacks the feature.
        """
        if feature not in self.places:
            raise missing_ids(feature, table=spec.name, present=self.places)
        place = self.places[feature]
        ids_N = self.values[self.starts[place] : self.starts[place + 1]]
        check_ids(ids_N, table=spec.name, feature=feature, num_embeddings=spec.num_embeddings)
        return ids_N, self.lengths[place]
