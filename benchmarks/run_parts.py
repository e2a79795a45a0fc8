"""`embank train` taken apart: its start, its training and its evaluation, on a quiet machine and beside other work.

    python benchmarks/run_parts.py [--rows 1000000] [--rounds 5] [--threads 2] [--busy 2]

DLRM on a generated log of Criteo's shape: 13 + 26 inputs, dim 16, bottom 512-256-64-16, top 512-256-1, batch 4,096.
A round trains once for each setting, quiet and beside `--busy` processes that do nothing but count, each run in a
process of its own, and starts one that does nothing but `import torch`. Ratios are taken within a round.

start       from the start of the process to the first step, less what `import torch` takes from there
training    rows/s of the whole epoch, as `result.json` has it: with the loader, and what is decided in the first steps
evaluation  rows/s of the validation split at the epoch's end, with its loader and its metrics

Writes benchmarks/results/run_parts.json. The quiet figures mean something on a quiet machine only.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import records
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
import speed

from embank.pipelines.data.synth import synth_prepared

BATCH_SIZE = 4096
SETTINGS = {
    "eager, fp32": ["train.compile=false", "train.precision=fp32"],
    "compiled, bf16": ["train.compile=true", "train.precision=bf16"],
}
IMPORT = "import sys, time; begun = float(sys.argv[1]); import torch; print(time.monotonic() - begun)"
TIMED = """
import json, sys, time
begun, told = float(sys.argv.pop(1)), sys.argv.pop(1)
import embank.pipelines.cli.waiting  # first of all, as `embank` does: it sees whether others use the cores,
import embank.pipelines.cli.app  # and this tells OpenMP how to wait, before torch is imported
from embank.pipelines.train import checkpoints
from embank.pipelines.train.step import Stepper

times, step, evaluate = {}, Stepper.__call__, checkpoints.evaluate

def timed_step(self, batch, **others):
    times.setdefault("first step", time.monotonic() - begun)
    return step(self, batch, **others)

def timed_evaluation(*args, **others):
    at = time.monotonic()
    found = evaluate(*args, **others)
    times["evaluation"] = time.monotonic() - at
    return found

Stepper.__call__, checkpoints.evaluate = timed_step, timed_evaluation
from embank.pipelines.cli import main
try:
    main()
finally:
    json.dump(times, open(told, "w"))
"""
"""`embank`, which writes down when it begins its first step and how long its last evaluation takes."""


def prepared(args: argparse.Namespace) -> Path:
    """The folder, made once for a number of rows."""
    folder: Path = args.work / f"log-{args.rows}-{args.steps}-{args.valid}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        synth_prepared(folder, total_rows=args.rows, train=BATCH_SIZE * args.steps, valid=args.valid, test=BATCH_SIZE)
    return folder


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that take all the time they are given."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


def output_of(*command: Any) -> str:
    """What a process says; its errors end the benchmark."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command[:3]))} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def import_seconds() -> float:
    """From the start of a process to where it has imported torch."""
    return float(output_of(sys.executable, "-c", IMPORT, time.monotonic()))


def trained(data: Path, name: str, args: argparse.Namespace) -> dict[str, float]:
    """The figures of one run."""
    config = {
        "data": {"path": str(data.resolve()), "batch_size": BATCH_SIZE},
        "model": {"name": "dlrm", "bottom": speed.BOTTOM, "top": speed.TOP},
        "tables": {"dim": speed.DIM},
        "train": {"epochs": 1, "num_threads": args.threads},
    }
    path, told, run = args.work / "config.yaml", args.work / "times.json", args.work / "run"
    path.write_text(yaml.safe_dump(config))
    sets = [word for setting in SETTINGS[name] for word in ("--set", setting)]
    shutil.rmtree(run, ignore_errors=True)
    begun = time.monotonic()
    output_of(sys.executable, "-c", TIMED, begun, told, "train", path, "--out", run, *sets)
    times, result = json.loads(told.read_text()), json.loads((run / "result.json").read_text())
    return {
        "start": times["first step"],
        "training": result["samples_per_s"],
        "evaluation": args.valid / times["evaluation"],
    }


def measured(data: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rounds of all settings, quiet and busy, in an order that turns; the first, which compiles and reads the files
    into memory, does not count."""
    ways = [(name, count) for name in SETTINGS for count in dict.fromkeys((0, args.busy))]
    rounds = []
    for number in range(args.rounds + 1):
        found: dict[str, Any] = {"import torch": import_seconds()}
        turn = number % len(ways)
        for name, count in ways[turn:] + ways[:turn]:
            with busy(count):
                found[key(name, count)] = trained(data, name, args)
            print(f"round {number}, {key(name, count)}: {found[key(name, count)]}", flush=True)
        rounds.append(found)
    return rounds[1:]


def key(name: str, count: int) -> str:
    """A setting beside other work."""
    return f"{name}; beside {count}" if count else name


def recorded(rounds: list[dict[str, Any]], *, num_busy: int) -> list[records.Record]:
    """Each figure of each setting, against what it is to be compared with."""
    found = []
    for name in SETTINGS:
        quiet = [one[name] for one in rounds]
        case = {"settings": name, "busy processes beside": 0}
        starts = [one[name]["start"] - one["import torch"] for one in rounds]
        found.append(
            records.record("start beyond import torch", "s", case=case, better="lower", **records.figures(starts))
        )
        over = records.peer("training", [one["evaluation"] / one["training"] for one in quiet])
        for metric, peers in (("training", []), ("evaluation", [over])):
            figures = records.figures([one[metric] for one in quiet])
            found.append(records.record(metric, "rows/s", case=case, better="higher", peers=peers, **figures))
        if num_busy:
            beside = [one[key(name, num_busy)]["training"] for one in rounds]
            ratios = [mine / other["training"] for mine, other in zip(beside, quiet, strict=True)]
            fields = {"case": case | {"busy processes beside": num_busy}, "better": "higher"}
            peers = [records.peer("the quiet machine", ratios)]
            found.append(records.record("training", "rows/s", peers=peers, **fields, **records.figures(beside)))
    return found


TITLE = "A run of embank train, taken apart"
ABOUT = (
    "From the start of the process to the first step, the epoch, and the evaluation at its end: DLRM, 13 + 26 inputs, "
    "dim 16, batch 4,096, with the loader; on a quiet machine, and beside processes that only count."
)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of all tables")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--valid", type=int, default=400_000, help="rows that are evaluated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/run_parts"))
    records.argument(parser)
    args = parser.parse_args()
    run = records.begin(settings=records.settings_of(args))
    rounds = measured(prepared(args), args)
    run.records, run.detail = recorded(rounds, num_busy=args.busy), rounds
    print(f"written: {records.save('run_parts', run, title=TITLE, about=ABOUT, out=args.out)}")


if __name__ == "__main__":
    main()
