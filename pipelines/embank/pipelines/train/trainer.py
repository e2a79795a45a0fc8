"""A run from its folder to its result: beginning or resuming it, its stages one after the other, its end."""

import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from embank.ctr_models import CTRModel
from embank.pipelines.config.changes import AUTO
from embank.pipelines.config.run import Config, to_plain
from embank.pipelines.data.loading.integrity import content_of
from embank.pipelines.data.schema import Schema
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.build import NO_STAGES, build
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.progress import Progress, StageProgress
from embank.pipelines.runs.result import close_run
from embank.pipelines.runs.row_folders import ROWS, TRIAL
from embank.pipelines.runs.start import Start, refuse_other_start, refuse_unfinished
from embank.pipelines.runs.state import SavedRun
from embank.pipelines.train.checkpoints import evaluate_and_save, load_best, stop_if_asked, tell
from embank.pipelines.train.execution import choose, chosen_before, plainly
from embank.pipelines.train.interrupt import StopRequest, stop_on_signals
from embank.pipelines.train.launch import refuse_differences
from embank.pipelines.train.loop import train_stage
from embank.pipelines.train.one_rank import check_for_one_rank
from embank.pipelines.train.rates import TRIAL_STEPS, climb
from embank.pipelines.train.readiness import ready_to_resume, ready_to_start
from embank.pipelines.train.session import Session
from embank.pipelines.train.stages import next_stage
from embank.pipelines.train.step import NonFiniteLossError
from embank.pipelines.train.telling import recorded
from embank.tables import TableCollection
from embank.tables.collections.stages import planned_stages, settle
from embank.tables.rows.store_spec import refuse_idle_directory
from embank.tables.sharding.processes import Processes


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
        max_steps: of a trial, see `judged`; None for a run.
    """

    def __init__(
        self,
        config: Config,
        run: str | Path,
        *,
        reporter: Reporter | None = None,
        processes: Processes | None = None,
        num_stages: int | None = None,
        max_steps: int | None = None,
    ) -> None:
        self.processes, self.num_stages, self.max_steps = processes or Processes(), num_stages, max_steps
        self.config, self.run = config, RunFolder(run)
        self.reporter = reporter if reporter is not None and self.processes.is_first else Reporter()
        self.told: list[str] = []  # before there is a log
        with self.processes.together():
            self.schema = Schema.load(config.data.path)
            self.content = content_of(Path(config.data.path), self.schema)

    def train(self, *, resume: bool = False, begin_with: str | Path | None = None) -> dict[str, Any]:
        """Trains to the end and evaluates the best checkpoint once on the test split.

        Args:
            resume: go on from the last checkpoint; a complete run just returns its result.
            begin_with: a run whose best checkpoint gives the initial tables and network, and the rows' optimizer state
                if the optimizer is the same. Vocabularies, model and tables must be the same; data, seed, rates and
                lengths may differ. It is evaluated before the first step and may be what is served in the end.

        Returns:
            What result.json holds.

        Raises:
            ConfigError, DataError, CheckpointError, BudgetError: bad input.
            InterruptedRunError: a signal stopped the run after saving it.
            NonFiniteLossError: the loss is NaN or infinite.
        """
        if self.config.train.num_threads:
            torch.set_num_threads(self.config.train.num_threads)
        plain, rows = to_plain(self.config), self.config.rows
        refuse_differences(plain, self.schema, self.processes, content=self.content)
        with self.processes.together():
            refuse_idle_directory(tier=rows.tier, directory=rows.directory, section="rows.")
            done = None
            if self.processes.is_first:
                check = ready_to_resume if resume else ready_to_start
                done = check(self.run, self.config, self.schema, content=self.content, reporter=self.reporter)
        done = self.processes.first(done)
        start = self._start_of(begin_with, resume=resume)
        if done is not None:
            return done
        if self.processes.count == 1:
            for line in check_for_one_rank(self.config, self.schema):
                self._note(line)
        with self.processes.together():
            lock = self._lock(begins=not resume)
        with lock:
            if resume:
                self.config = chosen_before(self.config, self.run)
            elif self.config.train.table_lr == AUTO:
                self.config = self._with_table_lr(start)
            self.session = self._restore(start)
            if not resume and self.processes.is_first:
                facts = None if start is None else start.to_json()
                plain = to_plain(self.config)
                self.run.create(plain, fingerprint=self.schema.fingerprint, content=self.content, start=facts)
            return self._run(self.session)

    def _start_of(self, begin_with: str | Path | None, *, resume: bool) -> Start | None:
        """What the run begins or began with; None if anew. The first process looks, all get to know."""
        start = None
        with self.processes.together():
            if self.processes.is_first:
                if resume and begin_with is not None:
                    refuse_other_start(self.run, begin_with)
                if resume:
                    start = Start.recorded(self.run)
                elif begin_with is not None:
                    start = Start.of(begin_with, config=self.config, schema=self.schema)
        found: Start | None = self.processes.first(start)
        return found

    def _lock(self, *, begins: bool) -> ExitStack:
        """The run directory, locked by the first process."""
        with ExitStack() as stack:
            if self.processes.is_first:
                stack.enter_context(self.run.lock(begins=begins, directory=self.config.rows.directory))
            return stack.pop_all()

    def _restore(self, start: Start | None) -> Session:
        """Builds the run as its last checkpoint has it, or as it begins: anew, or with another run's checkpoint."""
        saved = self.processes.first(self.run.saved())
        last = SavedRun(saved[-1], processes=self.processes) if saved else None
        begun = start.open(self.processes) if start is not None and last is None else None
        source = last or begun
        model = build(
            self.config,
            self.schema,
            data=Path(self.config.data.path),
            rows_folder=self.run.path / ROWS,
            stages=source.table_stages if source else NO_STAGES,
            processes=self.processes,
        )
        self._choose(model)
        session = Session(
            config=self.config,
            schema=self.schema,
            run=self.run,
            processes=self.processes,
            reporter=self.reporter,
            progress=last.progress() if last else Progress(),
            model=model,
            num_stages=self.num_stages,
            max_steps=self.max_steps,
        )
        if last is None:
            torch.cuda.manual_seed_all(self.config.train.seed)  # does nothing without a GPU
            if start is not None and begun is not None:
                self._begin_with(session, start, begun)
            else:
                session.begin_stage()
        else:
            session.build_stage()
            self._load_training(session, last)
        if self.processes.is_first and self.run.is_run:
            names = [stage.name for stage in session.progress.stages]
            self.run.keep_metrics(up_to_step=session.progress.evaluated_step, stages=names)
        return session

    def _note(self, line: str) -> None:
        """Tells what the log is to hold, too."""
        self.reporter.note(line)
        self.told.append(line)

    def _choose(self, model: CTRModel) -> None:
        """Chooses what the configuration leaves open, on the first process for all."""
        data, train = self.config.data, self.config.train
        num_rows = self.schema.split("train").num_rows
        num_steps = train.epochs * -(-num_rows // data.batch_size)
        rows = -(-min(data.batch_size, num_rows) // self.processes.count)
        with self.processes.together():
            chosen = None
            if self.processes.is_first:
                chosen, said = choose(model, train, batch_rows=rows, num_steps=num_steps)
                if said is not None:
                    self._note(said)
        found = self.processes.first(chosen)
        assert found is not None
        self.config = replace(self.config, train=found)

    def _with_table_lr(self, start: Start | None) -> Config:
        """The configuration with the rate of rows that does best in trials; all processes try together."""
        config = self.config
        rows = replace(config.rows, directory=None)
        tried = 0

        def score(rate: float) -> float:
            nonlocal tried
            train = replace(plainly(config.train), table_lr=rate)
            trial = Trainer(
                replace(config, train=train, rows=rows),
                self.run.path / ROWS / TRIAL,
                processes=self.processes,
                num_stages=1,
                max_steps=TRIAL_STEPS,
            )
            tried += 1
            try:
                value = trial.judged(start, stop=stop)
            except NonFiniteLossError:
                value = float("-inf")
            said = "diverges" if value == float("-inf") else f"{value:.4f} on validation"
            self._note(f"trial {tried}: train.table_lr {rate:g}: {said}")
            return value

        with stop_on_signals(tell=self.reporter.note) as stop:
            self._note(f"train.table_lr is auto: rates are tried, each in up to {TRIAL_STEPS:,} steps of this training")
            scores = climb(score)
        best = max(scores, key=scores.__getitem__)
        if scores[best] == float("-inf"):
            raise NonFiniteLossError(
                f"training diverges at every rate of rows that was tried, down to {min(scores):g}; lower train.lr, or "
                "look at the numeric columns (`embank data describe`)"
            )
        self._note(f"train.table_lr {best:g}: the best of {len(scores)} on validation")
        return replace(config, train=replace(config.train, table_lr=best))

    def judged(self, start: Start | None, *, stop: StopRequest) -> float:
        """What validation says after `max_steps` steps of training in the first stage, the higher the better; nothing
        is left behind, and the test split is not read.

        Args:
            start: what the training begins with; None begins anew.
            stop: set by a signal.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
            InterruptedRunError: a signal came.
        """
        try:
            session = self._restore(start)
            session.stop = stop
            train_stage(session)
            progress = session.progress
            assert progress.best_value is not None
            return -progress.best_value if progress.monitor == "logloss" else progress.best_value
        finally:
            if self.processes.is_first:
                shutil.rmtree(self.run.path, ignore_errors=True)

    def _begin_with(self, session: Session, start: Start, saved: SavedRun) -> None:
        """Begins in the last stage of the tables' methods, with what another run has trained in it."""
        assert isinstance(session.model.tables, TableCollection)
        with self.processes.together():
            refuse_unfinished(session.model.tables, start, begun=len(saved.progress().stages))
        done = planned_stages(session.model.tables)[:-1]
        session.progress.stages = [StageProgress(name=stage.name, first_epoch=0) for stage in done]
        session.begin_stage()
        self._note(start.load(session.model, saved))
        session.is_to_be_judged = True

    def _load_training(self, session: Session, last: SavedRun) -> None:
        training = session.training
        last.load_training(
            session.model,
            optimizer=training.stepper.optimizer,
            search_optimizer=None if training.search is None else training.search.optimizer,
        )
        session.tables.begin(num_steps=training.num_steps, step=session.progress.stage.steps)

    def _run(self, session: Session) -> dict[str, Any]:
        """From wherever the run stands to its end."""
        with ExitStack() as stack:
            session.stop = stack.enter_context(stop_on_signals(tell=lambda line: session.reporter.note(line)))
            if self.processes.is_first:
                board = self.run.path / "tensorboard" if self.config.train.tensorboard else None
                step, count = session.progress.step, self.processes.count
                told = recorded(
                    self.reporter, log=self.run.log, board=board, resumed_at=step, num_ranks=count, told=self.told
                )
                session.reporter = stack.enter_context(told)
            try:
                if session.is_to_be_judged:
                    evaluate_and_save(session)
                    stop_if_asked(session)
                train_stage(session)
                while not session.training.is_last:
                    next_stage(session)
                    train_stage(session)
                return self._finish(session) if session.training.is_served else _judged(session)
            finally:
                session.reporter.close()

    def _finish(self, session: Session) -> dict[str, Any]:
        """Writes the bundle of the checkpoint that validation chose, and reads the test split once, by that bundle."""
        progress, config = session.progress, self.config
        load_best(session)
        settle(session.tables)
        chosen = {
            "split": "test",
            "stage": session.training.stage.name,
            "step": progress.best_step,
            "epoch": progress.epoch if progress.chosen is None else progress.chosen.epoch,
        }
        with self.processes.together():
            result = None
            if self.processes.is_first:
                result = close_run(
                    self.run,
                    session.model,
                    config=config,
                    schema=self.schema,
                    progress=progress,
                    tell=lambda scores: tell(session, {**chosen, **scores}),
                )
        result = self.processes.first(result)
        assert result is not None
        if "from" in result and progress.best_step == 0:
            session.reporter.note(
                f"no evaluation was better than that before the first step, so the run serves what run "
                f"'{result['from']['run']}' had; lower rates (train.lr, train.table_lr) or more rows may help"
            )
        is_open = config.train.decay in ("none", "plateau") and not session.training.only_end_counts
        if is_open and progress.best_step == progress.step:
            session.reporter.note(
                f"the last evaluation was the best one, so more than {config.train.epochs} "
                f"{'epoch' if config.train.epochs == 1 else 'epochs'} may do better: with train.decay=plateau and "
                "train.patience=2 a large train.epochs ends by itself, and train.table_lr=auto finds the rate of rows"
            )
        if progress.loss_note is not None:
            session.reporter.note(progress.loss_note)
        return result


def _judged(session: Session) -> dict[str, Any]:
    """What validation says of the best checkpoint of a stage that is not served."""
    progress = session.progress
    assert progress.chosen is not None
    return {"stage": session.training.stage.name, "step": progress.best_step, "valid_auc": progress.chosen.auc}
