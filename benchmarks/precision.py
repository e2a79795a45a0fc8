"""What bf16 and compiled networks change in AUC and log loss: the same trainings in eager fp32, seed by seed.

    python benchmarks/precision.py --data movielens=runs/data/movielens-100k anime=runs/data/anime \\
        criteo_sample=runs/data/criteo-sample criteo_synth=runs/data/criteo-synth

A task is a configuration of benchmarks/tasks, NAME_train.yaml, on a prepared folder. Every seed trains each task in
each of `WAYS`; all else is equal. Differences are paired by seed; the deviation of fp32 over seeds stands beside them,
for what is smaller than that is noise. Goes on where it was stopped. Worth the time where the CPU has instructions for
bf16: elsewhere its products are imitated. Writes benchmarks/results/precision.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import records

TASKS = Path(__file__).parent / "tasks"
FP32 = "fp32"
WAYS: dict[str, dict[str, str]] = {
    FP32: {"train.precision": "fp32", "train.compile": "false"},
    "bf16": {"train.precision": "bf16", "train.compile": "false"},
    "compiled, bf16": {"train.precision": "bf16", "train.compile": "true"},
}
METRICS = {"auc": "AUC", "logloss": "log loss"}


def train(task: str, way: str, seed: int, *, data: Path, args: argparse.Namespace) -> dict[str, float]:
    """Test figures of a run, which is made unless it is there."""
    folder = args.work / f"{task}-{way.replace(', ', '-')}-seed{seed}"
    if not (folder / "result.json").is_file():
        settings = {"data.path": data, "train.seed": seed, **WAYS[way], **dict(s.split("=", 1) for s in args.set)}
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        config = TASKS / f"{task}_train.yaml"
        resume = ["--resume"] if folder.is_dir() else []
        command = [sys.executable, "-m", "embank", "train", config, "--out", folder, *words, *resume]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\nfailed with {done.returncode}:\n{done.stderr[-3000:]}")
        print(f"{folder.name} done", flush=True)
    result: dict[str, float] = json.loads((folder / "result.json").read_text())
    return {name: result[name] for name in METRICS}


def recorded(found: dict[tuple[str, str, int], dict[str, float]], *, seeds: Sequence[int]) -> list[records.Record]:
    """Each metric by task and way, over seeds, and its paired difference from fp32."""
    made = []
    for task, way in dict.fromkeys((task, way) for task, way, _ in found):
        for name, metric in METRICS.items():
            values = [found[task, way, seed][name] for seed in seeds]
            peers = []
            if way != FP32:
                less = [found[task, way, seed][name] - found[task, FP32, seed][name] for seed in seeds]
                peers.append(records.peer(FP32, _mean(less), kind="difference"))
            case = {"task": task, "network": way}
            better = "higher" if name == "auc" else "lower"
            figures = _mean(values)
            made.append(records.record(metric, "", case=case, better=better, peers=peers, **figures))
    return made


def _mean(values: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return records.deviating(statistics.mean(values), deviation, rounds=len(values))


TITLE = "Precision of training"
ABOUT = (
    "Test AUC and log loss of the same trainings in bf16 and in fp32, mean and deviation over seeds, paired by seed."
)


def main() -> None:
    """Trains what is missing, compares, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="TASK=FOLDER", help="prepared folders")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/precision"), help="folder of runs, kept for going on")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed to embank train")
    records.argument(parser)
    args = parser.parse_args()
    folders = {task: Path(folder) for task, folder in (word.split("=", 1) for word in args.data)}
    run = records.begin(settings={"tasks": list(folders), "seeds": args.seeds, "set": args.set})
    jobs = list(product(folders, WAYS, args.seeds))
    args.work.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as threads:
        figures = threads.map(lambda job: train(*job, data=folders[job[0]], args=args), jobs)
        found = dict(zip(jobs, figures, strict=True))
    run.records = recorded(found, seeds=args.seeds)
    print(f"written: {records.save('precision', run, title=TITLE, about=ABOUT, out=args.out)}")


if __name__ == "__main__":
    main()
