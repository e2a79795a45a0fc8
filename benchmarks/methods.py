"""What a training step costs by method, relative to `full`, and how fast packed tables answer.

    python benchmarks/methods.py
    python benchmarks/methods.py --part train --methods hash robe --rows 1000000 --rounds 3

Training: DLRM, 13 numeric inputs and 26 tables of Criteo's shape, dim 16, bottom 512-256-64-16, top 512-256-1, batch
4,096, Zipf ids, row-wise Adagrad on FBGEMM. Methods share `--budget` over all tables as in `embank train` (tables of
fewer than 100 ids stay plain); those whose floor is above it have their own size. Each stage of each method takes turns
with `full`, whose model stays in memory, and ratios are taken within a round. Batches lie addressed in memory, since
addresses are the loader's thread's work; what addressing takes there is measured on its own, on one thread. Work that
comes every so many steps (pruning, restarts of centroids) is measured over a 20th of a schedule of `--schedule-steps`
steps (one pass over Criteo's Kaggle log) and added to a step by its share. An alternating stage has another step on a
validation batch, with a ratio of its own.

Packed lookups: one table of 1 M ids, one thread, each method in turn with FBGEMM's int8 inference table of the plain
table's rows.

Writes benchmarks/results/methods.json; ends with status 1 and the names if a method could not be measured.
"""

import argparse
import sys
import traceback
from collections.abc import Callable
from typing import Any

import floors
import method_lookups
import method_steps
import records
import torch

from embank.compression import METHODS
from embank.tables import RowOptimizer, TableCollection

AIMS = {
    **dict.fromkeys(("hash", "compositional", "robe", "adapt", "mde", "frequency_cut", "memcom"), 1.2),
    **dict.fromkeys(("low_precision", "optembed", "deeplight", "autosrh"), 1.5),
    **dict.fromkeys(("tt_rec", "alpt", "mgqe", "dpq"), 2.5),
}
"""The most that a step may take, in steps of `full`."""


def each(methods: list[str], measure: Callable[[str], list[dict]], missing: list[str], *, part: str) -> list[dict]:
    """What `measure` says of every method; those that it fails on are named in `missing`."""
    found: list[dict] = []
    for method in methods:
        try:
            found += measure(method)
        except Exception:  # whatever it is, the other methods can be measured; the run ends with status 1
            traceback.print_exc()
            missing.append(f"{method} ({part})")
        else:
            print(f"{part}: {method} done", flush=True)
    return found


def train(args: argparse.Namespace, missing: list[str]) -> dict:
    """Training steps of all methods."""
    torch.set_num_threads(args.threads)
    drawn = method_steps.Inputs26.draw(args)
    tables = TableCollection(drawn.specs, optimizer=RowOptimizer(lr=method_steps.CONFIG.table_lr))
    full = method_steps.Trained(tables, drawn, args)
    methods = [method for method in args.methods if method != "full"]
    entries = each(methods, lambda name: method_steps.measure(name, full, drawn, args), missing, part="train")
    for entry in entries:
        entry["aim"] = AIMS.get(entry["method"])
    touched = method_steps.touched_bytes(tables, full.batches[0].sparse) / 1e6
    return {
        "full": {"gflop": full.flops() / 1e9, "touched_mb": touched},
        "stages": entries,
    }


def packed(args: argparse.Namespace, missing: list[str]) -> list[dict]:
    """Lookups of all methods' packed forms."""
    torch.set_num_threads(1)
    drawn = method_lookups.Drawn(args)
    int8 = method_lookups.rival(drawn)
    return each(args.methods, lambda name: [method_lookups.measure(name, int8, drawn, args)], missing, part="packed")


def recorded(
    report: dict[str, Any], *, rates: floors.Rates | None, packed_rates: floors.Rates | None
) -> list[records.Record]:
    """Training steps by method and stage, then packed lookups by method."""
    rounds = report["settings"]["rounds"]
    found = []
    for entry in report.get("train", {}).get("stages", []):
        found += _trained(entry, rounds=rounds, rates=rates)
    for entry in report.get("packed", []):
        found += _packed(entry, rounds=rounds, rates=packed_rates)
    return found


def _trained(entry: dict[str, Any], *, rounds: int, rates: floors.Rates | None) -> list[records.Record]:
    case = {"method": entry["method"], "stage": entry["stage"], "budget": entry["budget"] or "its own"}
    works = []
    if rates is not None:
        products = "matrix products of a step, forward and backward"
        rows = "rows: each lookup's row and gradient once, each distinct row and its state read and written once"
        works = [
            rates.work("matmul fp32", 1e9 * entry["gflop"], products),
            rates.work("copy", 1e6 * entry["touched_mb"], rows),
        ]
    addressed, plainly = entry["address_ms"], entry["full_address_ms"]
    steps = records.ranged(entry["ratio"], rounds=rounds)
    found = [
        records.record("steps of plain tables that a step takes", "", case=case, better="lower", **steps),
        records.record(
            "step",
            "ms",
            case=case,
            better="lower",
            value=entry["step_ms"],
            rounds=rounds,
            works=works,
            detail={key: entry[key] for key in ("aim", "gflop", "touched_mb", "training_bytes", "advance_s")},
        ),
        records.record("scheduled work, by step", "ms", case=case, better="lower", value=entry["scheduled_ms"]),
        records.record(
            "addresses, one thread",
            "ms",
            case=case,
            better="lower",
            peers=[records.peer("plain tables'", addressed["median"] / plainly["median"])],
            **records.ranged(addressed, rounds=rounds),
        ),
    ]
    if entry["search_ratio"] is not None:
        steps = records.ranged(entry["search_ratio"], rounds=rounds)
        name = "steps of plain tables that a validation step takes"
        found.append(records.record(name, "", case=case, better="lower", **steps))
    return found


def _packed(entry: dict[str, Any], *, rounds: int, rates: floors.Rates | None) -> list[records.Record]:
    case = {"method": entry["method"], "budget": entry["budget"] or "its own"}
    counts = "4,096 lookups: each id read and each fp32 row of the result written once"
    work = None if rates is None else rates.work("copy", 8 + 4 * method_steps.DIM, counts)
    size = entry["serving_bytes"]
    return [
        records.record(
            "rows, packed",
            "bytes",
            case=case,
            better="lower",
            value=size,
            statistic="exact",
            peers=[records.peer("FBGEMM's int8", size / entry["int8_bytes"])],
        ),
        records.record(
            "one id",
            "us",
            case=case,
            better="lower",
            peers=[records.peer("FBGEMM's int8", entry["latency_ratio"])],
            **records.ranged(entry["us_per_id"], rounds=rounds),
        ),
        records.record(
            "4,096 at once",
            "rows/s",
            case=case,
            better="higher",
            peers=[records.peer("FBGEMM's int8", entry["speed_ratio"])],
            works=[work],
            **records.ranged(entry["rows_per_s"], rounds=rounds),
        ),
    ]


TITLE = "Methods: training steps and packed lookups"
ABOUT = (
    "A step of DLRM (13 + 26 inputs, dim 16, Zipf ids, row-wise Adagrad) by method and stage, in turn with plain "
    "tables, batches ready in memory; then lookups in one packed table of dim 16 on one thread, in turn with FBGEMM's "
    "int8 inference table of the plain rows."
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["train", "packed", "all"], default="all")
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=sorted(METHODS), metavar="METHOD")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of all tables together")
    parser.add_argument("--packed-rows", type=int, default=1_000_000, help="ids of the table that is served")
    parser.add_argument("--budget", type=float, default=0.1, help="serving bytes / bytes of the plain tables")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--batches", type=int, default=16, help="that lie in memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a round, at most")
    parser.add_argument("--seconds", type=float, default=8, help="for the rounds of a stage; slow ones get fewer")
    parser.add_argument("--schedule-steps", type=int, default=8953, help="of a training, for what comes now and then")
    parser.add_argument("--threads", type=int, default=2, help="of a training step")
    parser.add_argument(
        "--clock",
        choices=sorted(method_steps.CLOCKS),
        default="wall",
        help="cpu: CPU time, on a machine that others use",
    )
    records.argument(parser)
    return parser.parse_args()


def main() -> None:
    """Measure and write."""
    args = arguments()
    run = records.begin(settings=records.settings_of(args))
    missing: list[str] = []
    report: dict[str, Any] = {"settings": vars(args)}
    if args.part in ("train", "all"):
        report["train"] = train(args, missing)
    if args.part in ("packed", "all"):
        report["packed"] = packed(args, missing)
    rates = floors.rates(args.threads) if args.clock == "wall" else None
    run.records = recorded(report, rates=rates, packed_rates=floors.rates(1))
    run.detail = {"missing": missing, "plain step": report.get("train", {}).get("full")}
    print(f"written: {records.save('methods', run, title=TITLE, about=ABOUT, out=args.out)}")
    if missing:
        sys.exit(f"not measured: {', '.join(missing)}; the errors are above")


if __name__ == "__main__":
    main()
