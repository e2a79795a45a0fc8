"""The loader of prepared folders: CPU time and wall time of a batch, in file order, shuffled, and with addresses.

    python benchmarks/loader.py [--rows 2000000] [--batch-size 4096] [--rounds 5]

A generated log of Criteo's shape, 26 ids and 13 numbers a row. A round reads one epoch in this process, without threads
(`prefetch=0`), so that CPU time is the loader's alone; then with them, as `embank train` reads. The floor is a batch's
tensors, 8 bytes an id, 4 a number and a label, copied once in memory. Writes benchmarks/results/loader.json.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import floors
import records
import torch

from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.synth import synth_prepared
from embank.tables import TableCollection, TableSpec

DIM = 16
WAYS: dict[str, dict[str, Any]] = {
    "file order": {"shuffle": False, "prefetch": 0},
    "shuffled": {"shuffle": True, "prefetch": 0},
    "shuffled, addressed": {"shuffle": True, "prefetch": 0, "addressed": True},
    "as embank train": {"shuffle": True, "addressed": True},
}


def prepared(args: argparse.Namespace) -> Path:
    """The folder, made once for a number of rows."""
    folder: Path = args.work / f"loader-{args.rows}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        synth_prepared(folder, total_rows=1_000_000, train=args.rows, valid=1, test=1)
    return folder


def tables_of(folder: Path) -> TableCollection:
    """Plain tables of the folder's features: what addresses are made for."""
    schema = Loader(folder, "train", batch_size=1, shuffle=False).schema
    return TableCollection(
        [
            TableSpec(name=f.name, num_embeddings=f.num_embeddings, embedding_dim=DIM, feature_names=[f.name])
            for f in schema.categorical
        ]
    )


def epoch(loader: Loader, number: int) -> dict[str, float]:
    """Seconds of a batch, on the wall clock and of all this process's threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = sum(1 for _ in loader.epoch(number))
    return {"wall": (time.perf_counter() - wall) / count, "cpu": (time.process_time() - cpu) / count}


def measured(folder: Path, args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Rounds of every way, in turn; the first, which does not count, reads the files into memory."""
    address: Callable[..., Any] = tables_of(folder).address
    loaders = {}
    for name, options in WAYS.items():
        own = {key: value for key, value in options.items() if key != "addressed"}
        added = {"address": address} if "addressed" in options else {}
        loaders[name] = Loader(folder, "train", batch_size=args.batch_size, **own, **added)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in loaders}
    for number in range(args.rounds + 1):
        for name, loader in loaders.items():
            seconds = epoch(loader, number)
            if number:
                found[name].append(seconds)
    return found


def recorded(
    found: Mapping[str, list[dict[str, float]]], *, batch_bytes: int, rates: floors.Rates
) -> list[records.Record]:
    """CPU and wall time of a batch by way."""
    work = rates.work("copy", 2 * batch_bytes, "a batch's ids, numbers and labels, read and written once")
    made = []
    for name, rounds in found.items():
        for clock in ("cpu", "wall"):
            figures = records.figures([seconds[clock] for seconds in rounds], scale=1e3)
            fields = {"case": {"way": name}, "better": "lower", "works": [work]}
            made.append(records.record(f"batch, {clock}", "ms", **fields, **figures))
    return made


TITLE = "The loader of prepared folders"
ABOUT = (
    "A batch of 26 ids and 13 numbers a row from the files of a prepared folder, whole epochs, without threads and as "
    "embank train reads."
)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/loader"))
    records.argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = records.begin(settings=records.settings_of(args))
    found = measured(prepared(args), args)
    batch_bytes = args.batch_size * (26 * 8 + 13 * 4 + 4)
    run.records = recorded(found, batch_bytes=batch_bytes, rates=floors.rates(1))
    records.save("loader", run, title=TITLE, about=ABOUT, out=args.out)
    for record in run.records:
        print(record.case["way"], record.metric, f"{record.value:.2f} ms, {record.floors[0].times:.1f} of the floor")


if __name__ == "__main__":
    main()
