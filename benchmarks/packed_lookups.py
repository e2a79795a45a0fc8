"""Packed lookups of 26 tables by plain tensors against FBGEMM's quantised tables: its module and its raw operator.

Run: python benchmarks/packed_lookups.py [--rows 100000] [--rounds 25]
Writes benchmarks/results/packed_lookups.json. All contestants take turns in one process on one thread; figures
are the least of the rounds, of CPU time. FBGEMM's rows hold fp32, fp16, int8 or int4 with a scale and an offset each;
ours are those of a bundle on disk, mapped: of int8 and int4 four rows share a scale, of their rowwise forms each has
its own. `matrix` is our lookup of ids in one tensor, as FBGEMM takes them; `kjt` is our collection with a
KeyedJaggedTensor; `alone` is what our tables take when each is asked for its rows by itself. The last two have turns of
their own, after the others, which many ids give five times as many rounds: they wait for the memory, which others on a
machine use, too.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import floors
import records
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from fbgemm_gpu.tbe.utils.quantize import quantize_embs
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.tables import TableCollection, TableSpec, load_bundle, save_bundle
from embank.tables.collections.stages import advance
from embank.tables.serving.lookups import Lookups
from embank.tables.serving.table import looked_up

NUM_TABLES, DIM, BUDGET = 26, 16, 0.25
METHODS = ("full", "hash", "frequency_cut", "uniform_dim", "mde", "mgqe", "dpq", "deeplight", "optembed")
RIVALS = {"fp32": SparseType.FP32, "fp16": SparseType.FP16, "int8": SparseType.INT8, "int4": SparseType.INT4}
CODECS = ("fp32", "fp16", "int8", "int4", "int8_rowwise", "int4_rowwise")


class Fbgemm:
    """FBGEMM's inference tables on a CPU, by their module and by the operator beneath it."""

    def __init__(self, kind: SparseType, num_rows: int) -> None:
        self.module = IntNBitTableBatchedEmbeddingBagsCodegen(
            [(f"t{k}", num_rows, DIM, kind, EmbeddingLocation.HOST) for k in range(NUM_TABLES)],
            device="cpu",
            output_dtype=SparseType.FP32,
        )
        self.module.initialize_weights()
        rows = torch.randn(num_rows, DIM) * 0.05
        self.module.assign_embedding_weights([quantize_embs(rows, kind) for _ in range(NUM_TABLES)])

    def by_module(self, ids_N: Tensor, offsets: Tensor) -> Tensor:
        """[B, 26 D]."""
        return self.module(ids_N, offsets)

    def by_operator(self, ids_N: Tensor, offsets: Tensor) -> Tensor:
        """The same without the module's checks."""
        m = self.module
        return torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function(
            m.weights_host, m.weights_uvm, m.weights_placements, m.weights_offsets, m.weights_tys, m.D_offsets,
            m.total_D, m.max_int2_D, m.max_int4_D, m.max_int8_D, m.max_float16_D, m.max_float32_D, ids_N, offsets,
            int(m.pooling_mode), None, m.output_dtype, None, None, m.row_alignment,
            m.max_float8_D, m.fp8_exponent_bits, m.fp8_exponent_bias,
        )  # fmt: skip


def specs_of(method: str, num_rows: int) -> list[TableSpec]:
    """26 tables of a method at a quarter of the bytes."""
    counts = torch.arange(num_rows, 0, -1) if method == "mgqe" else None
    return [
        TableSpec(
            name=f"t{k:02}",
            num_embeddings=num_rows,
            embedding_dim=DIM,
            feature_names=[f"f{k}"],
            method=method,
            budget=None if method == "full" else BUDGET,
            counts=counts,
        )
        for k in range(NUM_TABLES)
    ]


def least(contestants: dict[str, Callable[[], Tensor]], *, rounds: int, repeats: int) -> dict[str, float]:
    """Microseconds of CPU time of a call, the least of the rounds; in turns, in an order that is drawn for each round:
    who follows another with the same memory finds it in the caches."""
    found = dict.fromkeys(contestants, float("inf"))
    drawn = random.Random(0)
    for _ in range(rounds):
        for name in drawn.sample(list(contestants), len(contestants)):
            call = contestants[name]
            call()
            begun = time.thread_time()
            for _ in range(repeats):
                call()
            found[name] = min(found[name], (time.thread_time() - begun) / repeats * 1e6)
    return found


def main() -> None:
    """All methods, codecs and batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    records.argument(parser)
    args = parser.parse_args()
    run = records.begin(settings=records.settings_of(args))
    torch.set_num_threads(1)
    lines: list[dict[str, Any]] = []
    rivals = {codec: Fbgemm(kind, args.rows) for codec, kind in RIVALS.items()}
    generator = torch.Generator().manual_seed(0)
    for method in args.methods:
        tables = TableCollection(specs_of(method, args.rows), backend="torch")
        if method == "optembed":
            tables = advance(tables)  # to the rows and columns that are kept
        for codec in CODECS:
            rival = rivals[codec.removesuffix("_rowwise")]
            with tempfile.TemporaryDirectory() as folder:
                save_bundle(Path(folder) / "b", tables, codec=codec)
                packed = load_bundle(Path(folder) / "b")
                lookups = Lookups(packed)
                for batch_size in (1, 4096):
                    ids_FB = torch.randint(args.rows, (NUM_TABLES, batch_size), generator=generator)
                    ids = {f"f{k}": ids_FB[k] for k in range(NUM_TABLES)}
                    flat, offsets = ids_FB.flatten().int(), torch.arange(ids_FB.numel() + 1, dtype=torch.int32)
                    kjt = KeyedJaggedTensor(
                        keys=list(ids), values=ids_FB.flatten(), lengths=torch.ones(ids_FB.numel(), dtype=torch.int64)
                    )
                    contestants: dict[str, Callable[[], Tensor]] = {
                        "embank": lambda lookups=lookups, ids=ids, b=batch_size: lookups(ids, {}, num_rows=b)[0],
                        "matrix": lambda lookups=lookups, ids=ids_FB, b=batch_size: lookups(ids, {}, num_rows=b)[0],
                        "kjt": lambda packed=packed, kjt=kjt: packed(kjt).values(),
                        "alone": lambda packed=packed, ids=ids: torch.cat(
                            [looked_up(p, ids[s.feature_names[0]], spec=s) for s, p in packed.packed_tables()], dim=1
                        ),
                        "module": lambda r=rival, f=flat, o=offsets: r.by_module(f, o),
                        "operator": lambda r=rival, f=flat, o=offsets: r.by_operator(f, o),
                    }
                    rounds, repeats = (args.rounds, 100) if batch_size == 1 else (5 * args.rounds, 2)
                    slow = {name: contestants.pop(name) for name in ("kjt", "alone")}
                    with torch.inference_mode():
                        figures = least(contestants, rounds=rounds, repeats=repeats)
                        figures |= least(slow, rounds=args.rounds, repeats=repeats)
                    line = {"method": method, "codec": codec, "batch": batch_size, "bytes": packed.nbytes(), **figures}
                    line["rounds"] = rounds
                    lines.append(line)
                    print(line, flush=True)
    run.records = recorded(lines, rates=floors.rates(1), slow_rounds=args.rounds)
    records.save("packed_lookups", run, title=TITLE, about=ABOUT, out=args.out)


def recorded(lines: list[dict[str, Any]], *, rates: floors.Rates | None, slow_rounds: int) -> list[records.Record]:
    """Our lookup against FBGEMM's by its module and its operator; the other ways to call ours."""
    found = []
    for line in lines:
        case = {"method": line["method"], "codec": line["codec"], "rows": line["batch"], "bytes": line["bytes"]}
        common: dict[str, Any] = {"unit": "us", "case": case, "better": "lower", "statistic": "best"}
        often, seldom = {"rounds": line["rounds"], **common}, {"rounds": slow_rounds, **common}
        peers = [records.peer(f"FBGEMM's {name}", line["embank"] / line[name]) for name in ("module", "operator")]
        matrix_peers = [
            records.peer(f"FBGEMM's {name}", line["matrix"] / line[name]) for name in ("module", "operator")
        ]
        works = []
        if rates is not None:
            nbytes = line["batch"] * NUM_TABLES * 4 * DIM
            works.append(rates.work("gather", nbytes, "the rows that are given out, fp32, once each"))
        found.append(records.record("call", value=line["embank"], peers=peers, works=works, **often))
        found.append(records.record("of ids in one tensor", value=line["matrix"], peers=matrix_peers, **often))
        found.append(records.record("with a KeyedJaggedTensor", value=line["kjt"], **seldom))
        found.append(records.record("table by table", value=line["alone"], **seldom))
    return found


TITLE = "Packed lookups of 26 tables"
ABOUT = (
    "Rows of dim 16 from 26 tables of a bundle on disk, mapped, at a quarter of the plain bytes: by plain tensors, "
    "with a KeyedJaggedTensor, and by each table alone, against FBGEMM's quantised tables of all rows in the same "
    "codec; one thread, CPU time."
)

if __name__ == "__main__":
    main()
