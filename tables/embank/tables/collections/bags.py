"""The ids of a batch by feature, as a collection of tables takes them: checked, and named as TorchRec names them."""

from collections.abc import Iterable, Sequence
from copy import copy
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor
from torch.fx import Proxy
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType

from embank.tables.collections.ids import check_ids, int64_ids, largest, largest_of_each, missing_ids
from embank.tables.errors import DataError
from embank.tables.specs import TableSpec
from embank.tables.wording import listing


class Bags:
    """The bags of a batch by feature.

    Args:
        features: ids by feature; keys that no table uses are ignored. Features may have other numbers of rows, where
            `inverse_indices` say which of them each row of the output takes.

    Attributes:
        batch_size: rows of the largest feature; others are followed by empty bags.
        strides: rows of each feature.
        is_single: every bag holds one id.

    Raises:
        DataError: no KeyedJaggedTensor, there are no features, the ids are not integers, weights do not match the ids,
            features have other numbers of rows without `inverse_indices`, or the lengths of bags do not match the ids.
    """

    def __init__(self, features: KeyedJaggedTensor) -> None:
        if isinstance(features, Proxy):
            raise DataError(
                "the ids are not known yet: torch.fx is tracing. Call the tables themselves, tables(kjt), which is one "
                "step of a trace"
            )
        if not isinstance(features, KeyedJaggedTensor):
            raise DataError(f"the input is a {type(features).__name__}; give a KeyedJaggedTensor, ids by feature")
        self.places = {key: place for place, key in enumerate(features.keys())}
        if not self.places:
            raise DataError("the batch has no features; give a key for each feature that the tables look up")
        self.weights = features.weights_or_none()
        self.is_variable = features.variable_stride_per_key()
        self.strides = features.stride_per_key() if self.is_variable else [features.stride()] * len(self.places)
        values = features.values()
        self.values = values if values.dtype == torch.int64 else int64_ids(values, what=_ids_of(self.places))
        self.batch_size = max(self.strides)
        self._inverse = features.inverse_indices_or_none()
        self.lengths = self._bag_lengths(features.lengths())
        self.starts = self._starts()
        self._largest: list[int] | None = None  # found when it is first asked for
        if self.weights is not None and self.weights.numel() != self.values.numel():
            raise DataError(
                f"the batch has {self.weights.numel():,} weights for {self.values.numel():,} ids; give one for each id"
            )

    def _bag_lengths(self, lengths: Tensor) -> Tensor:
        """The bags' lengths [F, B] by feature. Unchecked ones would have the kernels read memory that is not the
        batch's."""
        num_features, batch_size, num_bags = len(self.places), self.batch_size, sum(self.strides)
        if lengths.numel() != num_bags:
            raise DataError(
                f"the batch has {lengths.numel():,} lengths for {num_features} features of {batch_size:,} rows; give "
                f"{num_bags:,}, one for each feature and row"
            )
        if self.is_variable:
            parts = torch.split(lengths, self.strides)
            lengths_FB = torch.stack([torch.nn.functional.pad(part, (0, batch_size - len(part))) for part in parts])
        else:
            lengths_FB = lengths.view(num_features, batch_size)
        low, high = (int(bound) for bound in lengths.aminmax()) if num_bags else (0, 0)
        self._longest, self.is_single = high, low == high == 1 and lengths_FB.numel() == num_bags
        if low < 0:
            place, row = (lengths_FB < 0).nonzero()[0].tolist()
            raise DataError(
                f"feature '{list(self.places)[place]}' has a bag of length {int(lengths_FB[place, row])} in row {row}; "
                "a length is the number of ids in a bag, 0 or more"
            )
        return lengths_FB

    def _starts(self) -> list[int]:
        """Where each feature's ids start among all, and where the last one's end."""
        if self.is_single and self.values.numel() == self.lengths.numel():
            return list(range(0, self.values.numel() + 1, self.batch_size))
        starts = [0]
        for feature, size in zip(self.places, self.lengths.sum(1).tolist(), strict=True):
            if self._longest > self.values.numel():  # the sum may have gone past int64
                size = sum(self.lengths[self.places[feature]].tolist())
            starts.append(starts[-1] + size)
            if starts[-1] > self.values.numel():
                raise DataError(
                    f"lengths of feature '{feature}' sum to {size:,}, but the batch has "
                    f"{self.values.numel() - starts[-2]:,} ids left for it; lengths and ids must come from the same "
                    "rows"
                )
        if starts[-1] != self.values.numel():
            raise DataError(
                f"lengths sum to {starts[-1]:,} up to the last feature, '{feature}', but the batch has "
                f"{self.values.numel():,} ids; lengths and ids must come from the same rows"
            )
        return starts

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # see `largest_of_each`
    def _largest_of_each(self) -> list[int]:
        """The largest id of every feature."""
        sizes = {end - start for start, end in pairwise(self.starts)}
        if len(sizes) == 1:
            return largest_of_each(self.values.view(len(self.places), -1))
        return [largest(self.values[start:end]) for start, end in pairwise(self.starts)]

    def of(self, feature: str, *, spec: TableSpec) -> tuple[Tensor, Tensor]:
        """Ids int64 [N] of a feature, bag after bag, and the bags' lengths [B].

        Args:
            feature: a key of the input.
            spec: the table that it is looked up in.

        Raises:
            DataError: the batch lacks the feature.
            IdRangeError: an id outside the table.
        """
        if feature not in self.places:
            raise missing_ids(feature, table=spec.name, present=self.places)
        place = self.places[feature]
        ids_N = self.values[self.starts[place] : self.starts[place + 1]]
        if self._largest is None:
            self._largest = self._largest_of_each()
        if self._largest[place] >= spec.num_embeddings:
            check_ids(ids_N, table=spec.name, feature=feature, num_embeddings=spec.num_embeddings)
        return ids_N, self.lengths[place]

    def lengths_of(self, feature: str) -> Tensor:
        """The lengths [B] of a feature's bags."""
        return self.lengths[self.places[feature]]

    def holding(self, values: Tensor) -> Self:
        """The same bags of other ids.

        Args:
            values: int64, as many as here.
        """
        twin = copy(self)
        twin.values, twin._largest = values, None
        return twin

    def own_lengths(self, feature: str) -> Tensor:
        """The lengths of a feature's bags, without those that only fill up to the batch's size."""
        place = self.places[feature]
        return self.lengths[place, : self.strides[place]]

    def weights_of(self, feature: str, *, spec: TableSpec) -> Tensor | None:
        """The weights [N] of a feature's ids; None where its table has no use for them.

        Raises:
            DataError: the table pools by weight, and the batch has none.
        """
        if not spec.weighted:
            return None
        if self.weights is None:
            raise DataError(
                f"table '{spec.name}' pools feature '{feature}' by weight, but the batch has no weights; give the "
                "KeyedJaggedTensor weights=, one for each id, or make the table with weighted=False"
            )
        place = self.places[feature]
        weights_N: Tensor = self.weights[self.starts[place] : self.starts[place + 1]].float()
        return weights_N

    def inverse(self, features: Sequence[str]) -> list[Tensor] | None:
        """For each of some features, which of its rows each row of the output takes: int64 [B]; None where every
        feature has the output's rows.

        Raises:
            DataError: features have other numbers of rows and nothing says how they go together, or a row is none of
                the feature's.
        """
        if self._inverse is None:
            strides = {self.strides[self.places[feature]] for feature in features}
            if len(strides) > 1:
                raise DataError(
                    "features have other numbers of rows, "
                    + ", ".join(f"'{key}' {stride:,}" for key, stride in zip(self.places, self.strides, strict=True))
                    + ", and nothing says how they go together; give the KeyedJaggedTensor inverse_indices=, or every "
                    "feature one bag per row"
                )
            (stride,) = strides
            return None if stride == self.batch_size else [torch.arange(stride)] * len(features)
        keys, rows_FB = self._inverse
        missing = next((feature for feature in features if feature not in keys), None)
        if missing is not None:
            raise DataError(f"inverse_indices lack feature '{missing}'; they have {', '.join(keys)}")
        found = [rows_FB[list(keys).index(feature)].long() for feature in features]
        for feature, rows_B in zip(features, found, strict=True):
            stride = self.strides[self.places[feature]]
            if rows_B.numel() and not 0 <= int(rows_B.min()) <= int(rows_B.max()) < stride:
                raise DataError(
                    f"inverse_indices of feature '{feature}' name rows {int(rows_B.min())} to {int(rows_B.max())}, but "
                    f"the feature has {stride:,} (0 .. {stride - 1:,})"
                )
        return found


def _ids_of(features: Iterable[str]) -> str:
    """What the ids of a batch are, for messages."""
    names = [f"'{feature}'" for feature in features]
    return f"ids of feature{'s' if len(names) > 1 else ''} {listing(names)}"


def expanded(values_BE: Tensor, inverse: Sequence[Tensor], *, dims: Sequence[int]) -> Tensor:
    """Pooled rows of features side by side, each by the rows that `Bags.inverse` says."""
    blocks = torch.split(values_BE, list(dims), dim=1)
    taken = [block.index_select(0, rows.to(block.device)) for block, rows in zip(blocks, inverse, strict=True)]
    return torch.cat(taken, dim=1)


def bag_configs(specs: Sequence[TableSpec]) -> list[EmbeddingBagConfig]:
    """Logical tables as TorchRec describes them: its own models read this."""
    pooling = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}
    return [EmbeddingBagConfig(**_facts(spec), pooling=pooling[spec.pooling]) for spec in specs]


def table_configs(specs: Sequence[TableSpec]) -> list[EmbeddingConfig]:
    """The same where nothing is pooled."""
    return [EmbeddingConfig(**_facts(spec)) for spec in specs]


def _facts(spec: TableSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "num_embeddings": spec.num_embeddings,
        "embedding_dim": spec.embedding_dim,
        "feature_names": list(spec.feature_names),
        "init_fn": spec.init_fn,
    }
