"""What the two peers' DLRM loops share: arguments, shapes, the clock (pure Python, used in both environments)."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

DIM = 16
BOTTOM = [512, 256, 64]  # hidden layers; the last one has DIM outputs
TOP = [512, 256]  # hidden layers; the last one has 1 output


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of embank prepare")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=100, help="timed steps")
    parser.add_argument("--warmup", type=int, default=10, help="steps before the clock starts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def clock(step: Callable, batches: Iterable, *, warmup: int, batch_size: int) -> dict:
    """Runs `step` on every batch; seconds of the steps after the first `warmup`, data already in memory."""
    seconds: list[float] = []
    last = time.perf_counter()
    for batch in batches:
        step(batch)
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    timed = seconds[warmup:]
    return {
        "samples_per_s": batch_size * len(timed) / sum(timed),
        "steps": len(timed),
        "step_ms_median": 1e3 * statistics.median(timed),
        "step_ms_p10": 1e3 * sorted(timed)[len(timed) // 10],
    }


def emit(result: dict, out: Path | None) -> None:
    text = json.dumps(result, indent=1)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


def need_rows(rows: int, args: argparse.Namespace) -> int:
    """Rows that the run reads; a folder with fewer is refused, since repeated batches would find warm rows."""
    wanted = args.batch_size * (args.steps + args.warmup)
    if rows < wanted:
        raise SystemExit(
            f"{args.data} has {rows:,} training rows; {wanted:,} are needed. Give fewer --steps or more rows."
        )
    return wanted
