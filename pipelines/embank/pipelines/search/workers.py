"""Further processes that work on the same study as this one."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from embank.pipelines.search.job import Job, SettingOf
from embank.pipelines.search.trials import StoppedSearchError, run_trials
from embank.pipelines.sweep.children import end_with_parent, last_words, start
from embank.pipelines.train.interrupt import stop_on_signals
from embank.tables import WorkError

_PRELOADED = ["embank.pipelines.search.trials", "embank.pipelines.search.frozen"]


@contextmanager
def helpers(job: Job, setting_of: SettingOf, *, logs: Path) -> Iterator[list[BaseProcess]]:
    """The plan's other workers on a study, until they have ended; asked to stop if the context ends with an error.

    Args:
        job: the study, which exists.
        setting_of: how its candidates are scored; a function of a module, since it is sent to the processes.
        logs: folder of what they print.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    started: list[BaseProcess] = []
    for number in range(1, job.plan.workers):
        log = logs / f"{job.study_name}-worker-{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        started.append(context.Process(target=_work, args=(job, setting_of, log), name=f"worker {number}"))
        start(started[-1])
    try:
        yield started
        for process in started:
            process.join()
    except BaseException:
        for process in started:
            process.terminate()
        for process in started:
            process.join()
        raise


def failure_of(process: BaseProcess, *, job: Job, logs: Path) -> str | None:
    """What a worker that has ended before its time said; None if all is well."""
    if not process.exitcode:
        return None
    number = process.name.split()[-1]
    return last_words(logs / f"{job.study_name}-worker-{number}.log", code=process.exitcode)


def _work(job: Job, setting_of: SettingOf, log: Path) -> None:
    """In the worker: trials until the study is complete."""
    end_with_parent()
    with log.open("ab") as file, open(os.devnull, "rb") as nothing:
        for stream, target in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(stream.fileno(), target)
    try:
        work(job, setting_of)
    except WorkError as error:
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
