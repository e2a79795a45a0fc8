"""The ids of a batch by feature, as a collection of tables takes them: checked, and named as TorchRec names them."""

from collections.abc import Sequence

from torch import Tensor
from torch.fx import Proxy
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

from embank.tables.collections.ids import check_ids, int64_ids, missing_ids
from embank.tables.errors import DataError
from embank.tables.specs import TableSpec


class Bags:
    """The bags of a batch by feature.

    Args:
        features: ids by feature, unweighted; keys that no table uses are ignored.

    Raises:
        DataError: no KeyedJaggedTensor, there are no features, the ids carry weights or are not integers, its
            features have other numbers of rows, or the lengths of bags do not match the ids.
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
        if features.weights_or_none() is not None:
            raise DataError("the input carries per-id weights; tables pool by sum or mean, without weights")
        if features.variable_stride_per_key():
            raise DataError("the input has another batch size for each feature; give every feature one bag per row")
        self.values, self.batch_size = int64_ids(features.values()), features.stride()
        self.lengths = self._bag_lengths(features.lengths())
        self.starts = self._starts()

    def _bag_lengths(self, lengths: Tensor) -> Tensor:
        """The bags' lengths [F, B] by feature. Unchecked ones would have the kernels read memory that is not the
        batch's."""
        num_features, batch_size = len(self.places), self.batch_size
        if lengths.numel() != num_features * batch_size:
            raise DataError(
                f"the batch has {lengths.numel():,} lengths for {num_features} features of {batch_size:,} rows; give "
                f"{num_features * batch_size:,}, one for each feature and row"
            )
        lengths_FB = lengths.view(num_features, batch_size)
        if lengths.numel() and int(lengths.min()) < 0:
            place, row = (lengths_FB < 0).nonzero()[0].tolist()
            raise DataError(
                f"feature '{list(self.places)[place]}' has a bag of length {int(lengths_FB[place, row])} in row {row}; "
                "a length is the number of ids in a bag, 0 or more"
            )
        return lengths_FB

    def _starts(self) -> list[int]:
        """Where each feature's ids start among all, and where the last one's end."""
        starts = [0]
        for feature, size in zip(self.places, self.lengths.sum(1).tolist(), strict=True):
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
        check_ids(ids_N, table=spec.name, feature=feature, num_embeddings=spec.num_embeddings)
        return ids_N, self.lengths[place]


def bag_configs(specs: Sequence[TableSpec]) -> list[EmbeddingBagConfig]:
    """Logical tables as TorchRec describes them: its own models read this."""
    pooling = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}
    return [
        EmbeddingBagConfig(
            name=spec.name,
            num_embeddings=spec.num_embeddings,
            embedding_dim=spec.embedding_dim,
            feature_names=list(spec.feature_names),
            pooling=pooling[spec.pooling],
        )
        for spec in specs
    ]
