"""Trials that train: each is an `embank train` of its own, over methods, dims and learning rates of a configuration."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

import optuna
from optuna.pruners import HyperbandPruner
from optuna.trial import TrialState

from embank.pipelines.config.run import Config, to_plain
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import id_counts, table_codecs, table_specs
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.search.configspace import TrainedSpace, config_space
from embank.pipelines.search.folder import SearchFolder
from embank.pipelines.search.job import Job, Setting
from embank.pipelines.search.leases import RETRY_OF
from embank.pipelines.search.trials import FailedTrialError, StoppedSearchError
from embank.pipelines.search.unreached import CLASH, INFEASIBLE
from embank.pipelines.sweep.children import ChildLog, forkserver, run_command, start
from embank.pipelines.sweep.comparison import validation
from embank.pipelines.sweep.feasible import Feasibility
from embank.pipelines.train.interrupt import StopRequest
from embank.search.spaces import Candidate
from embank.search.study import SAME_AS
from embank.tables import BudgetError, ConfigError, WorkError

POLL_SECONDS = 0.2
_MOST_FAILURES = 3


@contextmanager
def training_setting(job: Job, stop: StopRequest) -> Iterator[Setting]:
    """Trains every candidate in a child process, for as long as the context lasts.

    Args:
        job: the study.
        stop: a request to stop, looked at while a child trains.

    Raises:
        ConfigError, DataError: the space or the data can't be used.
    """
    plan, config = job.plan, job.plan.parsed
    shapes = SearchFolder(job.out).shapes
    space = config_space(plan, budget=job.budget, shapes=shapes)
    pruner = None if plan.front else HyperbandPruner(min_resource=1, max_resource=max(2, config.train.epochs))
    yield Setting(
        space=space,
        objective=TrainingObjective(job, space, stop=stop, prunes=pruner is not None),
        identity={
            "data": Schema.load(config.data.path).fingerprint[:16],
            "monitor": config.train.monitor,
            "shapes": hashlib.sha256(shapes.read_bytes()).hexdigest()[:16] if shapes.is_file() else None,
        },
        pruner=pruner,
        candidates=tuple(space.first_candidates()),
    )


class TrainingObjective:
    """The best validation score of a training, stopped early where the study's pruner says so.

    Args:
        job: the study.
        space: of the candidates.
        stop: a request to stop.
        prunes: report the validation curve to the study's pruner.
    """

    def __init__(self, job: Job, space: TrainedSpace, *, stop: StopRequest, prunes: bool) -> None:
        self.job, self.space, self.stop, self.prunes = job, space, stop, prunes
        self.folder = SearchFolder(job.out)
        data = Path(job.plan.parsed.data.path)
        self.feasibility, self.schema = Feasibility(data), Schema.load(data)
        self.counts = id_counts(self.schema, data=data)
        self.num_failures = 0
        self.context = forkserver()

    def __call__(self, candidate: Candidate, trial: optuna.Trial) -> float:
        try:
            config = self.space.config(candidate)
            refusal = self.feasibility.refusal(config)
        except BudgetError as error:
            refusal = str(error)
        except ConfigError as error:  # values that can't be together: pruned, so that they are not drawn again
            trial.set_user_attr(CLASH, str(error))
            raise optuna.TrialPruned from error
        if refusal is not None:
            trial.set_user_attr(INFEASIBLE, refusal)
            raise optuna.TrialPruned
        if (first := self._trained_before(config, trial)) is not None:
            trial.set_user_attr(SAME_AS, first.number)
            if first.state == TrialState.PRUNED:
                raise optuna.TrialPruned
            return float(first.values[0])
        run = self.folder.run(self._name(trial))
        trial.set_user_attr("run", str(run.path))
        self._train(run, config, trial)
        result = run.read_result()
        keys = ("auc", "logloss", "serving_bytes", "train_seconds")
        for key in keys:
            trial.set_user_attr(key, result[key])
        return validation(result)

    def _trained_before(self, config: Config, trial: optuna.Trial) -> optuna.trial.FrozenTrial | None:
        """A trial that is done and trained the same tables: where all of them fit into the budget as plain ones, the
        candidate's method plays no part."""
        raw = to_plain(config)
        specs = table_specs(config, self.schema, data=Path(config.data.path), counts=self.counts)
        facts = [
            [astuple(replace(spec, counts=None)) for spec in specs],
            table_codecs(config, specs),
            raw["tables"]["alignment"],
            raw["model"],
            raw["train"],
        ]
        key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        trial.set_user_attr("trains", key)
        done = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return next((t for t in done if t.user_attrs.get("trains") == key and SAME_AS not in t.user_attrs), None)

    def _name(self, trial: optuna.Trial) -> str:
        """The trial's run; a trial that takes the place of one whose worker was killed goes on with its run."""
        number = trial.user_attrs.get(RETRY_OF, trial.number)
        return f"{self.job.study_name}/trial-{number:05d}"

    def _train(self, run: RunFolder, config: Config, trial: optuna.Trial) -> None:
        """Trains in a child process, watching its validation curve.

        Raises:
            TrialPruned: the pruner has given it up.
            StoppedSearchError: a signal asked for it.
            FailedTrialError: it has failed.
            WorkError: several in a row have failed.
        """
        name = f"{run.path.parent.name}/{run.path.name}"
        log, file = ChildLog(self.folder.log(name)), self.folder.write_config(name, config)
        arguments = ["train", str(file), "--out", str(run.path), *(["--resume"] if run.is_run else [])]
        process = self.context.Process(target=run_command, args=(arguments, log, self.job.num_threads), daemon=True)
        start(process)
        try:
            self._watch(process, run, trial)
        except BaseException:
            process.terminate()
            process.join()
            raise
        if run.result.is_file():
            self.num_failures = 0
            return
        self._fail(log.last_words(code=process.exitcode or 0), trial)

    def _fail(self, said: str, trial: optuna.Trial) -> NoReturn:
        """Fails a trial for what its training said.

        Raises:
            FailedTrialError: the search goes on.
            WorkError: several in a row have failed.
        """
        self.num_failures += 1
        trial.set_user_attr("error", said)
        if self.num_failures >= _MOST_FAILURES:
            raise WorkError(
                f"{self.num_failures} trials in a row have failed, the last one: {said.rstrip('.')}. What trainings "
                f"printed is in '{self.folder.logs}'. If the machine was at fault (memory, a disk), mend that and go "
                "on with --resume; if a value of the space or the configuration was, which a search keeps, change it "
                "and begin another search in another --out"
            )
        raise FailedTrialError(said)

    def _watch(self, process: BaseProcess, run: RunFolder, trial: optuna.Trial) -> None:
        num_reported = 0
        while process.exitcode is None:
            time.sleep(POLL_SECONDS)
            if self.stop:
                raise StoppedSearchError(f"{self.stop.signal}: stopped; go on with the same command and --resume")
            if not self.prunes:
                continue
            curve = curve_of(run)
            for step, value in enumerate(curve[num_reported:], start=num_reported + 1):
                trial.report(value, step)
            if len(curve) > num_reported and trial.should_prune():
                trial.set_user_attr("stopped_after", len(curve))
                raise optuna.TrialPruned
            num_reported = len(curve)


def curve_of(run: RunFolder) -> list[float]:
    """What a run's evaluations on validation have said, higher is better; empty where stages before the last say
    little."""
    records = [record for record in run.read_metrics() if record["split"] == "valid"]
    if len({record["stage"] for record in records}) > 1 or not run.is_run:
        return []
    monitor = run.read_config()["train"]["monitor"]
    sign = -1 if monitor == "logloss" else 1
    return [sign * float(record[monitor]) for record in records if record[monitor] is not None]
