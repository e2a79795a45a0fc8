"""Packed tables with plain tensors in and out, which exporters can follow: a KeyedJaggedTensor can't be, since where a
feature's ids begin in it depends on data."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.export import Dim

from embank.tables.collections.paths import summed
from embank.tables.collections.traced import OneStep
from embank.tables.serving.packed import PackedCollection

Inputs = tuple[dict[str, Tensor], dict[str, Tensor]]
Shapes = tuple[dict[str, dict[int, Dim]], dict[str, dict[int, Dim]]]


class PlainCollection(OneStep):
    """The tables of a packed collection, one tensor of ids for each feature.

    Ids out of range are refused by nobody: check them before (`PackedCollection` does), or be sure of them.

    Args:
        collection: the tables; shared, not copied.
        single: features with exactly one id in each row of a batch; they need no lengths.

    Raises:
        ConfigError: a table that pools by weights.

    Attributes:
        features: what is looked up, in the order of the tables.
        single: see above.
        keys, dims: of the columns of the output.

    Example:
        >>> import torch
        >>> from embank.tables import PlainCollection, TableCollection, TableSpec, pack_collection
        >>> tables = TableCollection([TableSpec(name="item", num_embeddings=10, embedding_dim=4, feature_names=["i"])])
        >>> plain = PlainCollection(pack_collection(tables))
        >>> ids, lengths = {"i": torch.tensor([3, 5, 9])}, {"i": torch.tensor([1, 0, 2])}
        >>> plain(ids, lengths).shape  # a row of the batch for each bag
        torch.Size([3, 4])
        >>> program = torch.export.export(plain, plain.example(), dynamic_shapes=plain.dynamic_shapes())
        >>> torch.equal(program.module()(ids, lengths), plain(ids, lengths))
        True
    """

    def __init__(self, collection: PackedCollection, *, single: tuple[str, ...] = ()) -> None:
        super().__init__()
        collection.refuse_weighted("a collection over plain tensors (targets onnx and pt2)")
        specs = collection.specs
        self.tables = nn.ModuleList(pack for _, pack in collection.packed_tables())
        self.uses = [
            (table, feature, spec.pooling) for table, spec in enumerate(specs) for feature in spec.feature_names
        ]
        self.features = list(dict.fromkeys(feature for _, feature, _ in self.uses))
        self.single = tuple(single)
        self.keys, self.dims = list(collection.keys), list(collection.dims)
        self.eval()

    def forward(self, ids: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Tensor:
        """Pooled logical rows side by side, [B, sum D].

        Args:
            ids: for each feature int64 [N], bag after bag.
            lengths: for each feature that is not single the bags' lengths, integers [B]; they sum up to N.
        """
        step: Tensor | None = self.step_of(ids, lengths)
        if step is not None:
            return step
        outputs = []
        for table, feature, pooling in self.uses:
            rows_ND = self.tables[table](ids[feature])
            single = feature in self.single
            outputs.append(rows_ND if single else summed(rows_ND, lengths[feature], pooling=pooling))
        return torch.cat(outputs, dim=1)

    def example(self, *, batch_size: int = 3) -> Inputs:
        """Inputs of the right shape: every bag has two ids, or one where a feature is single."""
        lengths = {feature: torch.full((batch_size,), 2) for feature in self.features if feature not in self.single}
        sizes = {feature: 2 * batch_size if feature in lengths else batch_size for feature in self.features}
        return {feature: torch.zeros(size, dtype=torch.int64) for feature, size in sizes.items()}, lengths

    def dynamic_shapes(self) -> Shapes:
        """What may differ from batch to batch: its size, and of each feature with bags the number of ids."""
        batch, inputs = Dim("batch", min=1), self.example()
        sizes = {feature: batch if feature in self.single else Dim(f"ids_{i}") for i, feature in enumerate(inputs[0])}
        return {feature: {0: sizes[feature]} for feature in inputs[0]}, {feature: {0: batch} for feature in inputs[1]}
