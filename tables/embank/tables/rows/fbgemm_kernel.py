"""One FBGEMM module and the memory that it works on.

FBGEMM wants widths that are multiples of 4, so odd widths are padded with zeros, which stay zero, and sliced off.
"""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn

from embank.tables.rows.base import padded_dim, rowwise_scale
from embank.tables.rows.fbgemm_memory import placement
from embank.tables.rows.held_bytes import tensors_of
from embank.tables.rows.native.passes import HeldTable
from embank.tables.rows.space import RowSpace
from embank.tables.rows.store_spec import StoreSpec

OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
}


class FbgemmKernel(nn.Module):
    """One FBGEMM module: tables that can share a call, their rows and optimizer state in two flat tensors.

    Args:
        spec: tables that are each looked up once, or one that is looked up any number of times.
        space: where they are held.
        label: of their files.
    """

    def __init__(self, spec: StoreSpec, *, space: RowSpace, label: str) -> None:
        super().__init__()
        self.shards, lookups = tuple(spec.shards), spec.lookups
        seed, optimizer = spec.seed, spec.optimizer
        self.num_merged = max(1, len(lookups)) if len(self.shards) == 1 else 1
        lookups = lookups[:: self.num_merged]
        self.widths = [padded_dim(s.num_columns) for s in self.shards]
        self.numbers = {shard.table.name: number for number, shard in enumerate(self.shards)}
        # Where each table begins in the flat tensor.
        sizes = [s.num_rows * width for s, width in zip(self.shards, self.widths, strict=True)]
        self.firsts = list(itertools.accumulate(sizes, initial=0))
        self.is_projected = any(shard.table.projection is not None for shard in self.shards)
        # Lookups whose rows a backward pass has updated, to be projected.
        self.changed: list[tuple[Tensor, Tensor]] = []
        self.counting = torch.zeros(1, dtype=torch.int64)  # 0, 1, 2, ...: the offsets of bags with one id each
        self.rowwise = optimizer.name == "rowwise_adagrad"
        self.scale = rowwise_scale(self.shards[0].num_columns) if self.rowwise else 1.0
        self.place = placement(space.tier)
        self.has_state = optimizer.name != "sgd"
        self.flat: dict[str, Tensor] = {}  # in host memory; on a GPU, FBGEMM holds rows itself
        if not space.tier.on_gpu:
            self._hold(space, label=label, seed=seed)
        tbe = SplitTableBatchedEmbeddingBagsCodegen(
            [
                (s.num_rows, width, self.place.location, self.place.compute)
                for s, width in zip(self.shards, self.widths, strict=True)
            ],
            feature_table_map=list(lookups),
            optimizer=OPTIMIZERS[optimizer.name],
            learning_rate=optimizer.lr * self.scale,
            eps=optimizer.eps * self.scale,
            pooling_mode=PoolingMode.SUM,
            bounds_check_mode=BoundsCheckMode.NONE,
            weights_precision=SparseType(space.tier.dtype),
            output_dtype=SparseType.FP32,
            preallocated_host_buffers=self.flat or None,
            **({"device": torch.device(space.tier.device)} if space.tier.on_gpu else {}),
            **({} if self.place.cache_load_factor is None else {"cache_load_factor": self.place.cache_load_factor}),
        )
        # In a tuple, so that it is no submodule: rows are no parameters of a model, which an optimizer, a change of
        # dtype or DistributedDataParallel would take for their own.
        self.inner = (tbe,)
        for whole in self.tbe.split_embedding_weights() if space.tier.on_gpu else ():
            whole.zero_()  # padding too
        for shard, view in zip(self.shards, self.weights().values(), strict=True):
            if space.tier.on_gpu:
                shard.write_initial(view, seed=seed)
            shard.scatter_initial(view, seed=seed)
        self.lookups = [table for table in lookups for _ in range(self.num_merged)]
        self.pieces = [
            piece
            for t in lookups
            for piece in (self.shards[t].num_columns, self.widths[t] - self.shards[t].num_columns)
        ]

    @property
    def tbe(self) -> SplitTableBatchedEmbeddingBagsCodegen:
        """FBGEMM's module."""
        return self.inner[0]

    def _hold(self, space: RowSpace, *, label: str, seed: int) -> None:
        """Rows with their initial values, and their optimizer state, as one flat tensor each."""
        num_weights = self.firsts[-1]
        self.flat["weights"] = space.hold(f"{label}.weights", numel=num_weights, chunks=self._initial_values(seed))
        if self.has_state:
            size = sum(s.num_rows for s in self.shards) if self.rowwise else num_weights
            self.flat["momentum1"] = space.hold(f"{label}.momentum1", numel=size)

    def _initial_values(self, seed: int) -> Iterator[Tensor]:
        """Rows of one table after the other, padded."""
        for shard, width in zip(self.shards, self.widths, strict=True):
            for values in shard.initial_chunks(seed=seed):
                yield values if width == shard.num_columns else F.pad(values, (0, width - shard.num_columns))

    def parts(self, indices: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        """Rows of each lookup, without padding."""
        out = self._look_up(indices, offsets)
        if self.num_merged > 1:
            return out.view(self.num_merged, -1, self.widths[0])[:, :, : self.pieces[0]].unbind(0)
        return torch.split(out, self.pieces, dim=1)[::2]

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        if self.num_merged > 1:
            return self._merged(indices, offsets)
        out = self._look_up(indices, offsets)
        if not any(self.pieces[1::2]):
            return out
        return torch.cat(torch.split(out, self.pieces, dim=1)[::2], dim=1)

    def _merged(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """Lookups of one table side by side. Where every bag holds one id, these are taken sample by sample, so that
        the rows come out in their order: putting ids in order costs less than rows, and rows are moved twice."""
        if not self._has_one_id_each(offsets) or self.widths[0] != self.pieces[0]:
            return torch.cat(self.parts(indices, offsets), dim=1)
        by_sample = indices.view(self.num_merged, -1).T.reshape(-1)
        out = self._look_up(by_sample, offsets)
        return out.view(-1, self.num_merged * self.widths[0])

    def _has_one_id_each(self, offsets: Tensor) -> bool:
        """Whether every bag holds one id. Offsets on a GPU are not looked at: it would have to be waited for."""
        if offsets.device.type != "cpu":
            return False
        if self.counting.numel() < offsets.numel():
            self.counting = torch.arange(offsets.numel())
        return torch.equal(offsets, self.counting[: offsets.numel()])

    def _look_up(self, indices: Tensor, offsets: Tensor) -> Tensor:
        device = self.tbe.current_device
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():  # FBGEMM's lookups are there for autograd only
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            rows: Tensor = self.tbe(indices.to(device, non_blocking=True), offsets.to(device, non_blocking=True))
        if self.is_projected and rows.requires_grad:
            rows.register_hook(partial(self._note_change, indices, offsets))  # type: ignore[no-untyped-call]
        return rows

    def _note_change(self, indices: Tensor, offsets: Tensor, _grad: Tensor) -> None:
        self.changed.append((indices, offsets))

    def empty_cache(self) -> None:
        """Brings rows out of FBGEMM's cache, if there is one, to where they are read and written."""
        if self.place.location == EmbeddingLocation.MANAGED_CACHING:
            self.tbe.flush()
            self.tbe.reset_cache_states()

    def forget_cache(self) -> None:
        """Has rows read again that FBGEMM's cache may hold as they were."""
        if self.place.location == EmbeddingLocation.MANAGED_CACHING:
            self.tbe.reset_cache_states()

    def weights(self) -> dict[str, Tensor]:
        self.empty_cache()
        views = self.tbe.split_embedding_weights()
        return {s.table.name: view[:, : s.num_columns] for s, view in zip(self.shards, views, strict=True)}

    def weight(self, table: str) -> Tensor:
        """The rows of one table, as `weights` has them, in a time that does not grow with the number of tables."""
        if not self.flat:
            return self.weights()[table]
        number = self.numbers[table]
        shard, width, first = self.shards[number], self.widths[number], self.firsts[number]
        rows = self.flat["weights"][first : first + shard.num_rows * width].view(shard.num_rows, width)
        return rows[:, : shard.num_columns]

    def held_tables(self) -> list[HeldTable]:
        """Where the rows and the state of each table lie in host memory."""
        found, row = [], 0
        for shard, width, first in zip(self.shards, self.widths, self.firsts, strict=False):
            state = self.flat["momentum1"][row if self.rowwise else first :] if self.has_state else None
            found.append(
                HeldTable(
                    name=shard.table.name,
                    weights=self.flat["weights"][first:],
                    state=state,
                    num_rows=shard.num_rows,
                    pitch=width,
                    columns=shard.num_columns,
                )
            )
            row += shard.num_rows
        return found

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        names = [shard.table.name for shard in self.shards]
        if not self.has_state:
            return {name: {} for name in names}
        views = [view for (view, *_) in self.tbe.split_optimizer_states()]
        if not self.rowwise:
            views = [view[:, : s.num_columns] for s, view in zip(self.shards, views, strict=True)]
        return {name: {"sum": view} for name, view in zip(names, views, strict=True)}

    def held_tensors(self) -> list[Tensor]:
        """Everything that is held for rows and their optimizer state: FBGEMM's caches, their maps and its constants
        included."""
        return [*self.flat.values(), *tensors_of(self.tbe)]
