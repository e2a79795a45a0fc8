"""Packed lookups by method against FBGEMM's int8 inference table: the part of benchmarks/methods.py that serves.

The rival holds the same logical rows in 8 bits per number with a scale and an offset per row, as TorchRec's quantized
collections do; its rows and its call are FBGEMM's own.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from fbgemm_gpu.tbe.utils.quantize import quantize_embs
from method_steps import ALPHA, DIM, OPTIONS, spread, zipf_counts
from torch import Tensor

from embank.compression import Packed, build_table
from embank.pipelines.data.synth.zipf import Zipf
from embank.tables import BudgetError, method_class

BATCH = 4096
SINGLES = 256


class Int8Table:
    """FBGEMM's inference table of 8-bit rows on a CPU."""

    def __init__(self, rows_RD: Tensor) -> None:
        num_rows, dim = rows_RD.shape
        self.tbe = IntNBitTableBatchedEmbeddingBagsCodegen(
            [("table", num_rows, dim, SparseType.INT8, EmbeddingLocation.HOST)],
            device="cpu",
            output_dtype=SparseType.FP32,
        )
        self.tbe.initialize_weights()
        self.tbe.assign_embedding_weights([quantize_embs(rows_RD, SparseType.INT8)])
        self.offsets = {size: torch.arange(size + 1, dtype=torch.int32) for size in (1, BATCH)}

    def lookup(self, ids_N: Tensor) -> Tensor:
        """Rows [N, D] for ids int32 [N], which is what it wants; N is 1 or `BATCH`."""
        rows_ND: Tensor = self.tbe(ids_N, self.offsets[ids_N.numel()])
        return rows_ND

    def nbytes(self) -> int:
        """Bytes of its rows."""
        return sum(t.numel() * t.element_size() for pair in self.tbe.split_embedding_weights() for t in pair)


class Drawn:
    """Ids to look up: singles one by one, and a batch."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.num_ids = args.packed_rows
        self.counts = zipf_counts(self.num_ids, args.batch_size * args.schedule_steps)
        generator = torch.Generator().manual_seed(1)
        uniform = torch.rand(BATCH + SINGLES, generator=generator, dtype=torch.float64).numpy()
        ids = torch.from_numpy(Zipf(self.num_ids, ALPHA).ranks(uniform))
        self.singles, self.batch = list(ids[BATCH:].split(1)), ids[:BATCH]
        self.singles64, self.batch64 = [one.long() for one in self.singles], self.batch.long()


@torch.inference_mode()
def rival(drawn: Drawn) -> Int8Table:
    """The int8 table of a plain table's rows, checked against them. They are scaled to a spread of 1: the scale of a
    row is held in 16 bits, too coarse for untrained rows.

    Raises:
        AssertionError: it does not hold them to half a step of its grid.
    """
    rows_RD = build_table(method="full", num_embeddings=drawn.num_ids, embedding_dim=DIM).collection.weights()["table"]
    rows_RD = rows_RD / rows_RD.std()
    table, wanted_ND = Int8Table(rows_RD), rows_RD[drawn.batch64]
    span_N1 = wanted_ND.amax(1, keepdim=True) - wanted_ND.amin(1, keepdim=True)
    assert bool(((table.lookup(drawn.batch) - wanted_ND).abs() <= span_N1 * (0.5 / 255 + 2e-3)).all())
    return table


@torch.inference_mode()
def measure(method: str, int8: Int8Table, drawn: Drawn, args: argparse.Namespace) -> dict:
    """Latency and speed of a method's packed form, in turn with the int8 table."""
    packed, budget = _packed(method, drawn, args.budget)
    table = packed.table
    single, batch = [], []
    for _ in range(args.rounds + 1):
        single.append((_median_s(table.lookup, drawn.singles64), _median_s(int8.lookup, drawn.singles)))
        batch.append((_median_s(table.lookup, [drawn.batch64] * 9), _median_s(int8.lookup, [drawn.batch] * 9)))
    return {
        "method": method,
        "budget": budget,
        "serving_bytes": packed.nbytes(),
        "int8_bytes": int8.nbytes(),
        "us_per_id": spread([1e6 * ours for ours, _ in single[1:]]),
        "int8_us_per_id": spread([1e6 * theirs for _, theirs in single[1:]]),
        "latency_ratio": spread([ours / theirs for ours, theirs in single[1:]]),
        "rows_per_s": spread([BATCH / ours for ours, _ in batch[1:]]),
        "int8_rows_per_s": spread([BATCH / theirs for _, theirs in batch[1:]]),
        "speed_ratio": spread([theirs / ours for ours, theirs in batch[1:]]),
    }


def _packed(method: str, drawn: Drawn, budget: float) -> tuple[Packed, float | None]:
    """A method's packed table within the budget, or of its own size, and the budget."""
    shape = {
        "num_embeddings": drawn.num_ids,
        "embedding_dim": DIM,
        "counts": drawn.counts,
        "options": OPTIONS.get(method),
    }
    with torch.inference_mode(False):
        if method_class(method).traits.allocation.takes_budget:
            try:
                return build_table(method=method, budget=budget, **shape).pack(), budget
            except BudgetError:
                pass
        return build_table(method=method, **shape).pack(), None


def _median_s(lookup: Callable[[Tensor], Tensor], ids: list[Tensor]) -> float:
    times = []
    for ids_N in ids:
        begun = time.perf_counter()
        lookup(ids_N)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)
