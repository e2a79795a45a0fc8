"""The stages that methods train in: going on to the next one with what this one has found."""

import time
from functools import partial

import torch

from embank.ctr_models import CTRModel
from embank.pipelines.runs.build import initial_network
from embank.pipelines.runs.evaluate import HeldSplit, validation_score
from embank.pipelines.train.checkpoints import evaluate_and_save, load_best, save, stop_if_asked
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.session import Session
from embank.tables.collections.stages import advance


def next_stage(session: Session) -> None:
    """Goes on to the next stage with what this one has found, and saves its beginning."""
    begun = time.monotonic()
    session.reporter.note(f"{session.training.describe()} is done; preparing the next stage")
    load_best(session)
    held = HeldSplit(session.config.data.path, "valid", processes=session.processes)
    tables = advance(session.tables, score=partial(_score, session, held))
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


def _score(session: Session, held: HeldSplit, *, max_samples: int | None = None) -> float:
    """What methods search by: the model as it stands, on validation."""
    (is_asked,) = session.processes.any(bool(session.stop))
    if is_asked:
        raise InterruptedRunError(
            f"{session.stop.signal or 'a signal to another rank'}: stopped at the end of "
            f"{session.training.describe()}, which is saved; go on with the same command and "
            f"--resume (run directory '{session.run.path}')"
        )
    config = session.config
    return validation_score(
        session.model, config.data.path, precision=config.train.precision, max_samples=max_samples, held=held
    )
