"""What worker processes do in tests of several ranks."""

import os
import signal
from pathlib import Path
from typing import Any

import torch.distributed as dist

from embank.pipelines.lm.trainer import LmTrainer
from embank.pipelines.reporting import Reporter
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.tables.errors import EmbankError
from embank.tables.sharding.processes import Processes
from tests.lm.small import lm_config


def train_on_rank(rank: int, texts: Path, run: Path, resume: bool, sections: dict[str, dict[str, Any]]) -> Any:
    """Trains as one of the ranks; an error of ours comes back as its message."""
    processes = Processes(dist.group.WORLD)
    try:
        return LmTrainer(lm_config(texts, **sections), run, processes=processes).train(resume=resume)
    except EmbankError as error:
        return f"{type(error).__name__}: {error}"


class _Stops(Reporter):
    """Interrupts the training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def measured(self, *, step: int, values: Any) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_on_rank(rank: int, texts: Path, run: Path, step: int, sections: dict[str, dict[str, Any]]) -> str:
    """Trains as one of the ranks until the first one is interrupted after a step."""
    processes = Processes(dist.group.WORLD)
    try:
        LmTrainer(lm_config(texts, **sections), run, processes=processes, reporter=_Stops(step)).train()
    except InterruptedRunError as error:
        return str(error)
    return "it was not interrupted"
