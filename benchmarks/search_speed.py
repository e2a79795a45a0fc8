"""Candidates per second on a frozen supernet against plain forward passes over validation, alone and within a study.

Run: python benchmarks/search_speed.py CONFIG.yaml --supernet RUN [--set KEY=VALUE] [--candidates 100]
RUN is `OUT/supernet` of an `embank search` of the same configuration. Three rounds, alternating; medians are printed
and written to benchmarks/results/search_speed.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median

import torch

from embank.pipelines.config.run import load_config, to_plain
from embank.pipelines.runs.evaluate import validation_score
from embank.pipelines.search.frozen import FrozenObjective, frozen_setting
from embank.pipelines.search.job import Job
from embank.pipelines.search.read import make_plan
from embank.pipelines.search.trials import run_trials
from embank.pipelines.train.interrupt import StopRequest

ROUNDS = 3
PASSES = 5


def seconds(work: Callable[[], object]) -> float:
    """Wall time."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--supernet", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "search_speed.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = load_config(args.config, overrides=args.set)
    rates: dict[str, list[float]] = {"forward passes": [], "candidates": [], "trials of a study": []}
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(to_plain(config), out=folder, space="rows", budgets=[0.5], num_trials=args.candidates)
        for number in range(ROUNDS):
            job = Job(plan=plan, budget=0.5, out=Path(folder), supernet=args.supernet, num_threads=args.threads)
            with frozen_setting(job, StopRequest()) as setting:
                assert isinstance(setting.objective, FrozenObjective)
                scorer, space = setting.objective.scorer, setting.objective.space
                shapes = [space.shapes(space.decode(space.draw(Random(k)))) for k in range(args.candidates)]
                model, data = scorer.model, config.data.path
                bare = seconds(lambda: [validation_score(model, data) for _ in range(PASSES)])  # noqa: B023
                rates["forward passes"].append(PASSES / bare)
                rates["candidates"].append(args.candidates / seconds(lambda: [scorer(s) for s in shapes]))  # noqa: B023
                trials = seconds(lambda: run_trials(job, setting, joins=number > 0))  # noqa: B023
                if number == 0:  # the study is complete after the first round
                    rates["trials of a study"].append(args.candidates / trials)
                num_rows = scorer.valid.num_rows
    found = {name: median(values) for name, values in rates.items()}
    result = {
        "config": str(args.config),
        "model": config.model["name"],
        "validation_rows": num_rows,
        "threads": args.threads,
        "per_second": found,
        "candidates_per_pass": found["candidates"] / found["forward passes"],
        "trials_per_pass": found["trials of a study"] / found["forward passes"],
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
