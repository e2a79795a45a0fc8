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

Writes benchmarks/results/methods.{json,md}; ends with status 1 and the names if a method could not be measured.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import machine
import method_lookups
import method_steps

from embank.compression import METHODS
from embank.tables import RowOptimizer, TableCollection

RESULTS = Path(__file__).with_name("results")
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
    peak = method_steps.matmul_flops_per_s(args)
    methods = [method for method in args.methods if method != "full"]
    entries = each(methods, lambda name: method_steps.measure(name, full, drawn, args), missing, part="train")
    for entry in entries:
        entry["aim"] = AIMS.get(entry["method"])
        entry["share_of_matmul"] = entry["flops_per_s"] / peak
    touched = method_steps.touched_bytes(tables, full.batches[0].sparse) / 1e6
    return {
        "matmul_flops_per_s": peak,
        "full": {"gflop": full.flops() / 1e9, "touched_mb": touched},
        "stages": entries,
    }


def packed(args: argparse.Namespace, missing: list[str]) -> list[dict]:
    """Lookups of all methods' packed forms."""
    torch.set_num_threads(1)
    drawn = method_lookups.Drawn(args)
    int8 = method_lookups.rival(drawn)
    return each(args.methods, lambda name: [method_lookups.measure(name, int8, drawn, args)], missing, part="packed")


def ranged(entry: dict | None, form: str) -> str:
    if entry is None:
        return "-"
    return f"{entry['median']:{form}} ({entry['min']:{form}}-{entry['max']:{form}})"


def training_table(report: dict) -> list[str]:
    settings, part = report["settings"], report["train"]
    lines = [
        "## Training",
        "",
        f"{settings['rows']:,} rows in 26 tables, batch {settings['batch_size']:,}, {settings['threads']} threads, "
        f"{settings['clock']} time; median "
        f"(range) of up to {settings['rounds']} rounds. A step of `full` has {part['full']['gflop']:.1f} GFLOP of "
        "matrix products and touches "
        f"{part['full']['touched_mb']:.1f} MB of rows; a large product runs at {part['matmul_flops_per_s'] / 1e9:.0f} "
        "GFLOP/s here.",
        "",
        "| method | stage | budget | step / full | aim | step, ms | scheduled work, ms per step | validation step / "
        "full | "
        "addresses, ms on one thread | those of full | GFLOP | share of matmul speed | rows touched, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in part["stages"]:
        cells = [
            f"`{entry['method']}`",
            entry["stage"],
            "its own" if entry["budget"] is None else f"{entry['budget']:g}",
            ranged(entry["ratio"], ".2f"),
            "-" if entry["aim"] is None else f"{entry['aim']:g}",
            f"{entry['step_ms']:.1f}",
            f"{entry['scheduled_ms']:.1f}",
            ranged(entry["search_ratio"], ".2f"),
            ranged(entry["address_ms"], ".1f"),
            ranged(entry["full_address_ms"], ".1f"),
            f"{entry['gflop']:.1f}",
            f"{entry['share_of_matmul']:.2f}",
            f"{entry['touched_mb']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def packed_table(report: dict) -> list[str]:
    settings = report["settings"]
    lines = [
        "## Packed lookups",
        "",
        f"One table of {settings['packed_rows']:,} ids x {method_steps.DIM}, one thread, wall time; medians (range "
        f"over {settings['rounds']} rounds). The "
        "int8 table is FBGEMM's, in the same rounds.",
        "",
        "| method | budget | bytes | one id, us | of int8's | rows/s, 4,096 at once | of int8's |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in report["packed"]:
        cells = [
            f"`{entry['method']}`",
            "its own" if entry["budget"] is None else f"{entry['budget']:g}",
            f"{entry['serving_bytes']:,}",
            ranged(entry["us_per_id"], ".1f"),
            ranged(entry["latency_ratio"], ".2f"),
            ranged(entry["rows_per_s"], ",.0f"),
            ranged(entry["speed_ratio"], ".2f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    first = report["packed"][:1]
    for entry in first:
        cells = ["FBGEMM int8", "-", f"{entry['int8_bytes']:,}", ranged(entry["int8_us_per_id"], ".1f"), "1"]
        lines.append("| " + " | ".join([*cells, ranged(entry["int8_rows_per_s"], ",.0f"), "1"]) + " |")
    return [*lines, ""]


def markdown(report: dict) -> str:
    described = report["machine"]
    lines = [
        "# Methods: training steps and packed lookups",
        "",
        f"`{report['command']}`; {described['cpu']}, {described['cores']} cores, {described['memory_gib']} GiB, load "
        f"{described['load_at_start']:.1f} at the start and {described['load_at_end']:.1f} at the end.",
        "",
    ]
    if "train" in report:
        lines += training_table(report)
    if "packed" in report:
        lines += packed_table(report)
    if report["missing"]:
        lines += [f"Not measured, since they failed: {', '.join(report['missing'])}.", ""]
    return "\n".join(lines)


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
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Measure and write."""
    args = arguments()
    described = machine.describe()
    missing: list[str] = []
    report: dict = {
        "command": " ".join(["python", "benchmarks/methods.py", *sys.argv[1:]]),
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        "machine": described,
    }
    if args.part in ("train", "all"):
        report["train"] = train(args, missing)
    if args.part in ("packed", "all"):
        report["packed"] = packed(args, missing)
    described["load_at_end"] = os.getloadavg()[0]
    report["missing"] = missing
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "methods.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "methods.md").write_text(markdown(report))
    print(markdown(report))
    if missing:
        sys.exit(f"not measured: {', '.join(missing)}; the errors are above")


if __name__ == "__main__":
    main()
