"""The training loop: stages, steps, evaluations, checkpoints, early stopping, resuming."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torchrec import KeyedJaggedTensor

from embank.ctr_models import CTRModel
from embank.pipelines.config.run import Config, to_plain
from embank.pipelines.data.loading.integrity import content_of
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import NO_STAGES, build, initial_network
from embank.pipelines.runs.evaluation import evaluate, validation_score
from embank.pipelines.runs.folder import ROWS, RunFolder
from embank.pipelines.runs.result import close_run
from embank.pipelines.runs.state import SavedRun, save_run
from embank.pipelines.train.interrupt import stop_on_signals
from embank.pipelines.train.launch import refuse_differences
from embank.pipelines.train.optimizer import training_nbytes
from embank.pipelines.train.progress import Progress
from embank.pipelines.train.readiness import ready_to_resume, ready_to_start
from embank.pipelines.train.reporter import Reporter
from embank.pipelines.train.step import SearchStepper, Stepper
from embank.pipelines.train.telling import recorded
from embank.tables import TableCollection, WorkError
from embank.tables.collections.stages import advance, planned_stages, search_parameters, settle
from embank.tables.ids.hashing import seed_of
from embank.tables.sharding.processes import Processes

WARMUP_STEPS = 3
"""First steps of a process and of a stage that the speed leaves out: memory is touched for the first time, networks are
compiled."""


class InterruptedRunError(WorkError):
    """A signal stopped the run; it was saved and can be resumed."""


class Trainer:
    """Trains the model of a configuration in a run directory.

    Args:
        config: the configuration.
        run: the run directory.
        reporter: is told how it goes, on the first process.
        processes: those that train together, each with a trainer of the same configuration; rows are spread over them
            by a plan, batches divided, and the first one keeps the run directory, on a file system that all of them
            see.
        num_stages: train only so many of the methods' stages (OptEmbed's supernet, for example); None trains all. A run
            that ends before the last stage has checkpoints and no result: the test split is not read, and what it has
            learned is not served.
    """

    def __init__(
        self,
        config: Config,
        run: str | Path,
        *,
        reporter: Reporter | None = None,
        processes: Processes | None = None,
        num_stages: int | None = None,
    ) -> None:
        self.processes, self.num_stages = processes or Processes(), num_stages
        self.config, self.run = config, RunFolder(run)
        self.reporter = reporter if reporter is not None and self.processes.is_first else Reporter()
        with self.processes.together():
            self.schema = Schema.load(config.data.path)
            self.content = content_of(Path(config.data.path), self.schema)

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
        refuse_differences(plain, self.schema, self.processes, content=self.content)
        with self.processes.together():
            done = None
            if self.processes.is_first:
                check = ready_to_resume if resume else ready_to_start
                done = check(self.run, self.config, self.schema, content=self.content, note=self.reporter.note)
        done = self.processes.first(done)
        if done is not None:
            return done
        with self.processes.together():
            lock = self._lock(begins=not resume)
        with lock:
            self._restore()
            if not resume and self.processes.is_first:
                self.run.create(plain, fingerprint=self.schema.fingerprint, content=self.content)
            return self._run()

    def _lock(self, *, begins: bool) -> ExitStack:
        """The run directory, locked by the first process."""
        with ExitStack() as stack:
            if self.processes.is_first:
                stack.enter_context(self.run.lock(begins=begins))
            return stack.pop_all()

    def _run(self) -> dict[str, Any]:
        """From wherever the run stands to its end."""
        with ExitStack() as stack:
            self.stop = stack.enter_context(stop_on_signals())
            if self.processes.is_first:
                board = self.run.path / "tensorboard" if self.config.train.tensorboard else None
                step, count = self.progress.step, self.processes.count
                told = recorded(self.reporter, log=self.run.log, board=board, resumed_at=step, num_ranks=count)
                self.reporter = stack.enter_context(told)
            try:
                self._train_stage()
                while not self.is_last_stage:
                    self._advance()
                    self._train_stage()
                return self._finish() if self.is_served else self._judged()
            finally:
                self.reporter.close()

    def _restore(self) -> None:
        """Builds the run as its last checkpoint has it, or as it begins."""
        saved = self.processes.first(self.run.saved())
        last = SavedRun(saved[-1], processes=self.processes) if saved else None
        self.progress = last.progress() if last else Progress()
        self.model: CTRModel = build(
            self.config,
            self.schema,
            data=Path(self.config.data.path),
            rows_folder=self.run.path / ROWS,
            stages=last.table_stages if last else NO_STAGES,
            processes=self.processes,
        )
        if last is None:
            torch.cuda.manual_seed_all(self.config.train.seed)  # does nothing without a GPU
            self._begin_stage()
        else:
            self._build_stage()
            last.load_training(self.stepper, self.search)
            self.tables.begin(num_steps=self.num_steps, step=self.progress.stage.steps)
        if self.processes.is_first and self.run.is_run:
            begun = [stage.name for stage in self.progress.stages]
            self.run.keep_metrics(up_to_step=self.progress.evaluated_step, stages=begun)

    def _begin_stage(self) -> None:
        """Goes on to the stage that the model's tables are in."""
        assert isinstance(self.model.tables, TableCollection)
        stage = planned_stages(self.model.tables)[len(self.progress.stages)]
        self.progress.begin_stage(stage.name)
        self._build_stage()
        if self.processes.rank:  # each process drops out other units; the network's initial values are the same
            torch.manual_seed(seed_of(self.config.train.seed, "rank", self.processes.rank, len(self.progress.stages)))

    def _build_stage(self) -> None:
        """Everything that trains the model in the current stage: fresh optimizers, loaders, and how long it lasts."""
        assert isinstance(self.model.tables, TableCollection)
        self.tables = self.model.tables
        data, train = self.config.data, self.config.train
        self.stages, number = planned_stages(self.tables), len(self.progress.stages) - 1
        self.stage = self.stages[number]
        self.is_served = number == len(self.stages) - 1
        self.is_last_stage = self.is_served or number + 1 == self.num_stages
        num_rows = self.schema.split("train").num_rows
        epoch_steps = -(-num_rows // data.batch_size)
        self.num_steps = max(1, round(self.stage.epochs * train.epochs * epoch_steps))
        self.num_epochs = -(-self.num_steps // epoch_steps)
        searched = search_parameters(self.tables) if self.stage.alternates else []
        self.stepper = Stepper(
            self.model,
            config=train,
            batch_size=data.batch_size,
            num_rows=num_rows,
            num_steps=self.num_steps,
            held=searched,
        )
        self.loader = self._loader("train", address=self.stepper.address)
        self.search: SearchStepper | None = None
        if searched:
            batches = self._loader("valid", address=self.tables.address)
            self.search = SearchStepper(self.model, config=train, loader=batches, start=self.progress.search_position)
        self.num_steps_here, self.saved_at = 0, time.monotonic()

    def _loader(self, split: str, *, address: Callable[[KeyedJaggedTensor], Any]) -> Loader:
        data = self.config.data
        return Loader(
            data.path,
            split,
            batch_size=data.batch_size,
            shuffle=data.shuffle,
            seed=self.config.train.seed,
            buffer_rows=data.buffer_rows,
            address=address,
            prefetch=data.prefetch,
            rank=self.processes.rank,
            world_size=self.processes.count,
        )

    def _train_stage(self) -> None:
        """Trains the rest of the current stage; at its end there is an evaluation, and a checkpoint of it."""
        progress, train = self.progress, self.config.train
        self.reporter.start(num_steps=self.num_steps, step=progress.stage.steps, describe=self._describe())
        self.saved_at = time.monotonic()
        self.model.train()
        while progress.stage_epoch < self.num_epochs and not progress.is_done:
            if not self._train_epoch():
                break
            progress.epoch, progress.position = progress.epoch + 1, None
            is_last = progress.stage_epoch == self.num_epochs
            if (train.eval_every is None or is_last) and progress.evaluated_step != progress.step:
                self._evaluate()
            self._stop_if_asked()
        optimizers = [part.optimizer for part in (self.stepper, self.search) if part is not None]
        nbytes = torch.tensor(
            training_nbytes(self.tables, optimizers)
        )  # an optimizer's state comes with its first step
        progress.stage.training_bytes = int(self.processes.sum(nbytes))

    def _describe(self) -> str:
        if len(self.stages) == 1:
            return "training"
        return f"stage {len(self.progress.stages)} of {len(self.stages)}, {self.stage.name}"

    def _train_epoch(self) -> bool:
        """Trains the rest of the current epoch, or of the stage; False if early stopping ended the stage within it."""
        progress, train = self.progress, self.config.train
        batches = self.loader.epoch(progress.epoch, start=progress.position)
        begun, waited = time.monotonic(), self._seconds_waited()
        for batch in self.stepper.looking_ahead(islice(batches, self.num_steps - progress.stage.steps)):
            loss, (is_asked, is_due) = self.stepper(
                batch,
                step=progress.stage.steps,
                num_plateaus=progress.num_plateaus,
                votes=(bool(self.stop), self._checkpoint_is_due()),
            )
            num_rows = num_samples = batch.num_global_rows
            if self.search is not None:
                searched = self.search()
                num_samples += searched.num_global_rows
                progress.search_position = searched.position
            progress.step, progress.position = progress.step + 1, batch.position
            progress.loss_sum, progress.loss_rows = progress.loss_sum + loss * num_rows, progress.loss_rows + num_rows
            seconds = time.monotonic() - begun
            self.num_steps_here += 1
            is_warm, waited = self.num_steps_here > WARMUP_STEPS, self._seconds_waited() - waited
            progress.book(num_samples, seconds=seconds, waited=waited, is_warm=is_warm)
            measured = {"loss": loss, **self.stepper.rates, "samples_per_s": num_samples / seconds}
            self.reporter.measured(step=progress.step, values=measured)
            self.reporter.advance(
                step=progress.stage.steps,
                loss=progress.loss_sum / progress.loss_rows,
                samples_per_s=progress.samples_per_s,
            )
            if train.eval_every is not None and progress.stage.steps % train.eval_every == 0:
                self._evaluate()
                if progress.is_done:
                    return False
            elif is_due:
                self._save()
            if is_asked or (self.processes.count == 1 and self.stop):
                self._stop_now()
            begun, waited = time.monotonic(), self._seconds_waited()
        return True

    def _seconds_waited(self) -> float:
        return self.loader.seconds_waited + (self.search.loader.seconds_waited if self.search else 0.0)

    def _checkpoint_is_due(self) -> bool:
        """Whether the step that begins now should end with a checkpoint."""
        every = self.config.train.checkpoint_every
        minutes = (time.monotonic() - self.saved_at) / 60
        return minutes >= self.config.train.checkpoint_minutes or (
            every is not None and (self.progress.step + 1) % every == 0
        )

    def _stop_if_asked(self) -> None:
        """Between epochs: processes agree whether any of them was told to stop. Within one they agree in each step."""
        (is_asked,) = self.processes.any(bool(self.stop))
        if is_asked:
            self._stop_now()

    def _stop_now(self) -> None:
        self._save()
        stage = "" if len(self.stages) == 1 else f" of {self._describe()}"
        raise InterruptedRunError(
            f"{self.stop.signal or 'a signal to another rank'}: stopped after step {self.progress.stage.steps} of "
            f"{self.num_steps}{stage}, which is saved; go on "
            f"with the same command and --resume (run directory '{self.run.path}')"
        )

    def _evaluate(self) -> None:
        progress, train = self.progress, self.config.train
        settle(self.tables)
        self.processes.average_buffers(self.model.network, self.tables.methods)  # what is served is what is evaluated
        record = {
            "split": "valid",
            "stage": self.stage.name,
            "step": progress.step,
            "epoch": progress.epoch,
            "train_logloss": progress.loss_sum / progress.loss_rows if progress.loss_rows else None,
            **evaluate(self.model, self.config.data.path, "valid", precision=train.precision),
        }
        self.model.train()
        progress.loss_sum, progress.loss_rows, progress.evaluated_step = 0.0, 0, progress.step
        # What counts of a search that is not followed by a training, and of a schedule that must run out, is the end.
        only_end = self.stage.is_search if self.is_served else self.stage.hands_over == "end"
        note = progress.judge(record, monitor=train.monitor, patience=train.patience, only_end=only_end)
        if note is not None:
            self.reporter.note(note)
        self._tell(record)
        self._save()

    def _tell(self, record: dict[str, Any]) -> None:
        """Writes an evaluation down and shows it."""
        if self.processes.is_first:
            self.run.append_metrics(record)
        self.reporter.evaluated(record)

    def _save(self) -> None:
        """Writes a checkpoint; only the last one and the one to serve are kept."""
        progress = self.progress
        folder = self._checkpoint(progress.step, evaluated=progress.is_evaluated)
        save_run(folder, stepper=self.stepper, search=self.search, progress=progress)
        best = progress.best_step
        if self.processes.is_first:
            self.run.keep_checkpoints(
                {folder} | ({self._checkpoint(best, evaluated=True)} if best is not None else set())
            )
        self.saved_at = time.monotonic()

    def _checkpoint(self, step: int, *, evaluated: bool) -> Path:
        return self.run.checkpoints / self.progress.checkpoint_name(step, evaluated=evaluated)

    def _advance(self) -> None:
        """Goes on to the next stage with what this one has found, and saves its beginning."""
        begun = time.monotonic()
        self.reporter.note(f"{self._describe()} is done; preparing the next stage")
        self._load_best()
        tables = advance(self.tables, score=self._score)
        self.progress.stage.seconds += time.monotonic() - begun
        is_fresh = self.stages[len(self.progress.stages)].fresh_network
        network = initial_network(self.config, self.schema).to(tables.device) if is_fresh else self.model.network
        self.model = CTRModel(tables, network)
        if is_fresh:
            torch.cuda.manual_seed_all(self.config.train.seed)
        self._begin_stage()
        if self.is_last_stage and not is_fresh:  # what further training may only make worse
            self._evaluate()
        else:
            self._save()
        self._stop_if_asked()

    def _score(self, *, max_samples: int | None = None) -> float:
        """What methods search by: the model as it stands, on validation."""
        (is_asked,) = self.processes.any(bool(self.stop))
        if is_asked:
            raise InterruptedRunError(
                f"{self.stop.signal or 'a signal to another rank'}: stopped at the end of {self._describe()}, which "
                "is saved; go on with the same command and "
                f"--resume (run directory '{self.run.path}')"
            )
        config = self.config
        return validation_score(self.model, config.data.path, precision=config.train.precision, max_samples=max_samples)

    def _load_best(self) -> None:
        """Takes the model back to the checkpoint of this stage that validation chose."""
        best = self.progress.best_step
        assert best is not None
        if best != self.progress.step:
            folder = self._checkpoint(best, evaluated=True)
            SavedRun(folder, processes=self.processes).load_model(self.model)

    def _judged(self) -> dict[str, Any]:
        """What validation says of the best checkpoint of a stage that is not served."""
        progress = self.progress
        assert progress.chosen is not None
        return {"stage": self.stage.name, "step": progress.best_step, "valid_auc": progress.chosen.auc}

    def _finish(self) -> dict[str, Any]:
        """Reads the test split once, with the checkpoint that validation chose."""
        progress, config = self.progress, self.config
        self._load_best()
        settle(self.tables)
        scores = evaluate(self.model, config.data.path, "test", precision=config.train.precision)
        self._tell(
            {
                "split": "test",
                "stage": self.stage.name,
                "step": progress.best_step,
                "epoch": progress.epoch if progress.chosen is None else progress.chosen.epoch,
                **scores,
            }
        )
        with self.processes.together():
            result = None
            if self.processes.is_first:
                result = close_run(
                    self.run, self.model, config=config, schema=self.schema, progress=progress, scores=scores
                )
        result = self.processes.first(result)
        assert result is not None
        if progress.loss_note is not None:
            self.reporter.note(progress.loss_note)
        return result
