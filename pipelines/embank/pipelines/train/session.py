"""A training that is going on: what its parts share, and what trains the model in its current stage."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torchrec import KeyedJaggedTensor

from embank.ctr_models import CTRModel
from embank.pipelines.config.run import Config
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.build import table_codecs
from embank.pipelines.runs.codecs import coarse_codes, refuse_coarse_codes
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.progress import Progress
from embank.pipelines.train.interrupt import StopRequest
from embank.pipelines.train.step import SearchStepper, Stepper
from embank.tables import TableCollection
from embank.tables.collections.stages import planned_stages, search_parameters
from embank.tables.collections.straight_through import StraightThrough, refuse_untrainable
from embank.tables.ids.hashing import seed_of
from embank.tables.sharding.processes import Processes

_log = logging.getLogger(__name__)

WARMUP_STEPS = 3
"""First steps of a process and of a stage that the speed leaves out: memory is touched for the first time, networks are
compiled."""


class StageTraining:
    """Everything that trains the model in its current stage, made afresh at the stage's beginning.

    Args:
        model: tables and network.
        config: of the run.
        schema: of its data.
        progress: where the run stands; the last one of its stages is the one to train.
        processes: those that train together.
        num_stages: of all, those that are trained; None for all.
        max_steps: of the stage; None for all.
    """

    def __init__(
        self,
        model: CTRModel,
        *,
        config: Config,
        schema: Schema,
        progress: Progress,
        processes: Processes,
        num_stages: int | None,
        max_steps: int | None,
    ) -> None:
        assert isinstance(model.tables, TableCollection)
        self.tables, self.config, self.processes, self.num_stages = model.tables, config, processes, num_stages
        data, train = config.data, config.train
        self.planned, self.number = planned_stages(self.tables), len(progress.stages) - 1
        self.stage = self.planned[self.number]
        self._look_at_codes(is_new=progress.step == 0)
        num_rows = schema.split("train").num_rows
        epoch_steps = -(-num_rows // data.batch_size)
        self.num_steps = max(1, round(self.stage.epochs * train.epochs * epoch_steps))
        if max_steps is not None:
            self.num_steps = min(self.num_steps, max_steps)
        self.num_epochs = -(-self.num_steps // epoch_steps)
        searched = search_parameters(self.tables) if self.stage.alternates else []
        self.stepper = Stepper(
            model,
            config=train,
            batch_size=data.batch_size,
            num_rows=num_rows,
            num_steps=self.num_steps,
            held=searched,
            coded=self._coded(),
        )
        self.loader = self._loader("train", address=self.stepper.address)
        self.search: SearchStepper | None = None
        if searched:
            batches = self._loader("valid", address=self.tables.address)
            self.search = SearchStepper(model, config=train, loader=batches, start=progress.search_position)
        self.num_steps_here = 0

    def _look_at_codes(self, *, is_new: bool) -> None:
        """Refuses rows whose width their codec can't cut into parts, before anything is trained. Widths that stages
        have found, and those of a run that goes on, are only told: what was trained stays of use."""
        if not self.is_served or self.tables.sharding is not None:
            return
        codecs = table_codecs(self.config, self.tables.specs)
        if is_new:
            refuse_coarse_codes(self.tables, codecs, widen="Give it rows of")
            return
        for told in coarse_codes(self.tables, codecs, widen="Give it rows of"):
            _log.warning("%s", told)

    def _coded(self) -> StraightThrough | None:
        """The codecs that rows are trained through: in the stage that is served. What can't be is refused before any
        stage is trained."""
        if self.config.train.straight_through is None:
            return None
        codecs = table_codecs(self.config, self.tables.specs)
        if self.is_through_codec:
            return StraightThrough(self.tables, codecs)
        refuse_untrainable(self.tables, codecs)
        return None

    @property
    def is_through_codec(self) -> bool:
        """Whether steps and evaluations see rows as their codec will hold them."""
        return self.config.train.straight_through is not None and self.is_served

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

    @property
    def is_served(self) -> bool:
        """Whether the methods have no further stage, so that the tables can be served as they are in this one."""
        return self.number == len(self.planned) - 1

    @property
    def is_last(self) -> bool:
        """Whether no stage follows."""
        return self.is_served or self.number + 1 == self.num_stages

    @property
    def is_warm(self) -> bool:
        """Whether a step that was just done is one of those that the speed counts."""
        return self.num_steps_here > WARMUP_STEPS

    @property
    def only_end_counts(self) -> bool:
        """Whether no checkpoint but the stage's last is worth keeping: that of a search that no training follows, and
        of a schedule that must run out."""
        return self.stage.is_search if self.is_served else self.stage.hands_over == "end"

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Of the dense parameters, and of what is searched for."""
        return [part.optimizer for part in (self.stepper, self.search) if part is not None]

    @property
    def seconds_waited(self) -> float:
        """How long steps have waited for their batches."""
        return self.loader.seconds_waited + (self.search.loader.seconds_waited if self.search else 0.0)

    def describe(self) -> str:
        """The stage in words."""
        if len(self.planned) == 1:
            return "training"
        return f"stage {self.number + 1} of {len(self.planned)}, {self.stage.name}"


@dataclass(kw_only=True)
class Session:
    """What the step loop, the stages and the checkpoints work on.

    Args:
        config: of the run.
        schema: of its data.
        run: the run directory.
        processes: those that train together.
        reporter: is told how it goes, on the first process.
        progress: where the run stands; what is saved with every checkpoint.
        model: as it stands. A new stage may bring other tables, and another network.
        training: what trains it in the current stage.
        num_stages: of all, those that are trained; None for all.
        max_steps: of a trial, which is judged and leaves nothing behind; None for a run.
        stop: set by a signal.
        is_to_be_judged: the model is another run's, to be evaluated before the first step.
        saved_at: when the last checkpoint was written, in seconds of `time.monotonic`.
    """

    config: Config
    schema: Schema
    run: RunFolder
    processes: Processes
    reporter: Reporter
    progress: Progress
    model: CTRModel
    num_stages: int | None = None
    max_steps: int | None = None
    is_to_be_judged: bool = False
    training: StageTraining = field(init=False)
    stop: StopRequest = field(default_factory=StopRequest)
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def is_trial(self) -> bool:
        """Whether nothing but what validation says in the end is wanted."""
        return self.max_steps is not None

    @property
    def tables(self) -> TableCollection:
        """The model's tables."""
        return self.training.tables

    def begin_stage(self) -> None:
        """Goes on to the stage that the model's tables are in."""
        assert isinstance(self.model.tables, TableCollection)
        stage = planned_stages(self.model.tables)[len(self.progress.stages)]
        self.progress.begin_stage(stage.name)
        self.build_stage()
        if self.processes.rank:  # each process drops out other units; the network's initial values are the same
            seed, number = self.config.train.seed, len(self.progress.stages)
            torch.manual_seed(seed_of(seed, "rank", self.processes.rank, number))

    def build_stage(self) -> None:
        """Has the model trained in the stage that it is in now: fresh optimizers and loaders."""
        self.training = StageTraining(
            self.model,
            config=self.config,
            schema=self.schema,
            progress=self.progress,
            processes=self.processes,
            num_stages=self.num_stages,
            max_steps=self.max_steps,
        )
        self.saved_at = time.monotonic()
