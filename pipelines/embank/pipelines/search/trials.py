"""One process's work on a study: trials until the study has as many as were asked for, whoever made them."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.trial import FrozenTrial, TrialState

from embank.pipelines.search.job import Job, Objective, Setting, Told
from embank.pipelines.search.leases import leased, num_claimed, put_back, recover
from embank.pipelines.search.storage import open_storage, storage_errors
from embank.search import search
from embank.search.spaces import Candidate
from embank.tables import WorkError

WAIT_SECONDS = 0.1
SURPLUS = "embank:surplus"


class FailedTrialError(Exception):
    """A trial has failed; the search goes on with others."""


class StoppedSearchError(WorkError):
    """A signal stopped the search; its trials are stored, and it can be resumed."""


class SurplusTrialError(Exception):
    """The study has as many trials as were asked for, without this one."""


class Claimed:
    """An objective that signs its trials, and waits where enough of them are being worked on already.

    Args:
        objective: of the study.
        num_trials: that the study is to have.
    """

    def __init__(self, objective: Objective, *, num_trials: int) -> None:
        self.objective, self.num_trials = objective, num_trials

    def __call__(self, candidate: Candidate, trial: optuna.Trial) -> float:
        with leased(trial):
            self._wait(trial)
            try:
                return self.objective(candidate, trial)
            except (StoppedSearchError, KeyboardInterrupt):
                put_back(trial.study, trial)  # who goes on begins with it
                raise

    def _wait(self, trial: optuna.Trial) -> None:
        """Waits while earlier trials make the study complete, and one of them may still be left by its worker.

        Raises:
            SurplusTrialError: they have made it complete.
        """
        while num_claimed(trial.study, before=trial.number) >= self.num_trials:
            if num_done(trial.study) >= self.num_trials:
                trial.set_user_attr(SURPLUS, True)
                if "fixed_params" in trial.study.get_trials(deepcopy=False)[trial.number].system_attrs:  # was enqueued
                    put_back(trial.study, trial)
                raise SurplusTrialError
            time.sleep(WAIT_SECONDS)


def num_done(study: optuna.Study) -> int:
    """Trials that are scored or pruned."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def run_trials(
    job: Job,
    setting: Setting,
    *,
    joins: bool,
    told: Told = lambda study, trial: None,
    num_trials: int | None = None,
) -> optuna.Study:
    """Makes the trials of a study that are missing.

    Args:
        job: the study.
        setting: its space and its objective.
        joins: the study may exist already.
        told: is called after each trial of this process.
        num_trials: that the study is to have; None takes the plan's. With 0 it is begun and nothing else.

    Raises:
        ConfigError: the study exists and is not to be joined.
        CheckpointError: it was made by another search; names what differs.
        WorkError: its storage can't be written.
    """
    plan = job.plan
    num_trials = plan.num_trials if num_trials is None else num_trials

    def recovered(study: optuna.Study, trial: FrozenTrial) -> None:
        recover(study)
        told(study, trial)

    with storage_errors(plan.storage), quiet_optuna():
        storage = open_storage(plan.storage)
        recover_named(storage, job.study_name)
        return search(
            Claimed(setting.objective, num_trials=num_trials),
            space=setting.space,
            sampler=plan.sampler,
            num_trials=num_trials,
            budget=job.budget,
            front=plan.front,
            seed=plan.seed,
            storage=storage,
            study_name=job.study_name,
            resume=joins,
            identity=setting.identity,
            pruner=None if plan.front else setting.pruner,
            candidates=setting.candidates,
            callbacks=[recovered],
            catch=(SurplusTrialError, FailedTrialError),
        )


def recover_named(storage: optuna.storages.BaseStorage, name: str) -> None:
    """Puts back what killed workers have left in a study, if it exists."""
    if name in optuna.get_all_study_names(storage):
        recover(optuna.load_study(study_name=name, storage=storage))


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's line for each trial and its notes on what is experimental."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
