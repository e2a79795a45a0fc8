"""The training of a language model in a run directory: steps, evaluations, checkpoints, resuming."""

import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from embank.pipelines.config.changes import MAY_CHANGE, flat, refuse_changed_config
from embank.pipelines.lm.config import LmConfig, lm_to_plain
from embank.pipelines.lm.evaluation import evaluate
from embank.pipelines.lm.model import build_model
from embank.pipelines.lm.state import LmProgress, SavedLm, save_lm
from embank.pipelines.lm.step import LmStepper
from embank.pipelines.lm.tokens import Corpus, prepare_corpus
from embank.pipelines.lm.windows import Windows
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.folder import CORPUS, RunFolder
from embank.pipelines.runs.row_folders import ROWS
from embank.pipelines.train.interrupt import InterruptedRunError, stop_on_signals
from embank.pipelines.train.session import WARMUP_STEPS
from embank.pipelines.train.telling import recorded
from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.ids.hashing import seed_of
from embank.tables.rows.store_spec import refuse_idle_directory
from embank.tables.sharding.processes import Processes
from embank.tables.storage.refusals import writing

STAGE = "train"


class LmTrainer:
    """Trains the language model of a configuration in a run directory.

    Args:
        config: the configuration.
        run: the run directory.
        reporter: is told how it goes, on the first process.
        processes: those that train together; each has its share of every batch and of the rows.
    """

    def __init__(
        self,
        config: LmConfig,
        run: str | Path,
        *,
        reporter: Reporter | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes()
        self.config, self.run = config, RunFolder(run)
        self.reporter = reporter if reporter is not None and self.processes.is_first else Reporter()

    def train(self, *, resume: bool = False) -> dict[str, Any]:
        """Trains to the end and evaluates the best checkpoint once on the test split.

        Args:
            resume: go on from the last checkpoint; a complete run just returns its result.

        Returns:
            What result.json holds.

        Raises:
            ConfigError, DataError, CheckpointError: bad input.
            InterruptedRunError: a signal stopped the run after saving it.
            NonFiniteLossError: the loss is NaN or infinite.
        """
        if self.config.train.num_threads:
            torch.set_num_threads(self.config.train.num_threads)
        with self.processes.together():
            _refuse_uneven(self.config, self.processes)
            rows = self.config.rows
            refuse_idle_directory(tier=rows.tier, directory=rows.directory, section="rows.")
        _refuse_differences(self.config, self.processes)
        with self.processes.together():
            done = self._ready(resume) if self.processes.is_first else None
        done = self.processes.first(done)
        if done is not None:
            return done
        with ExitStack() as stack:
            with self.processes.together():
                if self.processes.is_first:
                    stack.enter_context(self.run.lock(begins=not resume, directory=self.config.rows.directory))
            self._open_corpus(resume)
            self._restore()
            with self.processes.together():
                if self.processes.is_first and not resume:
                    self.run.create(lm_to_plain(self.config), fingerprint=self.corpus.fingerprint, content=None)
            return self._run()

    def _ready(self, resume: bool) -> dict[str, Any] | None:
        """Refuses a folder that this configuration can't be trained in; the result of a run that is complete."""
        if not resume:
            self.run.refuse_used()
            return None
        if not self.run.is_run:
            raise CheckpointError(f"'{self.run.path}' holds no run to resume; start it without --resume")
        may_change = MAY_CHANGE | {"rows.cut"}
        refuse_changed_config(self.run.path, self.run.read_config(), lm_to_plain(self.config), may_change=may_change)
        return self.run.read_result() if self.run.result.is_file() else None

    def _open_corpus(self, resume: bool) -> None:
        """Makes or opens the corpus."""
        folder = self.run.path / CORPUS if self.config.corpus.folder is None else Path(self.config.corpus.folder)
        with self.processes.together():
            if self.processes.is_first:
                if not resume:
                    self.run.remove_corpora()  # one that a killed process has left may be of another configuration
                if not folder.exists():
                    self.reporter.note(f"reading text and training a tokenizer: '{folder}'")
                corpus = prepare_corpus(self.config.corpus, folder)
                if resume and self.run.fingerprint != corpus.fingerprint:
                    raise ConfigError(
                        f"'{self.run.path}' was started on a corpus with fingerprint {self.run.fingerprint}, "
                        f"'{folder}' has {corpus.fingerprint}: its ids mean something else. Restore it, or start a "
                        "new run in another --out"
                    )
        self.corpus = Corpus(folder)

    def _run(self) -> dict[str, Any]:
        """From wherever the run stands to its end."""
        with ExitStack() as stack:
            self.stop = stack.enter_context(stop_on_signals(tell=lambda line: self.reporter.note(line)))
            if self.processes.is_first:
                board = self.run.path / "tensorboard" if self.config.train.tensorboard else None
                told = recorded(
                    self.reporter,
                    log=self.run.log,
                    board=board,
                    resumed_at=self.progress.step,
                    num_ranks=self.processes.count,
                )
                self.reporter = stack.enter_context(told)
            try:
                self.reporter.note(self._reading())
                self._train()
                return self._finish()
            finally:
                self.reporter.close()

    def _reading(self) -> str:
        """How much of the training split the run reads."""
        train, context, unread = self.config.train, self.config.model.context, self.num_unread
        there = f"the training split's {self.corpus.facts['splits']['train']['tokens'] - 1:,}"
        told = f"{unread:,} of {there} are never read" if unread else f"each of {there} is read"
        return f"training on {self.num_tokens:,} tokens, {train.batch_size} x {context} in a step; {told}"

    @property
    def num_tokens(self) -> int:
        """Tokens that all steps predict together."""
        return self.num_steps * self.config.train.batch_size * self.config.model.context

    @cached_property
    def num_unread(self) -> int:
        """Tokens of the training split but its first that no step predicts."""
        windows = self.stepper.windows
        beyond = self.corpus.facts["splits"]["train"]["tokens"] - len(windows.stream)  # more than train.tokens
        return int(beyond) + windows.num_unread(self.num_steps)

    def _restore(self) -> None:
        """Builds the run as its last checkpoint has it, or as it begins."""
        saved = self.processes.first(self.run.saved())
        train, context = self.config.train, self.config.model.context
        stream = self.corpus.ids("train", most=train.tokens + 1)
        windows = Windows(stream, context=context, batch_size=train.batch_size, seed=train.seed)
        self.num_steps = max(1, train.tokens // (train.batch_size * context))
        self.model = build_model(self.config, self.corpus, rows_folder=self.run.path / ROWS, processes=self.processes)
        if self.processes.rank:  # each process leaves other embeddings out; initial values are the same
            torch.default_generator.manual_seed(seed_of(train.seed, "rank", self.processes.rank))
        self.stepper = LmStepper(self.model, windows, config=train, num_steps=self.num_steps, processes=self.processes)
        self.progress = LmProgress()
        if saved:
            last = SavedLm(saved[-1], processes=self.processes)
            last.load_training(self.model, self.stepper.optimizer)
            self.progress = last.progress
        if self.processes.is_first and self.run.is_run:
            self.run.keep_metrics(up_to_step=self.progress.evaluated_step, stages=[STAGE])

    def _train(self) -> None:
        """The rest of the steps, with an evaluation at their end."""
        progress, train = self.progress, self.config.train
        self.reporter.start("training", total=self.num_steps, unit="steps", done=progress.step, speed="tokens")
        self.saved_at, num_tokens = time.monotonic(), train.batch_size * self.config.model.context
        self.model.train()
        begun, first = time.monotonic(), progress.step
        for ids_BS, addressed in self.stepper.batches(first):
            is_due = self._checkpoint_is_due()
            loss, (is_asked, is_due) = self.stepper(
                ids_BS, addressed, step=progress.step, votes=(bool(self.stop), is_due)
            )
            seconds = time.monotonic() - begun
            progress.step += 1
            progress.loss_sum, progress.loss_steps = progress.loss_sum + loss, progress.loss_steps + 1
            if progress.step - first > WARMUP_STEPS:
                progress.tokens, progress.seconds = progress.tokens + num_tokens, progress.seconds + seconds
            measured = {"loss": loss, **self.stepper.rates, "tokens_per_s": num_tokens / seconds}
            self.reporter.measured(step=progress.step, values=measured)
            self.reporter.advance(progress.step, per_s=progress.tokens_per_s, loss=progress.mean_loss or loss)
            is_last = progress.step == self.num_steps
            if is_last or (train.eval_every is not None and progress.step % train.eval_every == 0):
                self._evaluate()
            elif is_due:
                self._save()
            if is_asked or (self.processes.count == 1 and self.stop):
                self._stop_now()
            begun = time.monotonic()

    def _checkpoint_is_due(self) -> bool:
        """Whether the step that begins now should end with a checkpoint."""
        every = self.config.train.checkpoint_every
        minutes = (time.monotonic() - self.saved_at) / 60
        return minutes >= self.config.train.checkpoint_minutes or (
            every is not None and (self.progress.step + 1) % every == 0
        )

    def _evaluate(self) -> None:
        progress = self.progress
        loss = progress.mean_loss
        found = evaluate(self.model, self.corpus, "valid", most=self.config.train.eval_tokens)
        self.model.train()
        progress.judge(found["bits_per_byte"])
        self._tell({"split": "valid", "stage": STAGE, "step": progress.step, "train_loss": loss, **found})
        self._save()

    def _tell(self, record: dict[str, Any]) -> None:
        if self.processes.is_first:
            self.run.append_metrics(record)
        self.reporter.evaluated(record)

    def _save(self) -> None:
        """Writes a checkpoint; only the last one and the best one are kept."""
        folder = self._checkpoint(self.progress.step)
        save_lm(
            folder,
            model=self.model,
            optimizer=self.stepper.optimizer,
            progress=self.progress,
            processes=self.processes,
        )
        if self.processes.is_first:
            best = self.progress.best_step
            self.run.keep_checkpoints({folder} | ({self._checkpoint(best)} if best is not None else set()))
        self.saved_at = time.monotonic()

    def _checkpoint(self, step: int) -> Path:
        return self.run.checkpoints / f"step-{step:09d}"

    def _stop_now(self) -> None:
        self._save()
        raise InterruptedRunError(
            f"{self.stop.signal or 'a signal to another rank'}: stopped after step {self.progress.step} of "
            f"{self.num_steps}, which is saved; go on with the same command and --resume (run directory "
            f"'{self.run.path}')",
            is_first=self.processes.is_first,
        )

    def _finish(self) -> dict[str, Any]:
        """Reads the test split once, with the checkpoint that validation chose."""
        progress = self.progress
        assert progress.best_step is not None
        if progress.best_step != progress.step:
            SavedLm(self._checkpoint(progress.best_step), processes=self.processes).load_model(self.model)
        found = evaluate(self.model, self.corpus, "test", most=self.config.train.eval_tokens)
        self._tell({"split": "test", "stage": STAGE, "step": progress.best_step, **found})
        result = {
            **found,
            "valid_bits_per_byte": progress.best_value,
            "best_step": progress.best_step,
            "num_steps": self.num_steps,
            "train_tokens": self.num_tokens,
            "unread_tokens": self.num_unread,
            "tokens_per_s": progress.tokens_per_s,
            "dense_parameters": self.model.num_dense_parameters,
            "row_parameters": self.model.num_row_parameters,
            "memory": self.config.memory.kind,
            "seed": self.config.train.seed,
        }
        with self.processes.together():
            if self.processes.is_first:
                self._plot()
                self.run.write_result(result)
        return result

    def _plot(self) -> None:
        from embank.pipelines.lm.plots import plot_lm_curves  # matplotlib takes a second to import

        title = f"memory: {self.config.memory.kind}"
        with writing(f"'{self.run.plots}'", cure="Make room and go on with --resume"):
            plot_lm_curves(self.run.read_metrics(), self.run.plots / "learning_curves.png", title=title)


def _refuse_uneven(config: LmConfig, processes: Processes) -> None:
    """Each rank has the same number of sequences, so that means of means are means."""
    if config.train.batch_size % processes.count:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size}, which {processes.count} ranks can't share evenly; give "
            f"a multiple of {processes.count}"
        )


def _refuse_differences(config: LmConfig, processes: Processes) -> None:
    """All processes of a run need the same configuration."""
    keys = processes.gather(dict(flat(lm_to_plain(config))))
    with processes.together():
        for rank, other in enumerate(keys):
            for key, value in keys[0].items():
                if other[key] != value:
                    raise ConfigError(
                        f"rank {rank} has {key} = {other[key]!r} where rank 0 has {value!r}; start all ranks with the "
                        "same configuration"
                    )
