"""Where a training stands still: evaluations on validation, checkpoints, and stopping after one."""

import time
from pathlib import Path
from typing import Any

from embank.ctr_models import CTRModel
from embank.pipelines.runs.build import served_model
from embank.pipelines.runs.evaluate import evaluate
from embank.pipelines.runs.state import SavedRun, save_run
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.session import Session
from embank.tables.collections.stages import settle
from embank.tables.errors import ConfigError


def evaluate_and_save(session: Session) -> None:
    """Evaluates the model on validation, remembers whether it is the best so far, and writes a checkpoint."""
    progress, train = session.progress, session.config.train
    settle(session.tables)
    model = _served(session) if session.training.is_through_codec else session.model
    # What is served is what is evaluated: the means of the statistics that processes keep.
    session.processes.average_buffers(session.model.network, session.tables.methods)
    record = {
        "split": "valid",
        "stage": session.training.stage.name,
        "step": progress.step,
        "epoch": progress.epoch,
        "train_logloss": progress.loss_sum / progress.loss_rows if progress.loss_rows else None,
        **evaluate(
            model,
            session.config.data.path,
            "valid",
            precision=train.precision,
            compiled=session.training.stepper.compiled,
        ),
    }
    session.model.train()
    progress.loss_sum, progress.loss_rows, progress.evaluated_step = 0.0, 0, progress.step
    note = progress.judge(
        record, monitor=train.monitor, patience=train.patience, only_end=session.training.only_end_counts
    )
    if note is not None:
        session.reporter.note(note)
    tell(session, record)
    save(session)


def _served(session: Session) -> CTRModel:
    """The model over its tables as they will be served.

    Raises:
        ConfigError: the codec can't hold rows that training begins with.
        NonFiniteLossError: it can't hold what training has made of them.
    """
    try:
        return served_model(session.config, session.model)
    except ConfigError as error:
        if not session.progress.stage.steps:
            raise
        where = f"before the evaluation after step {session.progress.step}"
        raise session.training.stepper.uncoded(where, error) from error


def tell(session: Session, record: dict[str, Any]) -> None:
    """Writes an evaluation down and shows it."""
    if session.processes.is_first and not session.is_trial:
        session.run.append_metrics(record)
    session.reporter.evaluated(record)


def save(session: Session) -> None:
    """Writes a checkpoint; only the last one and the one to serve are kept. A trial has none."""
    if session.is_trial:
        return
    progress, training = session.progress, session.training
    folder = _checkpoint(session, progress.step, evaluated=progress.is_evaluated)
    save_run(
        folder,
        model=session.model,
        optimizer=training.stepper.optimizer,
        search_optimizer=None if training.search is None else training.search.optimizer,
        progress=progress,
    )
    best = progress.best_step
    if session.processes.is_first:
        served = set() if best is None else {_checkpoint(session, best, evaluated=True)}
        session.run.keep_checkpoints({folder} | served)
    session.saved_at = time.monotonic()


def load_best(session: Session) -> None:
    """Takes the model back to the checkpoint of this stage that validation chose."""
    best = session.progress.best_step
    assert best is not None
    if best != session.progress.step:
        folder = _checkpoint(session, best, evaluated=True)
        SavedRun(folder, processes=session.processes).load_model(session.model)


def is_due(session: Session) -> bool:
    """Whether the step that begins now should end with a checkpoint."""
    train = session.config.train
    minutes = (time.monotonic() - session.saved_at) / 60
    every = train.checkpoint_every
    return minutes >= train.checkpoint_minutes or (every is not None and (session.progress.step + 1) % every == 0)


def stop_if_asked(session: Session) -> None:
    """Between epochs: processes agree whether any of them was told to stop. Within one they agree in each step.

    Raises:
        InterruptedRunError: one was; the run is saved.
    """
    (is_asked,) = session.processes.any(bool(session.stop))
    if is_asked:
        stop_now(session)


def stop_now(session: Session) -> None:
    """Saves the run and stops.

    Raises:
        InterruptedRunError: always.
    """
    if session.is_trial:
        raise InterruptedRunError(
            f"{session.stop.signal or 'a signal to another rank'}: stopped while learning rates were tried "
            "(train.table_lr: auto), which leaves nothing behind; start the same command again",
            is_first=session.processes.is_first,
        )
    save(session)
    training = session.training
    stage = "" if len(training.planned) == 1 else f" of {training.describe()}"
    raise InterruptedRunError(
        f"{session.stop.signal or 'a signal to another rank'}: stopped after step {session.progress.stage.steps} of "
        f"{training.num_steps}{stage}, which is saved; go on "
        f"with the same command and --resume (run directory '{session.run.path}')",
        is_first=session.processes.is_first,
    )


def _checkpoint(session: Session, step: int, *, evaluated: bool) -> Path:
    return session.run.checkpoints / session.progress.checkpoint_name(step, evaluated=evaluated)
