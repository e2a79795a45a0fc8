"""The training loop: steps, evaluations, checkpoints, early stopping, resuming."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from embank.ctr_models import CTRModel
from embank.pipelines.data.batch import Position
from embank.pipelines.data.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.training.build import build
from embank.pipelines.training.bundle import write_bundle
from embank.pipelines.training.config import Config, to_plain
from embank.pipelines.training.evaluation import evaluate
from embank.pipelines.training.interrupt import StopRequest, stop_on_signals
from embank.pipelines.training.reporter import Reporter
from embank.pipelines.training.run_folder import ROWS, RunFolder
from embank.pipelines.training.step import Stepper
from embank.pipelines.training.tensorboard import TensorBoard
from embank.tables import CheckpointError, DataError, TableCollection, WorkError
from embank.tables.bundle import folder_nbytes
from embank.tables.checkpoint import load_checkpoint, refuse_non_finite, save_checkpoint

WARMUP_STEPS = 3
"""First steps of a process that the speed leaves out: memory is touched for the first time, networks are compiled."""


class InterruptedRunError(WorkError):
    """A signal stopped the run; it was saved and can be resumed."""


@dataclass(kw_only=True)
class Progress:
    """Where a run stands; saved with every checkpoint.

    Args:
        step: optimizer steps done.
        epoch: the current epoch.
        position: of the loader in it; None at its start.
        best_step: step of the best evaluation on validation, None before the first.
        best_value: of the monitored metric there.
        monitor: the metric that checkpoints are chosen by; log loss where AUC is undefined.
        num_worse: evaluations since then.
        num_plateaus: evaluations without improvement in the whole run.
        evaluated_step: step of the last evaluation.
        loss_sum, loss_rows: training log loss and rows since the last evaluation.
        rows: trained in all, without the first steps of each process (see `WARMUP_STEPS`).
        seconds: spent on them, waiting for the loader included, evaluations and checkpoints not.
        seconds_waiting: of them, waiting for the loader.
        is_done: nothing is left to train.
    """

    step: int = 0
    epoch: int = 0
    position: Position | None = None
    best_step: int | None = None
    best_value: float | None = None
    monitor: str = "auc"
    num_worse: int = 0
    num_plateaus: int = 0
    evaluated_step: int = -1
    loss_sum: float = 0.0
    loss_rows: int = 0
    rows: int = 0
    seconds: float = 0.0
    seconds_waiting: float = 0.0
    is_done: bool = False

    @property
    def samples_per_s(self) -> float:
        """Training speed; 0 before anything was timed."""
        return self.rows / self.seconds if self.seconds else 0.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Progress":
        """The inverse of `asdict`."""
        position = values["position"]
        return cls(**{**values, "position": None if position is None else Position(**position)})


class Trainer:
    """Trains the model of a configuration in a run directory.

    Args:
        config: the configuration.
        run: the run directory.
        reporter: is told how it goes.
    """

    def __init__(self, config: Config, run: Path, *, reporter: Reporter | None = None) -> None:
        self.config, self.run = config, RunFolder(run)
        self.reporter = reporter or Reporter()
        self.schema = Schema.load(config.data.path)

    def train(self, *, resume: bool = False) -> dict[str, Any]:
        """Trains to the end and evaluates the best checkpoint once on the test split.

        Args:
            resume: go on from the last checkpoint; a complete run just returns its result.

        Returns:
            What result.json holds.

        Raises:
            ConfigError, DataError, CheckpointError, BudgetError: bad input.
            InterruptedRunError: a signal stopped the run after saving it.
            NonFiniteLossError: the loss is NaN or infinite.
        """
        if self.config.train.num_threads:
            torch.set_num_threads(self.config.train.num_threads)
        plain = to_plain(self.config)
        if resume and not self.run.is_run:
            raise CheckpointError(f"'{self.run.path}' holds no run to resume; start it without --resume")
        if resume:
            self.run.refuse_changes(plain, fingerprint=self.schema.fingerprint)
            if self.run.result.is_file():
                return self.run.read_result()
        else:
            self.run.refuse_used()
            self._refuse_unusable_splits()
        with self.run.lock():
            self._build()
            if not resume:
                self.run.create(plain, fingerprint=self.schema.fingerprint)
            return self._run()

    def _run(self) -> dict[str, Any]:
        """From wherever the run stands to its end."""
        with stop_on_signals() as stop, TensorBoard(self.run.path, enabled=self.config.train.tensorboard) as board:
            self.board = board
            try:
                self._load_last()
                self._train(stop)
                return self._finish()
            finally:
                self.reporter.close()

    def _refuse_unusable_splits(self) -> None:
        for name in ("train", "valid", "test"):
            if not self.schema.split(name).num_rows:
                raise DataError(
                    f"'{self.config.data.path}' has no rows in its {name} split; training needs train, valid and test. "
                    "Prepare the data with other split ratios"
                )

    def _build(self) -> None:
        self.model: CTRModel = build(
            self.config, self.schema, data=Path(self.config.data.path), rows_folder=self.run.path / ROWS
        )
        assert isinstance(self.model.tables, TableCollection)
        self.tables = self.model.tables
        data, train = self.config.data, self.config.train
        num_rows = self.schema.split("train").num_rows
        self.stepper = Stepper(self.model, config=train, batch_size=data.batch_size, num_rows=num_rows)
        self.loader = Loader(
            data.path,
            "train",
            batch_size=data.batch_size,
            shuffle=data.shuffle,
            seed=train.seed,
            buffer_rows=data.buffer_rows,
            address=self.stepper.address,
            prefetch=data.prefetch,
        )
        self.num_steps = self.stepper.num_steps
        self.progress, self.num_steps_here = Progress(), 0
        self.saved_at = time.monotonic()

    def _train(self, stop: StopRequest) -> None:
        progress, train = self.progress, self.config.train
        self.reporter.start(num_steps=self.num_steps, step=progress.step, describe="training")
        self.saved_at = time.monotonic()
        self.model.train()
        while progress.epoch < train.epochs and not progress.is_done:
            if not self._train_epoch(stop):
                break
            progress.epoch, progress.position = progress.epoch + 1, None
            is_last = progress.epoch == train.epochs
            if (train.eval_every is None or is_last) and progress.evaluated_step != progress.step:
                self._evaluate()
            if stop:
                self._stop(stop)
        progress.is_done = True

    def _train_epoch(self, stop: StopRequest) -> bool:
        """Trains the rest of the current epoch; False if early stopping ended the run within it."""
        progress, train = self.progress, self.config.train
        batches = self.loader.epoch(progress.epoch, start=progress.position)
        begun, waited = time.monotonic(), self.loader.seconds_waited
        for batch in batches:
            loss = self.stepper(batch, step=progress.step, num_plateaus=progress.num_plateaus)
            now = time.monotonic()
            num_rows = batch.labels.numel()
            progress.step, progress.position = progress.step + 1, batch.position
            progress.loss_sum, progress.loss_rows = progress.loss_sum + loss * num_rows, progress.loss_rows + num_rows
            self.num_steps_here += 1
            if self.num_steps_here > WARMUP_STEPS:
                progress.rows, progress.seconds = progress.rows + num_rows, progress.seconds + now - begun
                progress.seconds_waiting += self.loader.seconds_waited - waited
            self.reporter.advance(
                step=progress.step,
                loss=progress.loss_sum / progress.loss_rows,
                samples_per_s=progress.samples_per_s,
            )
            if train.eval_every is not None and progress.step % train.eval_every == 0:
                self._evaluate()
                if progress.is_done:
                    return False
            elif self._checkpoint_is_due():
                self._save()
            if stop:
                self._stop(stop)
            begun, waited = time.monotonic(), self.loader.seconds_waited
        return True

    def _checkpoint_is_due(self) -> bool:
        every = self.config.train.checkpoint_every
        minutes = (time.monotonic() - self.saved_at) / 60
        return minutes >= self.config.train.checkpoint_minutes or (
            every is not None and self.progress.step % every == 0
        )

    def _stop(self, stop: StopRequest) -> None:
        self._save()
        raise InterruptedRunError(
            f"{stop.signal}: stopped after step {self.progress.step} of {self.num_steps}, which is saved; go on with the same "
            f"command and --resume (run directory '{self.run.path}')"
        )

    def _evaluate(self) -> None:
        progress, train = self.progress, self.config.train
        record = {
            "split": "valid",
            "step": progress.step,
            "epoch": progress.epoch,
            "train_logloss": progress.loss_sum / max(1, progress.loss_rows),
            **evaluate(self.model, self.config.data.path, "valid", precision=train.precision),
        }
        self.model.train()
        progress.loss_sum, progress.loss_rows, progress.evaluated_step = 0.0, 0, progress.step
        self._judge(record)
        self.run.append_metrics(record)
        self.board.write(record)
        self.reporter.evaluated(record)
        self._save()

    def _judge(self, record: Mapping[str, Any]) -> None:
        """Is this the best evaluation so far, and is it time to stop?"""
        progress, train = self.progress, self.config.train
        progress.monitor = train.monitor
        if record[train.monitor] is None:
            progress.monitor = "logloss"
            if progress.best_step is None:
                self.reporter.note(f"{record['auc_undefined']}; choosing checkpoints by log loss instead")
        value = record[progress.monitor]
        if progress.best_value is None or (
            value > progress.best_value if progress.monitor == "auc" else value < progress.best_value
        ):
            progress.best_value, progress.best_step, progress.num_worse = value, progress.step, 0
            return
        progress.num_worse, progress.num_plateaus = progress.num_worse + 1, progress.num_plateaus + 1
        progress.is_done = train.patience is not None and progress.num_worse >= train.patience

    def _save(self) -> None:
        """Writes a checkpoint; only the best and the last one are kept."""
        progress = self.progress
        for name, parameter in self.model.network.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise WorkError(
                    f"the network's parameter '{name}' is not finite after step {progress.step}, so nothing was saved; "
                    "start again with a lower train.lr"
                )
        refuse_non_finite(self.tables)
        for rows in self.tables.row_stores():
            rows.flush()
        folder = self.run.checkpoint(progress.step, evaluated=progress.evaluated_step == progress.step)
        if not folder.exists():
            dense = {
                "network": self.model.network.state_dict(),
                "methods": self.tables.methods.state_dict(),
                "optimizer": self.stepper.optimizer.state_dict(),
                "generator": torch.get_rng_state(),
            }
            save_checkpoint(folder, tables=self.tables, dense=dense, meta={"progress": asdict(progress)})
        best = progress.best_step
        self.run.keep_checkpoints(
            {folder} | ({self.run.checkpoint(best, evaluated=True)} if best is not None else set())
        )
        self.saved_at = time.monotonic()

    def _load_last(self) -> None:
        saved = self.run.saved()
        if not saved:
            self.run.keep_metrics(up_to_step=-1)
            return
        meta = self._load(saved[-1])
        self.progress = Progress.from_json(meta["progress"])
        for rows in self.tables.row_stores():
            rows.load_step(self.progress.step)
        self.run.keep_metrics(up_to_step=self.progress.evaluated_step)

    def _load(self, folder: Path) -> dict[str, Any]:
        dense, meta = load_checkpoint(folder, tables=self.tables)
        self.model.network.load_state_dict(dense["network"])
        self.tables.methods.load_state_dict(dense["methods"])
        self.stepper.optimizer.load_state_dict(dense["optimizer"])
        torch.set_rng_state(dense["generator"])
        return meta

    def _finish(self) -> dict[str, Any]:
        """Reads the test split once, with the checkpoint that validation chose."""
        progress, config = self.progress, self.config
        assert progress.best_step is not None
        if progress.best_step != progress.step:
            self._load(self.run.checkpoint(progress.best_step, evaluated=True))
        scores = evaluate(self.model, config.data.path, "test", precision=config.train.precision)
        record = {"split": "test", "step": progress.best_step, "epoch": progress.epoch, **scores}
        self.run.append_metrics(record)
        self.board.write(record)
        self.reporter.evaluated(record)
        bundle_nbytes = self._write_bundle(step=progress.best_step)
        serving, plain = self.tables.nbytes("serving"), self.tables.plain_nbytes
        result = {
            **scores,
            f"valid_{progress.monitor}": progress.best_value,
            "best_step": progress.best_step,
            "num_steps": progress.step,
            "serving_bytes": serving,
            "training_bytes": self.tables.nbytes("training"),
            "bundle_bytes": bundle_nbytes,
            "plain_bytes": plain,
            "serving_ratio": serving / plain,
            "samples_per_s": progress.samples_per_s,
            "loader_share": progress.seconds_waiting / max(progress.seconds, 1e-9),
            "train_seconds": progress.seconds,
            "seed": config.train.seed,
            "model": config.model["name"],
            "method": config.tables.default.method,
            "budget": config.tables.default.budget,
        }
        self.run.plot()
        self.run.write_result(result)
        shutil.rmtree(
            self.run.path / ROWS, ignore_errors=True
        )  # working files of the disk tier; the checkpoint has them
        return result

    def _write_bundle(self, *, step: int) -> int:
        """The model as it stands in its inference form; returns the bytes of the files."""
        self.run.remove_bundle()
        write_bundle(self.run.bundle, self.model, config=self.config, schema=self.schema, step=step)
        return folder_nbytes(self.run.bundle)
