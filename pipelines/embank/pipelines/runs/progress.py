"""Where a run stands: what is saved with every checkpoint, and what its stages have cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from embank.pipelines.data.loading.batch import Position

MUCH = 0.01
"""Share by which a log loss must exceed another one to be worth a note."""


@dataclass(kw_only=True)
class StageProgress:
    """A stage that has begun.

    Args:
        name: the method's name for it.
        first_epoch: number of its first epoch in the run; epochs are numbered through.
        steps: optimizer steps on training batches.
        samples: rows trained on, those of validation batches included where the stage alternates.
        seconds: spent on them, and on finding what the next stage starts from; evaluations and checkpoints not.
        training_bytes: of its tables, with what optimizers keep for rows and methods; known at its end.
    """

    name: str
    first_epoch: int
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    training_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An evaluation on validation, as it is remembered.

    Args:
        step, epoch: when it was made.
        logloss, auc, gauc, calibration: its figures; None where they are undefined.
    """

    step: int
    epoch: int
    logloss: float
    auc: float | None = None
    gauc: float | None = None
    calibration: float | None = None


@dataclass(kw_only=True)
class Progress:
    """Where a run stands; saved with every checkpoint.

    Args:
        step: optimizer steps done in all stages.
        epoch: the current epoch.
        position: of the loader in it; None at its start.
        search_position: of the loader of validation batches, in a stage that alternates.
        stages: those that have begun; the last one is the current one.
        best_step: step of the checkpoint that is served, None before an evaluation that may choose it.
        best_value: of the monitored metric, the best in this stage.
        monitor: the metric that checkpoints are chosen by; log loss where AUC is undefined.
        chosen: the evaluation of the checkpoint that is served.
        least_loss: of the evaluations that might have been chosen, the one with the least log loss.
        num_worse: evaluations since then.
        num_plateaus: evaluations without improvement in this stage.
        evaluated_step: step of the last evaluation.
        loss_sum, loss_rows: training log loss and rows since the last evaluation.
        rows: trained in all, without the first steps of each process and stage, which are slower.
        seconds: spent on them, waiting for the loader included, evaluations and checkpoints not.
        seconds_waiting: of them, waiting for the loader.
        is_done: early stopping has ended the stage.
    """

    step: int = 0
    epoch: int = 0
    position: Position | None = None
    search_position: Position | None = None
    stages: list[StageProgress] = field(default_factory=list)
    best_step: int | None = None
    best_value: float | None = None
    monitor: str = "auc"
    chosen: Judged | None = None
    least_loss: Judged | None = None
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
    def stage(self) -> StageProgress:
        """The current stage."""
        return self.stages[-1]

    @property
    def stage_epoch(self) -> int:
        """Epochs of the current stage that are over."""
        return self.epoch - self.stage.first_epoch

    @property
    def first_step(self) -> int:
        """Steps that were done before the current stage."""
        return self.step - self.stage.steps

    @property
    def is_evaluated(self) -> bool:
        """Whether the model has been evaluated as it stands; a stage's first evaluation finds its best checkpoint so
        far."""
        return self.evaluated_step == self.step and self.best_step is not None

    def checkpoint_name(self, step: int, *, evaluated: bool) -> str:
        """Of the checkpoint of one of the current stage's steps, before or after its evaluation; names sort in the
        order of writing.

        A later stage begins at the step at which the one before has ended, and has a checkpoint of its own there.
        """
        begins = f"-stage-{len(self.stages) - 1}" if len(self.stages) > 1 and step == self.first_step else ""
        return f"step-{step:09d}{begins}{'-evaluated' if evaluated else ''}"

    @property
    def samples_per_s(self) -> float:
        """Training speed: without the first steps, which are slower, once there were others; 0 before any."""
        if self.seconds:
            return self.rows / self.seconds
        seconds = sum(stage.seconds for stage in self.stages)
        return sum(stage.samples for stage in self.stages) / seconds if seconds else 0.0

    def book(self, num_samples: int, *, seconds: float, waited: float, is_warm: bool) -> None:
        """Books a step: on its stage, and once it is warm on the speed."""
        stage = self.stage
        stage.steps, stage.samples, stage.seconds = (
            stage.steps + 1,
            stage.samples + num_samples,
            stage.seconds + seconds,
        )
        if is_warm:
            self.rows, self.seconds = self.rows + num_samples, self.seconds + seconds
            self.seconds_waiting += waited

    def begin_stage(self, name: str) -> None:
        """Goes on to the next stage, or to the first: early stopping and plateaus start anew."""
        self.stages.append(StageProgress(name=name, first_epoch=self.epoch))
        self.position = self.search_position = None
        self.best_step = self.best_value = self.chosen = self.least_loss = None
        self.num_worse = self.num_plateaus = 0
        self.loss_sum, self.loss_rows = 0.0, 0
        self.is_done = False

    def judge(self, record: Mapping[str, Any], *, monitor: str, patience: int | None, only_end: bool) -> str | None:
        """Is this the best evaluation of the stage so far, and is it time to stop?

        Args:
            record: metrics of the evaluation that has just been made.
            monitor: the metric to choose by; log loss takes its place where it is undefined.
            patience: evaluations without improvement before the stage ends.
            only_end: every evaluation is better than those before it.

        Returns:
            What the user should be told.
        """
        note = None
        self.monitor = monitor
        if record[monitor] is None:
            self.monitor = "logloss"
            if self.best_value is None:
                note = f"{record[f'{monitor}_undefined']} Checkpoints are chosen by log loss instead"
        value = record[self.monitor]
        sign = -1 if self.monitor == "logloss" else 1
        judged = Judged(
            **{name: record[name] for name in ("step", "epoch", "logloss", "auc")},
            gauc=record.get("gauc"),
            calibration=record.get("calibration"),
        )
        if self.least_loss is None or only_end or judged.logloss < self.least_loss.logloss:
            self.least_loss = judged
        if self.best_value is None or only_end or sign * value > sign * self.best_value:
            self.best_value, self.best_step, self.chosen, self.num_worse = value, self.step, judged, 0
            return note
        self.num_worse, self.num_plateaus = self.num_worse + 1, self.num_plateaus + 1
        self.is_done = patience is not None and self.num_worse >= patience
        return note

    @property
    def loss_note(self) -> str | None:
        """What to say of the log loss of the checkpoint that was chosen, where that of another one was much lower."""
        chosen, least = self.chosen, self.least_loss
        if self.monitor == "logloss" or chosen is None or least is None or chosen.logloss <= (1 + MUCH) * least.logloss:
            return None
        value, other = getattr(chosen, self.monitor), getattr(least, self.monitor)
        label = {"auc": "AUC", "gauc": "group AUC"}[self.monitor]
        return (
            f"the checkpoint of step {chosen.step:,}, chosen by {label} on validation ({value:.4f}), has a log loss "
            f"of {chosen.logloss:.4f} there; "
            f"that of step {least.step:,} had {least.logloss:.4f}"
            + (f" at {label} {other:.4f}" if other is not None else "")
            + ". If predictions are used as probabilities, train with train.monitor=logloss"
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Progress":
        """The inverse of `asdict`."""

        def judged(key: str) -> Judged | None:
            return None if values.get(key) is None else Judged(**values[key])

        def position(key: str) -> Position | None:
            return None if values[key] is None else Position(**values[key])

        read = {
            "position": position("position"),
            "search_position": position("search_position"),
            "stages": [StageProgress(**stage) for stage in values["stages"]],
            "chosen": judged("chosen"),
            "least_loss": judged("least_loss"),
        }
        return cls(**{**values, **read})
