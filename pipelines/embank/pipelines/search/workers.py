"""Further processes that work on the same study as this one."""

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from embank.pipelines.search.job import Job, SettingOf
from embank.pipelines.search.trials import StoppedSearchError, run_trials
from embank.pipelines.sweep.children import ChildLog, end_with_parent, start
from embank.pipelines.train.interrupt import stop_on_signals
from embank.tables import EmbankError

_PRELOADED = ["embank.pipelines.search.trials", "embank.pipelines.search.frozen"]


@contextmanager
def helpers(job: Job, setting_of: SettingOf, *, logs: Path) -> Iterator[list[tuple[BaseProcess, ChildLog]]]:
    """The plan's other workers on a study, until they have ended; asked to stop if the context ends with an error.

    Args:
        job: the study, which exists.
        setting_of: how its candidates are scored; a function of a module, since it is sent to the processes.
        logs: folder of what they print.

    Yields:
        The workers, each with its log.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    started: list[tuple[BaseProcess, ChildLog]] = []
    for number in range(1, job.plan.workers):
        log = ChildLog(logs / f"{job.study_name}-worker-{number}.log")
        made = context.Process(target=_work, args=(job, setting_of, log), name=f"worker {number}")
        started.append((made, log))
        start(made)
    try:
        yield started
        for process, _ in started:
            process.join()
    except BaseException:
        for process, _ in started:
            process.terminate()
        for process, _ in started:
            process.join()
        raise


def _work(job: Job, setting_of: SettingOf, log: ChildLog) -> None:
    """In the worker: trials until the study is complete."""
    end_with_parent()
    log.take_output()
    try:
        work(job, setting_of)
    except EmbankError as error:
        sys.stderr.write(f"embank: {error}\n")
        sys.exit(error.exit_code)


def work(job: Job, setting_of: SettingOf, *, told: Callable[[optuna.Study, FrozenTrial], None] | None = None) -> None:
    """Makes the trials of a study that exists, until it is complete.

    Raises:
        StoppedSearchError: a signal asked for it.
    """
    import torch

    torch.set_num_threads(job.num_threads)
    with stop_on_signals() as stop, setting_of(job, stop) as setting:

        def after(study: optuna.Study, trial: FrozenTrial) -> None:
            if told is not None:
                told(study, trial)
            if stop:
                raise StoppedSearchError(f"{stop.signal}: stopped")

        run_trials(job, setting, joins=True, told=after)
