"""Candidates per second on a frozen supernet against plain forward passes over validation, alone and within a study.

Run: python benchmarks/search_speed.py CONFIG.yaml --supernet RUN [--set KEY=VALUE] [--candidates 100]
RUN is `OUT/supernet` of an `embank search` of the same configuration. A forward pass is lookups, network, AUC and log
loss on batches that are in memory: nothing is read. One comes before every candidate, so that both meet the same load
of the machine; rates are of their summed times. Adds the model to
benchmarks/results/search_speed.json.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import optuna
import records
import torch

from embank.ctr_models import CTRModel
from embank.ctr_models.metrics import Evaluation
from embank.pipelines.config.run import load_config, to_plain
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.runs.score import score
from embank.pipelines.search.frozen import FrozenObjective, frozen_setting
from embank.pipelines.search.held import BATCH_SIZE
from embank.pipelines.search.job import Job
from embank.pipelines.search.read import make_plan
from embank.pipelines.search.trials import run_trials
from embank.pipelines.train.interrupt import StopRequest
from embank.search import Candidate

Made = TypeVar("Made")


class ForwardPass:
    """The model on all rows of validation.

    Args:
        model: in evaluation mode.
        data: the prepared folder.
    """

    def __init__(self, model: CTRModel, data: str) -> None:
        self.model = model
        self.batches = list(Loader(data, "valid", batch_size=BATCH_SIZE, shuffle=False).epoch(0))

    @torch.no_grad()
    def __call__(self) -> dict[str, object]:
        evaluation = Evaluation(split="valid")
        for batch in self.batches:
            values_BE = self.model.tables(batch.sparse).values()
            logits_B = score(self.model, self.model.network, batch.dense, values_BE, precision="fp32")
            evaluation.update(logits_B, batch.labels)
        return evaluation.compute()


class Interleaved:
    """Times work and a bare forward pass in turns.

    Args:
        bare: the forward pass.
    """

    def __init__(self, bare: Callable[[], object]) -> None:
        self.bare = bare
        self.seconds = {"bare": 0.0, "work": 0.0}
        self.num = 0

    def __call__(self, work: Callable[[], Made]) -> Made:
        """The work's result, after a forward pass."""
        begun = time.perf_counter()
        self.bare()
        between = time.perf_counter()
        made = work()
        self.seconds["bare"] += between - begun
        self.seconds["work"] += time.perf_counter() - between
        self.num += 1
        return made

    @property
    def ratio(self) -> float:
        """Speed of the work / speed of the forward pass."""
        return self.seconds["bare"] / self.seconds["work"]


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--supernet", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    records.argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = records.begin(settings=records.settings_of(args))
    config = load_config(args.config, overrides=args.set)
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(to_plain(config), out=folder, space="rows", budgets=[0.5], num_trials=args.candidates)
        job = Job(plan=plan, budget=0.5, out=Path(folder), supernet=args.supernet, num_threads=args.threads)
        with frozen_setting(job, StopRequest()) as setting:
            assert isinstance(setting.objective, FrozenObjective)
            scorer, space = setting.objective.scorer, setting.objective.space
            data, scored = config.data.path, setting.objective
            alone = Interleaved(ForwardPass(scorer.model, data))
            alone(lambda: scorer({}))  # both once, untimed
            alone = Interleaved(alone.bare)
            for k in range(args.candidates):
                shapes = space.shapes(space.decode(space.draw(Random(k))))
                alone(lambda: scorer(shapes))  # noqa: B023
            within, begun = Interleaved(alone.bare), time.perf_counter()

            def objective(candidate: Candidate, trial: optuna.Trial) -> float:
                return within(lambda: scored(candidate, trial))

            run_trials(job, replace(setting, objective=objective), joins=False)
            studied = time.perf_counter() - begun - within.seconds["bare"]
            num_rows, num_calibrated = scorer.valid.num_rows, scorer.calibration.num_rows if scorer.calibration else 0
    result = {
        "validation_rows": num_rows,
        "calibration_rows": num_calibrated,
        "forward_passes_per_second": alone.num / alone.seconds["bare"],
        "candidates_per_second": alone.num / alone.seconds["work"],
        "candidates_per_pass": alone.ratio,
        "trials_per_pass": within.seconds["bare"] / studied,
    }
    name = config.model["name"] + (" with batch normalisation" if num_calibrated else "")
    model = f"{name} on {Path(data).name}"
    run.records = recorded(model, result)

    def others(earlier: records.Run) -> records.Run | None:
        return None if earlier.records[0].case["model"] == model else earlier

    records.save("search_speed", run, title=TITLE, about=ABOUT, out=args.out, keep=others)
    for record in run.records:
        print(record.metric, f"{record.value:.2f} {record.unit}", record.peers)


def recorded(model: str, result: dict[str, Any]) -> list[records.Record]:
    """Rates of candidates and of bare passes."""
    case = {"model": model, "validation rows": result["validation_rows"], "for calibration": result["calibration_rows"]}
    once: dict[str, Any] = {"case": case, "better": "higher", "statistic": "once"}
    bare = "forward passes"
    alone = [records.peer(bare, result["candidates_per_pass"])]
    within = [records.peer(bare, result["trials_per_pass"])]
    trials = result["trials_per_pass"] * result["forward_passes_per_second"]
    return [
        records.record("candidates", "/s", value=result["candidates_per_second"], peers=alone, **once),
        records.record("trials of a study", "/s", value=trials, peers=within, **once),
        records.record(bare, "/s", value=result["forward_passes_per_second"], **once),
    ]


TITLE = "Speed of scoring candidates on a frozen supernet"
ABOUT = (
    "Candidates and trials against plain forward passes over validation (lookups, network, metrics; batches in "
    "memory), one such pass before each, rates of their summed times."
)


if __name__ == "__main__":
    main()
