"""Who works on which trial: a lease in the trial's attributes, renewed while its process lives.

A killed worker leaves its trial running for ever: Optuna's journal has no heartbeat at all, and that of its databases
acts in `study.optimize` alone. So every worker signs its trial with host, process and time, and whoever finds one whose
process is gone fails it and puts its candidate back into the queue.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

LEASE, RETRY_OF = "embank:lease", "embank:retry_of"
RENEW_SECONDS = 15.0
EXPIRE_SECONDS = 120.0
"""After so long without renewal a trial of another machine counts as left; clocks may differ by a minute."""

_SAME_START = 1.0


def own_lease() -> dict[str, Any]:
    """What this process signs with."""
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": process.create_time(),
        "time": time.time(),
    }


@contextmanager
def leased(trial: optuna.Trial) -> Iterator[None]:
    """Signs a trial, and renews that for as long as the context lasts."""
    lease, over = own_lease(), threading.Event()
    trial.set_user_attr(LEASE, lease)

    def renew() -> None:
        while not over.wait(RENEW_SECONDS):
            with contextlib.suppress(Exception):  # the trial's own thread meets whatever is wrong with the storage
                trial.set_user_attr(LEASE, lease | {"time": time.time()})

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def is_left(trial: FrozenTrial) -> bool:
    """Whether nobody works on a running trial any more."""
    lease = trial.user_attrs.get(LEASE)
    if lease is None:  # its worker was about to sign it, or was killed just before
        begun = trial.datetime_start
        return begun is not None and time.time() - begun.timestamp() > EXPIRE_SECONDS
    if lease["host"] == socket.gethostname():
        return not _is_alive(lease["pid"], lease["started"])
    return bool(time.time() - lease["time"] > EXPIRE_SECONDS)


def _is_alive(pid: int, started: float) -> bool:
    """Whether the process that had a number still has it."""
    if pid == os.getpid():
        return True
    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - started) < _SAME_START
        return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def recover(study: optuna.Study) -> list[int]:
    """Fails trials that were left running, and puts their candidates back into the queue; any worker may do so.

    Returns:
        Numbers of the trials that this call has failed.
    """
    recovered = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not is_left(trial):
            continue
        try:
            study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
        except UpdateFinishedTrialError:  # another worker has found it, too, and was first
            continue
        recovered.append(trial.number)
        if trial.params:
            put_back(study, trial)
    return recovered


def put_back(study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> None:
    """Puts the candidate of a trial back into the queue. Who takes it goes on with the trial's run, or with the run
    that the trial itself went on with."""
    study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.user_attrs.get(RETRY_OF, trial.number)})


def num_claimed(study: optuna.Study, *, before: int | None = None) -> int:
    """Trials that are scored, pruned, or worked on by a living process.

    Args:
        study: whose trials.
        before: only those with a smaller number.
    """
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    trials = [t for t in study.get_trials(deepcopy=False, states=states) if before is None or t.number < before]
    return sum(t.state != TrialState.RUNNING or not is_left(t) for t in trials)
