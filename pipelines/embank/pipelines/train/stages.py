"""The stages that methods train in: going on to the next one with what this one has found."""

import time

import torch

from embank.ctr_models import CTRModel
from embank.pipelines.runs.build import initial_network
from embank.pipelines.train.checkpoints import evaluate_and_save, load_best, save, stop_if_asked
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.session import Session
from embank.pipelines.train.validation import ValidationSample
from embank.tables.collections.stages import advance


def next_stage(session: Session) -> None:
    """Goes on to the next stage with what this one has found, and saves its beginning."""
    begun = time.monotonic()
    session.reporter.note(f"{session.training.describe()} is done; preparing the next stage")
    load_best(session)
    tables = advance(session.tables, score=_Score(session))
    session.progress.stage.seconds += time.monotonic() - begun
    is_fresh = session.training.planned[len(session.progress.stages)].fresh_network
    fresh = initial_network(session.config, session.schema).to(tables.device) if is_fresh else None
    session.model = CTRModel(tables, session.model.network if fresh is None else fresh)
    if is_fresh:
        torch.cuda.manual_seed_all(session.config.train.seed)
    session.begin_stage()
    if session.training.is_last and not is_fresh:  # what further training may only make worse
        evaluate_and_save(session)
    else:
        save(session)
    stop_if_asked(session)


class _Score:
    """What methods search by: the model as it stands, on validation.

    Args:
        session: whose model it is.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.samples: dict[int | None, ValidationSample] = {}

    def __call__(self, *, max_samples: int | None = None, share: float = 1.0) -> float:
        session = self.session
        (is_asked,) = session.processes.any(bool(session.stop))
        if is_asked:
            raise InterruptedRunError(
                f"{session.stop.signal or 'a signal to another rank'}: stopped at the end of "
                f"{session.training.describe()}, which is saved; go on with the same command and "
                f"--resume (run directory '{session.run.path}')"
            )
        if max_samples not in self.samples:
            self.samples[max_samples] = ValidationSample(session.config, session.tables, max_samples=max_samples)
        return self.samples[max_samples].score(session.model, share=share)
