"""What a method does besides steps: trainings in several stages, pruning as training goes on, settling before it is
served."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from embank.tables.method.local_rows import LocalRows, Score

if TYPE_CHECKING:
    from embank.tables.method.base import Method


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of a method that needs several.

    Args:
        name: shown in progress, metrics and checkpoints.
        epochs: epochs of this stage, as a share of the run's.
        alternates: after each step on a training batch comes one on a validation batch, which moves the method's
            search parameters alone.
        is_search: evaluations of this stage never choose the checkpoint that is served.
        hands_over: what the next stage goes on from: the checkpoint that validation found best, or the end of a stage
            whose schedule must run out.
        fresh_network: the network starts anew; otherwise it goes on with the weights of the stage before.

    Example:
        >>> method_class("dedup").traits.schedule.stages[1]
        Stage(name='fine-tune', epochs=0.5, alternates=False, is_search=False, hands_over='best',
        fresh_network=False)
    """

    name: str
    epochs: float = 1.0
    alternates: bool = False
    is_search: bool = False
    hands_over: Literal["best", "end"] = "best"
    fresh_network: bool = False


@dataclass(frozen=True, kw_only=True)
class Carry:
    """Where the initial rows of a physical table come from, when a stage begins with what the one before has trained.

    Args:
        table: the earlier stage's physical table.
        rows: int64 [R], for each new row the old one; None takes them one to one.
        first_column: the old table's column that becomes column 0; as many follow as the new table is wide.
        initial: whether the values are those that the old table began with, not the trained ones.

    Example:
        >>> Carry(table="item", rows=torch.tensor([0, 2]))  # the new table's rows begin as rows 0 and 2 of the old one
        Carry(table='item', rows=tensor([0, 2]), first_column=0, initial=False)
    """

    table: str
    rows: Tensor | None = None
    first_column: int = 0
    initial: bool = False


@dataclass(frozen=True, kw_only=True)
class Advance:
    """What a stage hands to the next one.

    Args:
        found: what was found, as small tensors: dims, maps, masks, thresholds. They become `TableSpec.found`, are saved
            with every checkpoint of the next stage and decide its physical tables.
        carries: by physical table of the next stage; tables that are not named start from their initial values.
        dense: values of the next stage's parameters and buffers by their names in the method's `state_dict`; others
            start anew.

    Example:
        >>> kept = torch.tensor([0, 2])
        >>> handed = Advance(found={"kept": kept}, carries={"item": Carry(table="item", rows=kept)}, dense={})
    """

    found: Mapping[str, Tensor]
    carries: Mapping[str, Carry]
    dense: Mapping[str, Tensor]


class Schedule:
    """What a method does between steps, for all tables of a collection that are stored by it.

    A subclass overrides what it needs. It has no state of its own: what it changes are rows and methods.

    Attributes:
        stages: the trainings that the method needs, in order; a spec's `stage` is the index of the current one.
        common_options: names of options that act on all tables at once, so that these must agree on them.

    Example:
        >>> method_class("hash").traits.schedule.settles, method_class("deeplight").traits.schedule.settles
        (False, True)
    """

    stages: ClassVar[tuple[Stage, ...]] = (Stage(name="train"),)
    common_options: ClassVar[tuple[str, ...]] = ()

    def is_followed(self, method: Any) -> bool:
        """Whether `after_step` must be called in the stage that a method is in, or its training goes wrong."""
        return type(self).after_step is not Schedule.after_step

    @property
    def settles(self) -> bool:
        """Whether there is a `settle` that does something."""
        return type(self).settle is not Schedule.settle

    def search_parameters(self, method: Any) -> list[nn.Parameter]:
        """Parameters that validation batches move in a stage that alternates; training batches leave them alone."""
        return []

    def loss(self, method: Any) -> Tensor | None:
        """A scalar of the method's parameters to add to the loss of each training pass; None for none.

        What depends on the rows of the pass is returned by `combine`, see `Combined`.
        """
        return None

    def after_step(self, methods: Sequence[Any], rows: LocalRows, *, step: int, num_steps: int, seed: int) -> None:
        """Changes rows in place after a training step (pruning on a schedule).

        Args:
            methods: the method of each table that is stored by it.
            rows: what this process holds; writes are the method's to make and count as training.
            step: steps done in this stage, counting from 1.
            num_steps: steps of this stage.
            seed: the collection's: whatever is drawn besides batches depends on it.
        """

    def settle(self, methods: Sequence[Any], rows: LocalRows) -> None:
        """Makes rows what will be served (pruned to the budget). Called before each evaluation, checkpoint choice and
        packing in the last stage; idempotent."""

    def advance(self, methods: Sequence[Any], rows: LocalRows, *, score: Score | None, seed: int) -> list[Advance]:
        """What the next stage starts from, one entry per table. Called at the end of every stage but the last.

        Args:
            methods: the method of each table that is stored by it.
            rows: what this process holds.
            score: of the model with the methods as they stand now (they may set masks on themselves between calls);
                None where there is no model, as in `build_table`: then choose by the budget alone.
            seed: the collection's.
        """
        raise NotImplementedError(f"{type(self).__name__} has one stage")


def stages_of(method: "Method | type[Method]") -> tuple[Stage, ...]:
    """The trainings that a method needs."""
    return method.traits.schedule.stages


def is_last_stage(method: "Method") -> bool:
    """Whether what a method trains now is what will be served."""
    return method.spec.stage + 1 == len(stages_of(method))
