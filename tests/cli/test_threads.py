"""How OpenMP's threads wait: decided before torch is imported, unless someone has."""

import os
import subprocess
import sys

import psutil
import pytest

from embank.pipelines.cli.waiting import BUSY_SHARE, ROUNDS, ROUNDS_ON_BUSY_CORES, Cores

READ = """
import os, sys, time
import embank.pipelines.cli.waiting as waiting
time.sleep(float(sys.argv[1]))
from embank.pipelines.cli.app import app
assert "torch" not in sys.modules
print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
"""
COUNT = [sys.executable, "-c", "while True: pass"]


def read(*, own: dict[str, str], seconds: float = 0) -> str:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in names} | own
    command = [sys.executable, "-c", READ, str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("own", "expected"), [({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None")]
)
def test_a_policy_of_ones_own_stays(own: dict[str, str], expected: str) -> None:
    assert read(own=own) == expected


def test_waiting_is_shorter_where_others_use_the_cores() -> None:
    others = [subprocess.Popen(COUNT) for _ in range(2 * len(os.sched_getaffinity(0)))]
    try:
        assert read(own={}, seconds=0.5) == f"PASSIVE {ROUNDS_ON_BUSY_CORES}"
    finally:
        for process in others:
            process.kill()
            process.wait()


def test_the_time_of_others_and_ones_own_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores for a second: this process has .6 of the first, others the rest of it and .3 of the second."""
    sample = psutil.cpu_times(percpu=True)[0]
    nothing = dict.fromkeys(sample._fields, 0.0)
    now = [type(sample)(**nothing | {"user": 5.0}), type(sample)(**nothing | {"idle": 9.0})]
    own = 3.0

    class Process:
        def cpu_times(self) -> object:
            return type(sample)(**nothing | {"user": own})

    monkeypatch.setattr(psutil, "cpu_times", lambda *, percpu: list(now))
    monkeypatch.setattr(psutil, "Process", Process)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    cores = Cores()
    now[0] = type(sample)(**nothing | {"user": 5.9, "system": 0.1, "steal": 0.0})
    now[1] = type(sample)(**nothing | {"idle": 9.5, "iowait": 0.2, "nice": 0.2, "steal": 0.1})
    own = 3.6
    assert cores.share_of_others() == pytest.approx((0.4 + 0.3) / 2)


def test_a_free_machine_has_the_long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    from embank.pipelines.cli import waiting

    for share, rounds in ((0.0, ROUNDS), (BUSY_SHARE, ROUNDS), (BUSY_SHARE + 0.01, ROUNDS_ON_BUSY_CORES)):
        monkeypatch.setattr(Cores, "share_of_others", lambda self, share=share: share)
        environment: dict[str, str] = {}
        waiting.choose(environment)
        assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(rounds)}


def test_a_system_that_does_not_say_is_taken_for_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*, percpu: bool) -> None:
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", refuse)
    assert Cores().share_of_others() == 0
    cores = Cores()
    monkeypatch.undo()
    assert 0 <= cores.share_of_others() <= 1
