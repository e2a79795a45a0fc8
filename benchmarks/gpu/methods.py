"""Every method on a GPU against the host: what it computes in its stages, and its packed form.

    # A CUDA machine; a minute and a half
    python benchmarks/gpu/methods.py
    # Any machine: that the script runs
    python benchmarks/gpu/methods.py --device cpu --methods full dpq

Needs torch, TorchRec and FBGEMM's package; its build for the CPU will do, for rows are those of the `torch` backend.

Each method is trained on the CPU and on the device, with its rows there and with them in host memory: ten updates a
stage with row-wise Adagrad, in bags (TableCollection, all stages, packed at the end) and in sequences
(SequenceCollection, first stage). All that comes out is compared: values of every step, rows, what a search has found,
packed rows and bytes. The host draws random numbers for both. Methods have rows in fp32, and plain tables in bf16, too.

A difference is that of two numbers over 1 + the host's. Where a method chooses, by a threshold, the nearest code or
rounding, sums in another order may tip a choice that is as good as even: the share of such numbers is told beside the
largest difference. The run fails where more than MOST_TIPPED of a method's numbers differ by more than TOLERANCE.

Writes benchmarks/results/gpu_methods.json, a run for each device.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embank.tables import RowTier

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import records
from tests.contracts.all_stages import in_a_sequence, through_all_stages
from tests.contracts.host_draws import HostDraws
from tests.contracts.specs import NAMES

STEPS = 10
TOLERANCE = 1e-4
MOST_TIPPED = 0.01
KINDS: dict[str, Callable[..., list[Tensor]]] = {"bags": through_all_stages, "sequences": in_a_sequence}
TIERS = ("device", "host")


def compared(here: list[Tensor], there: list[Tensor]) -> dict[str, Any]:
    """How far two lists of tensors are apart.

    Raises:
        ValueError: they have other shapes, or hold what is no number.
    """
    if (mine := [t.shape for t in here]) != (theirs := [t.shape for t in there]):
        raise ValueError(f"tensors of {theirs} instead of {mine}")
    a, b = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (here, there))
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("some numbers are not finite")
    apart = (a - b).abs() / (1 + a.abs())
    return {
        "numbers": apart.numel(),
        "largest": float(apart.max()),
        "tipped": float((apart > TOLERANCE).double().mean()),
    }


def outcome(method: str, kind: str, tier: str, *, device: str, dtype: str) -> dict[str, Any]:
    """A method on the host and on the device."""
    told = {"method": method, "kind": kind, "tier": tier, "dtype": dtype}
    try:
        with HostDraws():
            here = KINDS[kind](method, RowTier(dtype=dtype), steps=STEPS)
            there = KINDS[kind](method, RowTier(name=tier, device=device, dtype=dtype), steps=STEPS)
        return told | compared(here, there)
    except Exception:
        return told | {"error": traceback.format_exc()}


def recorded(outcomes: list[dict[str, Any]]) -> list[records.Record]:
    """Largest difference and share of tipped numbers by method, kind and tier."""
    found = []
    for told in outcomes:
        if "error" in told:
            continue
        case = {"method": told["method"], "rows": told["dtype"]}
        where = f"{told['kind']}, {told['tier']}"
        for key, name in (("largest", "largest difference"), ("tipped", "share tipped")):
            fields = {"case": case, "better": "lower", "statistic": "once"}
            found.append(records.record(f"{where}: {name}", "", value=told[key], **fields))
    return found


TITLE = "Every method on a GPU against the host"
ABOUT = (
    f"{STEPS} updates a stage from the same initial values, on the CPU and with rows on the device and in host memory; "
    f"the largest difference of two numbers, over 1 + the host's, and the share that differs by more than {TOLERANCE}."
)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", nargs="+", default=NAMES, choices=NAMES, metavar="METHOD", help="(default: all)")
    records.argument(parser)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Compares and writes."""
    args = arguments(words)
    RowTier(device=args.device).refuse_missing_device()
    device = torch.cuda.get_device_name(args.device) if args.device != "cpu" else "cpu"
    run = records.begin(device=device, settings={**records.settings_of(args), "steps": STEPS, "tolerance": TOLERANCE})
    begun, outcomes = time.perf_counter(), []
    # Rows in bf16 can be had by methods that put none of theirs on a grid: the plain one stands for them.
    methods = [(method, "fp32") for method in args.methods] + [("full", "bf16")] * ("full" in args.methods)
    for method, dtype in methods:
        for kind in KINDS:
            for tier in TIERS:
                told = outcome(method, kind, tier, device=args.device, dtype=dtype)
                outcomes.append(told)
                figures = (
                    f"{told['largest']:.1e}, tipped {told['tipped']:.1e}" if "error" not in told else told["error"]
                )
                print(f"{method}, {dtype}, {kind}, {tier}: {figures}", flush=True)
    run.records = recorded(outcomes)
    run.detail = {"outcomes": outcomes, "wall_s": time.perf_counter() - begun}

    def others(earlier: records.Run) -> records.Run | None:
        return None if earlier.machine.device == device else earlier

    print(f"written: {records.save('gpu_methods', run, title=TITLE, about=ABOUT, out=args.out, keep=others)}")
    bad = [told for told in outcomes if not told.get("tipped", 1) <= MOST_TIPPED]
    if bad:
        raise SystemExit("differ: " + "; ".join(f"{t['method']}, {t['dtype']}, {t['kind']}, {t['tier']}" for t in bad))


if __name__ == "__main__":
    main()
