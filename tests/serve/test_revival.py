"""What becomes of workers that die, and when the server gives up."""

from types import SimpleNamespace
from typing import Any

import pytest

from embank.pipelines.serve import server as serving
from embank.pipelines.train.interrupt import StopRequest
from embank.tables import WorkError


class Workers(serving._Server):
    """A server without processes: each begin is counted, and gives one that is dead or alive."""

    def __init__(self, alive: dict[int, bool]) -> None:
        self.alive = alive
        self.begun: dict[int, float] = {}
        self.processes: dict[int, Any] = {}
        self.deaths: dict[int, int] = {}
        self.due: dict[int, float] = {}
        self.started: list[int] = []
        self.notes: list[str] = []
        self.note = self.notes.append
        for number in alive:
            self._begin(number)

    def _begin(self, number: int) -> None:
        self.started.append(number)
        self.begun[number] = serving.time.monotonic() - (0 if not self.alive[number] else 100)
        self.processes[number] = SimpleNamespace(exitcode=None if self.alive[number] else 1, sentinel=number, pid=1)

    def _forget(self, process: Any) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Seconds that pass only where the server sleeps or waits."""
    now = SimpleNamespace(seconds=0.0)

    def sleep(seconds: float) -> None:
        now.seconds += seconds

    monkeypatch.setattr(serving, "time", SimpleNamespace(monotonic=lambda: now.seconds, sleep=sleep))
    monkeypatch.setattr(serving, "wait", lambda sentinels, timeout: sleep(timeout))
    return now


def test_one_worker_that_can_not_start_does_not_end_the_others(clock: SimpleNamespace) -> None:
    server = Workers({0: True, 1: False})
    while clock.seconds < 300:
        server.revive(StopRequest())
    assert server.started.count(0) == 1
    assert 10 < server.started.count(1) < 25  # after longer and longer pauses
    assert "worker 1 has ended (exit code 1) and is started again in 30 s" in server.notes
    server.alive[1] = True
    while clock.seconds < 340:
        server.revive(StopRequest())
    assert server.processes[1].exitcode is None


def test_a_server_without_workers_gives_up(clock: SimpleNamespace) -> None:
    server = Workers({0: False, 1: False})

    def run() -> None:
        while clock.seconds < 100:
            server.revive(StopRequest())

    with pytest.raises(WorkError, match="have died 6 times"):
        run()
