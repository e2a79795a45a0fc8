"""Scoring by a bundle over plain tensors: opening it, one row, large batches, and the network's own share.

Run: python benchmarks/scoring.py [--rows 1000000] [--large-rows 16000000] [--folder runs/scoring]
26 features and 13 numbers, plain tables of dim 16, one thread. Times are CPU time of the thread, the least of several
rounds: other work on the machine adds nothing but what it takes from the caches. The network's share is that of the
network alone, on the tensors that the tables gave. Opening is measured in a process of its own, for a bundle of plain
tables as large as `--large-rows` says, with its files in the page cache: seconds of CPU beyond `import torch`, bytes
read by system calls, and what is in memory of the tables' file. Writes benchmarks/results/scoring.json.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import floors
import records
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from embank.ctr_models import MODELS, Inputs, build_network
from embank.pipelines.data.schema import CategoricalField, NumericField, Schema
from embank.pipelines.runs.scoring import BLOCK_ROWS, Scorer
from embank.tables import Bundle, TableCollection, TableSpec, save_bundle

NUM_FEATURES, NUM_DENSE, DIM = 26, 13, 16
SIZES = (1, 8, 512, 4096, 8192, 65_536)
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "dlrm 512-256-64, 512-256": ("dlrm", {}),
    "dlrm 64, 64-64": ("dlrm", {"bottom": [64], "top": [64, 64]}),
    "deepfm 400-400-400": ("deepfm", {}),
    "deepfm 64-64": ("deepfm", {"hidden_units": [64, 64]}),
}
OPENING = """
import json, sys, time
import torch
import numpy
def told(name, key):
    return next(int(line.split()[1]) for line in open(f"/proc/self/{name}") if line.startswith(key))
before, read, anonymous = time.process_time(), told("io", "rchar"), told("status", "RssAnon")
from embank.pipelines.runs.scoring import Scorer
from embank.tables import Bundle
imported = time.process_time()
scorer = Scorer(Bundle(sys.argv[1], verify="small"))
opened = time.process_time()
row = {name: torch.tensor([1]) for name in scorer.features}
scorer.logits(torch.zeros(1, scorer.num_dense), row, {})
scored = time.process_time()
mapped, lines = 0, open("/proc/self/smaps").read().splitlines()
for number, line in enumerate(lines):
    if "tables.safetensors" in line:
        mapped += next(int(one.split()[1]) for one in lines[number:] if one.startswith("Rss:"))
print(json.dumps({
    "import_s": imported - before, "open_s": opened - imported, "first_row_s": scored - opened,
    "read_bytes": told("io", "rchar") - read, "tables_in_memory_bytes": 1024 * mapped,
    "anonymous_bytes": 1024 * (told("status", "RssAnon") - anonymous),
    "imports": [name for name in ("torchrec", "fbgemm_gpu", "polars", "pyarrow", "optuna") if name in sys.modules],
}))
"""


def made(folder: Path, *, model: str, hyper: Mapping[str, Any], num_rows: int) -> Path:
    """A bundle as a training run writes it, of a model that was not trained."""
    names, size = [f"C{i + 1}" for i in range(NUM_FEATURES)], num_rows // NUM_FEATURES
    dims = dict.fromkeys(names, DIM)
    if MODELS[model].first_order:
        dims |= {f"first_order/{name}": 1 for name in names}
    tables = TableCollection(
        [
            TableSpec(name=name, num_embeddings=size, embedding_dim=dim, feature_names=[name.rpartition("/")[2]])
            for name, dim in dims.items()
        ]
    )
    inputs = Inputs(names=tuple(names), dims=(DIM,) * NUM_FEATURES, num_dense=NUM_DENSE)
    torch.manual_seed(0)
    network = build_network(model, inputs=inputs, **hyper)
    schema = Schema(
        source="csv",
        label="label",
        categorical=tuple(
            CategoricalField(name=name, num_embeddings=size, multivalued=False, min_count=1) for name in names
        ),
        numeric=tuple(NumericField(name=f"I{i + 1}", transform="none", mean=None, std=None) for i in range(NUM_DENSE)),
        group=None,
        splits=(),
        row_group_rows=65_536,
        fingerprint="0" * 64,
    )
    config = {"model": {"name": model, **hyper}, "train": {"precision": "fp32"}}
    facts = {"config": config, "inputs": asdict(inputs), "schema": schema.to_json(), "step": 1}
    save_bundle(folder, tables, network=network.state_dict(), facts=facts)
    return folder


def batch(scorer: Scorer, num_rows: int, *, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Random numbers and ids, one of each feature in a row."""
    generator = torch.Generator().manual_seed(num_rows)
    ids = {name: torch.randint(0, size, (num_rows,), generator=generator) for name in scorer.features}
    return torch.randn(num_rows, NUM_DENSE, generator=generator), ids


def least_us(work: Callable[..., object], *given: Any, rounds: int, calls: int) -> float:
    """Microseconds of CPU of a call, the least of some rounds."""
    times = []
    for _ in range(rounds + 1):  # the first one warms up
        began = time.thread_time()
        for _ in range(calls):
            work(*given)
        times.append((time.thread_time() - began) / calls)
    return min(times[1:]) * 1e6


def measured(folder: Path, *, num_rows: int, rounds: int) -> list[dict[str, Any]]:
    """Microseconds by network and number of rows."""
    results = []
    for name, (model, hyper) in NETWORKS.items():
        scorer = Scorer(Bundle(made(folder / name.replace(" ", ""), model=model, hyper=hyper, num_rows=num_rows)))
        for size in SIZES:
            dense_BI, ids = batch(scorer, size, size=num_rows // NUM_FEATURES)
            calls = max(1, 1000 // size)
            whole = least_us(scorer.logits, dense_BI, ids, {}, rounds=rounds, calls=calls)
            blocks = [taken(scorer, dense_BI[i : i + BLOCK_ROWS], ids, i) for i in range(0, size, BLOCK_ROWS)]
            alone = least_us(network_alone, scorer, blocks, rounds=rounds, calls=calls)
            works = {"network_flop": flops(scorer, blocks), "row_bytes": size * NUM_FEATURES * DIM * 4}
            results.append({"network": name, "rows": size, "us": whole, "us_network": alone, **works})
            print(f"{name:26} {size:7,} rows {whole:12,.0f} us, {alone:10,.0f} of them the network", flush=True)
    return results


def taken(scorer: Scorer, dense_BI: Tensor, ids: Mapping[str, Tensor], start: int) -> list[Tensor]:
    """What the network is given for a block of rows."""
    own = {name: ids_B[start : start + len(dense_BI)] for name, ids_B in ids.items()}
    return [dense_BI, *scorer.lookups(own, {}, num_rows=len(dense_BI))]


@torch.inference_mode()
def flops(scorer: Scorer, blocks: list[list[Tensor]]) -> int:
    """Of the network's matrix products, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        network_alone(scorer, blocks)
    return counter.get_total_flops()


@torch.inference_mode()
def network_alone(scorer: Scorer, blocks: list[list[Tensor]]) -> list[Tensor]:
    """The network on what the tables gave."""
    return [scorer.score(*block) for block in blocks]


def opening(bundle: Path, *, rounds: int) -> dict[str, Any]:
    """The quickest of some openings."""
    found = []
    for _ in range(rounds):
        command = [sys.executable, "-c", OPENING, str(bundle)]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return min(found, key=lambda one: one["import_s"] + one["open_s"] + one["first_row_s"])


def main() -> None:
    """Measures, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of all tables together")
    parser.add_argument("--large-rows", type=int, default=16_000_000, help="of the bundle that is opened")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="for the bundles, which are removed")
    records.argument(parser)
    arguments = parser.parse_args()
    run = records.begin(settings=records.settings_of(arguments))
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="scoring-", dir=arguments.folder))
    try:
        results = measured(work, num_rows=arguments.rows, rounds=arguments.rounds)
        large = made(work / "large", model="dlrm", hyper={}, num_rows=arguments.large_rows)
        opened = opening(large, rounds=arguments.rounds) | {"bundle_bytes": Bundle(large, verify=False).nbytes}
    finally:
        shutil.rmtree(work)
    print(opened)
    run.records = recorded(opened, results, rounds=arguments.rounds, rates=floors.rates(1))
    run.detail = {"imports": opened["imports"]}
    records.save("scoring", run, title=TITLE, about=ABOUT, out=arguments.out)


def recorded(
    opened: Mapping[str, Any], results: list[dict[str, Any]], *, rounds: int | None, rates: floors.Rates | None
) -> list[records.Record]:
    """Opening, then calls by network and number of rows."""
    case: records.Case = {"part": "opening", "bundle bytes": opened["bundle_bytes"]}
    seconds = opened["import_s"] + opened["open_s"] + opened["first_row_s"]
    best: dict[str, Any] = {"better": "lower", "statistic": "best", "rounds": rounds}
    found = [
        records.record("CPU beyond import torch, to the first score", "s", case=case, value=seconds, **best),
        records.record("of it imports", "s", case=case, value=opened["import_s"], **best),
        records.record("bytes read", "bytes", case=case, value=opened["read_bytes"], **best),
        records.record("of the tables in memory", "bytes", case=case, value=opened["tables_in_memory_bytes"], **best),
    ]
    for one in results:
        case = {"network": one["network"], "rows": one["rows"]}
        works = []
        if rates is not None and "network_flop" in one:
            rows = "rows of the tables, once each; no ids, no result"
            products = "matrix products of the network"
            works = [rates.work("matmul fp32", one["network_flop"], products)]
            works.append(rates.work("gather", one["row_bytes"], rows))
        part = [records.peer("the network alone", one["us"] / one["us_network"])]
        found.append(records.record("call", "us", case=case, value=one["us"], peers=part, works=works, **best))
    return found


TITLE = "Scoring by a bundle"
ABOUT = (
    "Opening a bundle of plain tables, and calls for one row up to large batches: 26 features and 13 numbers, dim 16, "
    "one thread, CPU time."
)


if __name__ == "__main__":
    main()
