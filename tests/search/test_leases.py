"""Studies that several processes work on, and what a killed one leaves."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from embank.pipelines.search import leases, workers
from embank.pipelines.search.job import Job, Setting
from embank.pipelines.search.leases import LEASE, RETRY_OF, is_left, leased, num_claimed, own_lease, recover
from embank.pipelines.search.read import make_plan
from embank.pipelines.search.storage import open_storage
from embank.pipelines.search.trials import Claimed, StoppedSearchError, SurplusTrialError, run_trials
from embank.pipelines.sweep.children import ChildLog
from embank.pipelines.train.interrupt import StopRequest
from embank.search import DimensionSpace
from embank.search.spaces import Candidate
from embank.tables import CheckpointError, ConfigError, EmbankError, TableSpec, WorkError

CONFIG: dict[str, Any] = {"data": {"path": "nowhere"}, "model": {"name": "fnn"}}
SPACE = DimensionSpace(
    [TableSpec(name=n, num_embeddings=k, embedding_dim=64, feature_names=[n]) for n, k in (("a", 90), ("b", 50))]
)


def job_of(storage: str, *, num_trials: int, sampler: str = "random") -> Job:
    plan = make_plan(CONFIG, out="out", storage=storage, num_trials=num_trials, sampler=sampler, name="shared")
    return Job(plan=plan, budget=None, out=Path("out"), supernet=None, num_threads=1)


def setting_of(seconds: float, **identity: Any) -> Setting:
    def objective(candidate: Candidate, trial: optuna.Trial) -> float:
        time.sleep(seconds)
        return float(candidate["width.a"])

    return Setting(space=SPACE, objective=objective, identity={"supernet": "abc", **identity})


def work(storage: str, num_trials: int, seconds: float) -> None:
    run_trials(job_of(storage, num_trials=num_trials), setting_of(seconds), joins=True)


def begin(storage: str) -> None:
    run_trials(job_of(storage, num_trials=1), setting_of(0.0), joins=True, num_trials=0)


def dead_lease() -> dict[str, Any]:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    lease = own_lease() | {"pid": ended.pid}
    ended.wait()
    return lease


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "study.journal") if request.param == "journal" else f"sqlite:///{tmp_path / 'study.db'}"


def test_a_left_trial_is_failed_and_its_candidate_comes_again(storage: str) -> None:
    study = optuna.create_study(storage=open_storage(storage), study_name="s", direction="maximize")
    left, held, unsigned = study.ask(SPACE.distributions), study.ask(SPACE.distributions), study.ask()
    left.set_user_attr(LEASE, dead_lease())
    held.set_user_attr(LEASE, own_lease())
    assert num_claimed(study) == 2
    assert recover(study) == [left.number]
    assert recover(study) == []
    states = {trial.number: trial.state for trial in study.trials}
    assert (states[left.number], states[held.number]) == (TrialState.FAIL, TrialState.RUNNING)
    assert states[unsigned.number] == TrialState.RUNNING
    again = study.ask(SPACE.distributions)
    assert again.params == left.params
    assert again.user_attrs[RETRY_OF] == left.number


def test_a_trial_that_is_lost_twice_goes_on_with_its_first_run(storage: str) -> None:
    study = optuna.create_study(storage=open_storage(storage), study_name="s", direction="maximize")
    study.ask()  # so that the run's number is not 0
    for number in (1, 2):
        lost = study.ask(SPACE.distributions)
        assert lost.number == number
        lost.set_user_attr(LEASE, dead_lease())
        assert recover(study) == [number]
    assert study.ask(SPACE.distributions).user_attrs[RETRY_OF] == 1


def test_a_lease_of_another_machine_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr(LEASE, own_lease() | {"host": "elsewhere"})
    assert not is_left(study.trials[0])
    monkeypatch.setattr(leases, "EXPIRE_SECONDS", -1.0)
    assert is_left(study.trials[0])


def test_a_reused_process_number_is_not_the_worker() -> None:
    study = optuna.create_study()
    trial = study.ask()
    parent = {"host": socket.gethostname(), "pid": os.getppid(), "started": 0.0, "time": time.time()}
    trial.set_user_attr(LEASE, parent)
    assert is_left(study.trials[0])


def test_a_lease_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
    study = optuna.create_study()
    trial = study.ask()
    with leased(trial):
        begun = study.trials[0].user_attrs[LEASE]["time"]
        limit = time.monotonic() + 10
        while study.trials[0].user_attrs[LEASE]["time"] == begun and time.monotonic() < limit:
            time.sleep(0.01)
    assert study.trials[0].user_attrs[LEASE]["time"] > begun


@pytest.mark.slow
def test_two_workers_one_killed_lose_and_double_nothing(storage: str) -> None:
    """The trial that the killed one worked on is made again, the rest goes on, and there are as many as were asked
    for."""
    num_trials = 14
    begin(storage)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    killed, other = (context.Process(target=work, args=(storage, num_trials, 0.3)) for _ in range(2))
    killed.start()
    other.start()
    study = optuna.load_study(study_name="shared", storage=open_storage(storage))
    limit = time.monotonic() + 60
    while not (mine := [t for t in study.trials if _is_at_work(t, killed.pid)]) and time.monotonic() < limit:
        time.sleep(0.02)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    other.join(120)
    assert other.exitcode == 0
    trials = study.trials
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    assert len(done) == num_trials
    assert [t.number for t in trials] == list(range(len(trials)))
    candidates = Counter(tuple(sorted(t.params.items())) for t in done)
    assert max(candidates.values()) == 1
    failed = {t.number for t in trials if t.state == TrialState.FAIL and LEASE in t.user_attrs}
    assert not [t for t in trials if t.state == TrialState.RUNNING]
    left = [t for t in mine if t.number in failed]
    retried = [t for t in done if t.user_attrs.get(RETRY_OF) in {t.number for t in left}]
    assert len(retried) == len(left)
    assert len(left) == 1
    assert {t.params == left[0].params for t in retried} == {True}


def _is_at_work(trial: optuna.trial.FrozenTrial, pid: int | None) -> bool:
    return trial.state == TrialState.RUNNING and trial.user_attrs.get(LEASE, {}).get("pid") == pid and trial.number >= 3


@pytest.mark.slow
def test_a_surplus_trial_is_given_up(storage: str) -> None:
    """Another worker makes the last trial while this one has asked for one more."""
    work(storage, 3, 0.0)
    study = optuna.load_study(study_name="shared", storage=open_storage(storage))
    other = study.ask(SPACE.distributions)
    other.set_user_attr(LEASE, own_lease())

    def objective(candidate: Candidate, trial: optuna.Trial) -> float:
        raise AssertionError("the study has enough trials")

    import threading

    threading.Timer(0.3, lambda: study.tell(other, 1.0)).start()
    setting = Setting(space=SPACE, objective=objective, identity={"supernet": "abc"})
    found = run_trials(job_of(storage, num_trials=4), setting, joins=True)
    assert sum(t.state == TrialState.COMPLETE for t in found.trials) == 4
    assert sum(t.state == TrialState.RUNNING for t in found.trials) == 0


def test_a_stopped_trial_and_a_wanted_surplus_one_come_again(storage: str) -> None:
    begin(storage)
    study = optuna.load_study(study_name="shared", storage=open_storage(storage))
    wanted = {"width.a": 8, "width.b": 12}
    study.enqueue_trial(SPACE.params(SPACE.encode(wanted)))

    def stopped(candidate: Candidate, trial: optuna.Trial) -> float:
        raise StoppedSearchError("SIGINT: stopped")

    setting = Setting(space=SPACE, objective=stopped, identity={"supernet": "abc"})
    with pytest.raises(StoppedSearchError):
        run_trials(job_of(storage, num_trials=2), setting, joins=True)
    (waiting,) = study.get_trials(states=(TrialState.WAITING,))
    assert waiting.user_attrs[RETRY_OF] == 0
    found = run_trials(job_of(storage, num_trials=2), setting_of(0.0), joins=True)
    assert found.trials[1].user_attrs["candidate"] == wanted

    study.enqueue_trial(SPACE.params(SPACE.encode({"width.a": 4, "width.b": 4})), user_attrs={RETRY_OF: 0})
    with pytest.raises(SurplusTrialError):
        Claimed(setting.objective, num_trials=2)({}, study.ask(SPACE.distributions))
    (again,) = study.get_trials(states=(TrialState.WAITING,))
    assert again.user_attrs[RETRY_OF] == 0  # still goes on with the run that was begun


@pytest.mark.parametrize("error", [ConfigError, CheckpointError, WorkError])
def test_a_worker_ends_with_the_message_of_what_it_refuses(
    error: type[EmbankError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def setting_of(job: Job, stop: StopRequest) -> Any:
        raise error("'space.yaml' is no space")

    monkeypatch.setattr(workers, "end_with_parent", lambda: None)
    log = ChildLog(tmp_path / "logs" / "worker.log")
    monkeypatch.setattr(log, "take_output", lambda: None)
    with pytest.raises(SystemExit) as ended:
        workers._work(job_of(str(tmp_path / "study.journal"), num_trials=1), setting_of, log)
    assert ended.value.code == error.exit_code
    assert capsys.readouterr().err == "embank: 'space.yaml' is no space\n"
