"""The step loop: the epochs of a stage, and what their steps cost."""

import time
from itertools import islice

import torch

from embank.pipelines.train.checkpoints import evaluate_and_save, is_due, save, stop_if_asked, stop_now
from embank.pipelines.train.optimizer import training_nbytes
from embank.pipelines.train.session import Session


def train_stage(session: Session) -> None:
    """Trains the rest of the current stage; at its end there is an evaluation, and a checkpoint of it."""
    progress, training, train = session.progress, session.training, session.config.train
    session.reporter.start(
        training.describe(), total=training.num_steps, unit="steps", done=progress.stage.steps, speed="samples"
    )
    session.saved_at = time.monotonic()
    session.model.train()
    while progress.stage_epoch < training.num_epochs and not progress.is_done:
        if not _train_epoch(session):
            break
        progress.epoch, progress.position = progress.epoch + 1, None
        is_last = progress.stage_epoch == training.num_epochs
        if (train.eval_every is None or is_last) and progress.evaluated_step != progress.step:
            evaluate_and_save(session)
        stop_if_asked(session)
    # An optimizer's state comes with its first step, so bytes are counted after the last one.
    nbytes = torch.tensor(training_nbytes(session.tables, training.optimizers))
    progress.stage.training_bytes = int(session.processes.sum(nbytes))


def _train_epoch(session: Session) -> bool:
    """Trains the rest of the current epoch, or of the stage; False if early stopping ended the stage within it."""
    progress, training, processes = session.progress, session.training, session.processes
    eval_every = session.config.train.eval_every
    batches = training.loader.epoch(progress.epoch, start=progress.position)
    begun, waited = time.monotonic(), training.seconds_waited
    for batch in training.stepper.looking_ahead(islice(batches, training.num_steps - progress.stage.steps)):
        loss, (is_asked, checkpoint_is_due) = training.stepper(
            batch,
            step=progress.stage.steps,
            num_plateaus=progress.num_plateaus,
            votes=(bool(session.stop), is_due(session)),
        )
        num_rows = num_samples = batch.num_global_rows
        if training.search is not None:
            searched = training.search()
            num_samples += searched.num_global_rows
            progress.search_position = searched.position
        progress.step, progress.position = progress.step + 1, batch.position
        progress.loss_sum, progress.loss_rows = progress.loss_sum + loss * num_rows, progress.loss_rows + num_rows
        seconds = time.monotonic() - begun
        training.num_steps_here += 1
        progress.book(num_samples, seconds=seconds, waited=training.seconds_waited - waited, is_warm=training.is_warm)
        _tell_step(session, loss=loss, samples_per_s=num_samples / seconds)
        if eval_every is not None and progress.stage.steps % eval_every == 0:
            evaluate_and_save(session)
            if progress.is_done:
                return False
        elif checkpoint_is_due:
            save(session)
        if is_asked or (processes.count == 1 and session.stop):
            stop_now(session)
        begun, waited = time.monotonic(), training.seconds_waited  # evaluations and checkpoints are not training
    return True


def _tell_step(session: Session, *, loss: float, samples_per_s: float) -> None:
    progress, reporter = session.progress, session.reporter
    measured = {"loss": loss, **session.training.stepper.rates, "samples_per_s": samples_per_s}
    reporter.measured(step=progress.step, values=measured)
    reporter.advance(progress.stage.steps, per_s=progress.samples_per_s, loss=progress.loss_sum / progress.loss_rows)
