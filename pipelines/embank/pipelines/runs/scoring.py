"""The tables and the network of a bundle over plain tensors: how its rows are scored."""

from collections.abc import Mapping

import torch
from torch import Tensor

from embank.pipelines.runs.open import load_model, schema_of
from embank.tables import Bundle, PackedCollection
from embank.tables.collections.paths import summed
from embank.tables.serving.table import looked_up


class Scorer:
    """Scores encoded rows; several threads may use one.

    Args:
        bundle: of a training run.

    Attributes:
        features: categorical features in the schema's order.
        multivalued: those whose rows have bags.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._model = load_model(bundle)
        schema = schema_of(bundle)
        self.features = list(schema.feature_names)
        self.multivalued = [field.name for field in schema.categorical if field.multivalued]

    @torch.no_grad()
    def logits(self, dense_BI: Tensor, ids: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Tensor:
        """Logits [B].

        Args:
            dense_BI: numbers.
            ids: of each feature, int64; [B] where it has no lengths.
            lengths: of the bags of multi-valued features, [B].
        """
        tables = self._model.tables
        assert isinstance(tables, PackedCollection)
        outputs = []
        for spec, pack in tables.packed_tables():
            for feature in spec.feature_names:
                rows_ND = looked_up(pack, ids[feature], spec=spec)
                outputs.append(
                    summed(rows_ND, lengths[feature], pooling=spec.pooling) if feature in lengths else rows_ND
                )
        values_BE = torch.cat(outputs, dim=1)
        sizes = [self._model.num_embedding_columns, self._model.num_first_order_columns]
        logits_B: Tensor = self._model.network(dense_BI, *torch.split(values_BE, sizes, dim=1)).float()
        return logits_B

    @torch.no_grad()
    def embed(self, feature: str, ids_N: Tensor) -> Tensor:
        """Rows [N, D] of a feature."""
        tables = self._model.tables
        assert isinstance(tables, PackedCollection)
        spec, pack = next(both for both in tables.packed_tables() if feature in both[0].feature_names)
        return looked_up(pack, ids_N, spec=spec)
