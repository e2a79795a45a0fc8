"""A signal is told of at once, however long the step takes that it waits for."""

import os
import signal
from pathlib import Path

import pytest

from embank.pipelines.reporting import Reporter
from embank.pipelines.train.interrupt import InterruptedRunError, stop_on_signals
from embank.pipelines.train.step import Stepper
from embank.pipelines.train.trainer import Trainer
from tests.training.runs import config


class Notes(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, message: str) -> None:
        self.told.append(message)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_within_a_step_is_told_before_its_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    """Nothing was said while g++ compiled the first step, which takes half a minute."""
    told, step = Notes(), Stepper.__call__
    within: list[str] = []

    def signalled(*arguments: object, **how: object) -> object:
        os.kill(os.getpid(), number)
        within.extend(told.told)
        return step(*arguments, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Stepper, "__call__", signalled)
    with pytest.raises(InterruptedRunError, match=f"{name}: stopped after step 1 of 30, which is saved"):
        Trainer(config(data), tmp_path / "run", reporter=told).train()
    assert [line.partition(";")[0] for line in within] == [
        f"{name}: stopping at the end of this step, which may wait for a compiler"
    ]
    assert f"  {within[0]}\n" in (tmp_path / "run" / "log.txt").read_text()


def test_the_first_signal_is_told_and_the_second_ctrl_c_stops_at_once() -> None:
    told: list[str] = []
    with stop_on_signals(tell=told.append) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (len(told), stop.signal) == (1, "SIGTERM")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert len(told) == 1


def test_a_line_that_can_not_be_written_now_is_left_out() -> None:
    def busy(_line: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    with stop_on_signals(tell=busy) as stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal == "SIGINT"
