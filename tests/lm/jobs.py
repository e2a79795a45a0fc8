"""What worker processes do in tests of several ranks."""

from pathlib import Path
from typing import Any

import torch.distributed as dist

from embank.pipelines.lm.trainer import LmTrainer
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
