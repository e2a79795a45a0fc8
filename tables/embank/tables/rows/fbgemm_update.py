"""FBGEMM's row-wise Adagrad on a CPU, a few tables at a time and on several threads.

The kernel that FBGEMM's own backward pass calls works on one thread, and puts the lookups of all its tables in order at
once, which outgrows the caches: 26 tables of 40,000 rows take three times as long in one call as 13 in another. Tables
do not touch each other, so calls by groups of them give the same rows to the bit, in any order.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor

_MOST_TABLES = 8
"""Of a call: fewer cost more calls."""


class GroupedUpdate:
    """Lookups in one of FBGEMM's modules whose backward pass updates rows group by group.

    Args:
        tbe: rows in host memory, row-wise Adagrad, sums of bags; each table looked up once.
    """

    def __init__(self, tbe: SplitTableBatchedEmbeddingBagsCodegen) -> None:
        self.tbe = tbe
        self.num_tables = len(tbe.feature_table_map)
        self.asks = torch.zeros(0, requires_grad=True)  # for a backward pass
        self.unweighted = torch.zeros(0)

    def __call__(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """Pooled rows side by side, as the module gives them."""
        rows: Tensor = _Lookup.apply(self.asks, self, indices, offsets)  # type: ignore[no-untyped-call]
        return rows

    def update(self, grad: Tensor, indices: Tensor, offsets: Tensor) -> None:
        """Updates the rows of all lookups by the gradient of what was looked up."""
        grad, groups = grad.contiguous(), list(self._groups())
        num_bags = (offsets.numel() - 1) // self.num_tables
        bounds = offsets[:: max(1, num_bags)].tolist() if num_bags else [0] * (self.num_tables + 1)

        def one(group: tuple[int, int]) -> None:
            start, stop = group
            own = offsets[start * num_bags : stop * num_bags + 1] - bounds[start]
            self._update(grad, indices[bounds[start] : bounds[stop]], own, tables=slice(start, stop))

        if len(groups) == 1 or torch.get_num_threads() == 1:
            for group in groups:
                one(group)
        else:
            list(_threads(torch.get_num_threads()).map(one, groups))

    def _groups(self) -> Iterator[tuple[int, int]]:
        """The first table of each and the one behind its last: of a number that all threads share alike."""
        threads = torch.get_num_threads()
        num_groups = -(-self.num_tables // _MOST_TABLES)
        num_groups = min(self.num_tables, -(-num_groups // threads) * threads)
        ends = [self.num_tables * number // num_groups for number in range(num_groups + 1)]
        yield from zip(ends, ends[1:], strict=False)

    def _update(self, grad: Tensor, indices: Tensor, offsets: Tensor, *, tables: slice) -> None:
        tbe, args = self.tbe, self.tbe.optimizer_args
        ends = slice(tables.start, tables.stop + 1)
        torch.ops.fbgemm.split_embedding_backward_codegen_rowwise_adagrad_cpu(
            grad,
            tbe.weights_host.detach(),
            tbe.weights_placements[tables],
            tbe.weights_offsets[tables],
            tbe.D_offsets[ends],
            tbe.max_D,
            tbe.hash_size_cumsum[ends],
            tbe.total_hash_size_bits,
            indices,
            offsets,
            int(tbe.pooling_mode),
            self.unweighted,
            False,
            tbe.momentum1_host,
            tbe.momentum1_placements[tables],
            tbe.momentum1_offsets[tables],
            tbe.learning_rate_tensor,
            args.eps,
        )


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(_asks: Tensor, update: GroupedUpdate, indices: Tensor, offsets: Tensor) -> Tensor:
        rows: Tensor = update.tbe(indices, offsets)
        return rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, GroupedUpdate, Tensor, Tensor], output: Tensor) -> None:
        _, ctx.update, ctx.indices, ctx.offsets = inputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, None]:
        ctx.update.update(grads[0], ctx.indices, ctx.offsets)
        return None, None, None, None


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads that live as long as the process; they sleep between updates."""
    return ThreadPoolExecutor(count, thread_name_prefix="embank-update")
