"""How the rows of a bundle are scored, wherever they come from: a prepared folder, raw files, Python or HTTP."""

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from embank.ctr_models import Inputs, Network
from embank.ctr_models.layers.mlp import frozen
from embank.pipelines.runs.score import autocast
from embank.pipelines.runs.trained import network_of, precision_of, schema_of
from embank.tables.collections.ids import check_ids, int64_ids
from embank.tables.errors import CheckpointError, ConfigError, DataError
from embank.tables.serving.bundle import Bundle
from embank.tables.serving.lookups import Lookups
from embank.tables.serving.packed import PackedCollection
from embank.tables.serving.table import looked_up
from embank.tables.wording import nearest_or_all

BLOCK_ROWS = 2048
"""Rows that go through the network at once: what its layers make of them stays in a core's cache."""

_MULTIPLE = 8
"""Matrix products treat the last few rows of a batch in another way if they do not fill a group of so many."""


class Scorer:
    """The tables and the network of a training run's bundle over plain tensors. Several threads may use one.

    A row's score does not depend on the rows that are scored with it, so that a batch may be cut anywhere: blocks are
    filled up with empty rows to what matrix products handle alike. Three things may change the last bits (by 1e-6 at
    most in an fp32 logit): a row that is scored alone, which is not filled up, since that would take half as long
    again; tables whose method combines each distinct row of a batch once (`tt_rec`); and Intel's processors, on which
    MKL multiplies few rows otherwise than many.

    Args:
        bundle: of a training run.
        tables: its tables in another form; None takes them as they are.

    Attributes:
        features: categorical features in the schema's order.
        multivalued: those whose rows hold bags of ids.
        num_dense: numeric inputs.
        lookups: the tables, in two parts: embeddings and first-order weights.

    Raises:
        ConfigError: the bundle has tables only.
        CheckpointError: it is not one of a training run, or damaged.

    Example: `Scorer(Bundle("runs/deepfm/bundle")).logits(dense_BI, {"user": ids_B, "genres": ids_N}, {"genres":
    lengths_B})`
    """

    def __init__(self, bundle: Bundle, *, tables: PackedCollection | None = None) -> None:
        network, schema = network_of(bundle), schema_of(bundle)
        self.features = list(schema.feature_names)
        self.multivalued = [field.name for field in schema.categorical if field.multivalued]
        fields, inputs = network.inputs.num_fields, network.inputs
        self._parts = [fields if network.embeddings else 0, fields if network.first_order else 0]
        self.num_dense = inputs.num_dense
        self._network, self._precision = frozen(network), precision_of(bundle)
        self._few = _recorded(self._network, inputs) if self._precision == "fp32" else {}
        self._collection = bundle.tables() if tables is None else tables
        dims = self._collection.dims
        if len(dims) != sum(self._parts) or sum(dims[: self._parts[0]]) != (inputs.width if self._parts[0] else 0):
            raise CheckpointError(
                f"the tables of bundle '{bundle.path}' give {len(dims)} features of {sum(dims)} columns, and its "
                f"network reads {sum(self._parts)}; export it again from its run"
            )
        self.lookups = self._lookups(self.multivalued)
        self._embeddings = {
            feature: (spec, pack)
            for spec, pack in list(self._collection.packed_tables())[: self._parts[0]]
            for feature in spec.feature_names
        }

    def _lookups(self, bags: list[str]) -> Lookups:
        return Lookups(self._collection, parts=self._parts, bags=bags)

    def nbytes(self) -> int:
        """Serving bytes of the tables."""
        return self._collection.nbytes()

    @torch.inference_mode()
    def logits(self, dense_BI: Tensor, ids: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Tensor:
        """Logits [B], fp32.

        Args:
            dense_BI: numeric inputs after their transforms, fp32; I may be 0.
            ids: integers for each feature: one for each row, [B]; where the feature has lengths, those of its bags one
                after the other, [N].
            lengths: ids in each row, integers [B], of features that hold bags.

        Raises:
            IdRangeError: an id outside its table.
            DataError: a feature is missing, or a tensor has another shape or type.
        """
        if dense_BI.dim() != 2 or dense_BI.shape[1] != self.num_dense:
            raise DataError(
                f"the numeric inputs have shape {list(dense_BI.shape)}; the model reads {self.num_dense} numbers of "
                f"each row: give [rows, {self.num_dense}]"
            )
        num_rows = dense_BI.shape[0]
        padded = num_rows if num_rows == 1 else -(-num_rows // _MULTIPLE) * _MULTIPLE
        dense_PI = F.pad(dense_BI.float(), (0, 0, 0, padded - num_rows)) if padded > num_rows else dense_BI.float()
        bags = [feature for feature in self.features if feature in lengths] if lengths else []
        lookups = self.lookups if bags == self.lookups.bags else self._lookups(bags)
        blocks = lookups.blocks(ids, lengths, num_rows=num_rows, padded=padded, block_rows=BLOCK_ROWS)
        if padded <= BLOCK_ROWS:
            return self.score(dense_PI, *next(blocks))[:num_rows]
        denses = torch.split(dense_PI, BLOCK_ROWS)
        scored = [self.score(dense, *parts) for dense, parts in zip(denses, blocks, strict=True)]
        return torch.cat(scored)[:num_rows]

    def score(self, dense_BI: Tensor, embeddings_BE: Tensor, first_order_BF: Tensor) -> Tensor:
        """Logits [B] of a block of rows and of what the tables gave for them (`lookups`): the network alone."""
        network = self._few.get(dense_BI.shape[0], self._network)
        with autocast(self._precision, device="cpu"):
            logits_B: Tensor = network(dense_BI, embeddings_BE, first_order_BF)
        return logits_B.float()

    @torch.inference_mode()
    def embed(self, feature: str, ids_N: Tensor) -> Tensor:
        """Rows [N, D] of ids of a feature, before pooling.

        Raises:
            ConfigError: there is no such feature, or the model has no embeddings.
            IdRangeError: an id outside its table.
        """
        if not self._embeddings:
            raise ConfigError("this model has a weight for each id and no embeddings; take a bundle of another model")
        if feature not in self._embeddings:
            raise ConfigError(
                f"there is no feature '{feature}'; {nearest_or_all(feature, self._embeddings, label='there are')}"
            )
        spec, pack = self._embeddings[feature]
        ids_N = int64_ids(ids_N)
        check_ids(ids_N, table=spec.name, feature=feature, num_embeddings=spec.num_embeddings)
        return looked_up(pack, ids_N, spec=spec)


def _recorded(network: Network, inputs: Inputs) -> dict[int, Callable[..., Tensor]]:
    """The operations of a network for the smallest batches, recorded by number of rows: without Python between them,
    which takes two thirds of the time of a row."""
    widths = (
        inputs.num_dense,
        inputs.width if network.embeddings else 0,
        inputs.num_fields if network.first_order else 0,
    )

    def forward(*inputs: Tensor) -> Tensor:  # of a module, more than `forward` would be recorded
        logits_B: Tensor = network(*inputs)
        return logits_B

    recorded: dict[int, Callable[..., Tensor]] = {}
    with torch.no_grad(), warnings.catch_warnings():
        # That it holds for one shape alone is meant, and what is to take its place, torch.export, starts for seconds.
        warnings.simplefilter("ignore")
        for num_rows in (1, _MULTIPLE):
            example = tuple(torch.zeros(num_rows, width) for width in widths)
            recorded[num_rows] = torch.jit.trace(forward, example, check_trace=False)  # type: ignore[no-untyped-call]
    return recorded
