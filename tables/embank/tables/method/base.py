"""The method protocol: how a logical table is stored. And the registry in which methods announce themselves.

A method is three pure steps around rows that it does not own:

    ids --address--> physical row ids --(rows)--> physical rows --combine--> logical rows --(pool)--> features

`address` runs early (data loader, prefetch thread); the rows live in a `RowStore`, sharded and updated there; `combine`
runs in the forward pass and may hold small dense parameters. Pooling comes after `combine`, unless the method is linear
in its rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.ids.hashing import seeded
from embank.tables.method.casts import own_defaults
from embank.tables.method.local_rows import LocalRows, Score
from embank.tables.method.options import options_of
from embank.tables.rows.physical import PhysicalTable
from embank.tables.specs import TableSpec
from embank.tables.wording import nearest_or_all

ENTRY_POINTS = "embank.methods"


class PackedTable(nn.Module, ABC):
    """The inference form of a logical table: what is served, counted in `nbytes` and written to a bundle.

    It holds buffers of any dtype (no submodules, no parameters) and plain attributes; the class lives in its method's
    module.

    Attributes:
        facts: names of the plain attributes (numbers, strings, lists of them) that a bundle must save besides the
            buffers.
        uncounted: names of buffers that the paper leaves out when it counts bytes, such as a map or a projection.
    """

    facts: ClassVar[tuple[str, ...]] = ()
    uncounted: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def lookup(self, ids_N: Tensor) -> Tensor:
        """Logical rows [N, D] for ids int64 [N], N may be 0; ids out of range are the caller's to refuse."""

    def nbytes(self) -> int:
        """Bytes of everything that is held: parameters, buffers, hash constants."""
        held = [*self.parameters(), *self.buffers()]
        return sum(t.numel() * t.element_size() for t in held)

    def counted(self) -> list[Tensor]:
        """What the paper counts."""
        return [buffer for name, buffer in self.named_buffers() if name not in self.uncounted]

    def manifest(self) -> dict[str, Any]:
        """The plain attributes, as JSON."""
        return {name: getattr(self, name) for name in self.facts}

    @classmethod
    def restore(cls, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """A packed table from what `manifest` and `state_dict` gave.

        Raises:
            CheckpointError: a fact is missing, or there is one too many.
        """
        if set(manifest) != set(cls.facts):
            raise CheckpointError(
                f"a saved {cls.__name__} has the facts {sorted(manifest)}; this embank expects {sorted(cls.facts)}. "
                "It was written by another version: export it again"
            )
        table = cls.__new__(cls)
        nn.Module.__init__(table)
        for name, value in manifest.items():
            setattr(table, name, value)
        for name, tensor in tensors.items():
            table.register_buffer(name, tensor)
        return table


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of a method that needs several.

    Args:
        name: shown in progress, metrics and checkpoints.
        epochs: epochs of this stage, as a share of the run's.
        alternates: after each step on a training batch comes one on a validation batch, which moves the method's
            `search_parameters` alone.
        is_search: evaluations of this stage never choose the checkpoint that is served.
        hands_over: what the next stage goes on from: the checkpoint that validation found best, or the end of a stage
            whose schedule must run out.
        fresh_network: the network starts anew; otherwise it goes on with the weights of the stage before.
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
    """

    found: Mapping[str, Tensor]
    carries: Mapping[str, Carry]
    dense: Mapping[str, Tensor]


class Method(nn.Module, ABC):
    """How one logical table is stored.

    Subclasses set `physical` in `__init__`; `lookups` says, for each tensor that `address` returns, which physical
    table it indexes (by position); by default each table once, in order. Everything else has a default that suits a
    method of one stage whose rows are looked up, combined and served as they are.

    Attributes:
        Config: the frozen dataclass of the method's own options.
        linear: `combine` is linear in its rows, so a bag's rows may be pooled before it and the pooling is fused into
            the lookup kernel.
        is_plain: row i of the one physical table, which is named after its table, is row i of the logical table: what
            TorchRec calls the table's weight.
        takes_budget: the method can be made smaller than the plain table; a sweep over budgets trains it once
            otherwise.
        takes_token_ids: ids may be hashes of tokens, 0 .. 2**63 - 1, without a vocabulary: nothing depends on their
            number, counts or order, and `address` is exact for all of them.
        asks_once: `combine` costs much per row: a `TableCollection` looks each distinct row of a batch up once and
            calls `combine_distinct`.
        whole_rows: some step needs whole rows (a norm, a scale per row, a nearest code), so column-wise sharding is
            refused.
        stages: the trainings that the method needs, in order; a spec's `stage` is the index of the current one.
        on_host: names of the buffers that `address` and `side` read: they stay in host memory, where these run, when
            the method goes to a GPU.
        learns: whether a training pass may move buffers, such as running statistics and counts of use. A step on search
            parameters alone switches it off (`stages.rows_held`).
        common_options: names of options that act on all tables of a collection at once, so that these must agree on
            them.
        tolerance: largest difference between `PackedTable.lookup` and the settled table's own values, as a share of the
            table's largest value. 0 means up to float rounding.
    """

    Config: ClassVar[type]
    linear: ClassVar[bool] = False
    is_plain: ClassVar[bool] = False
    takes_budget: ClassVar[bool] = True
    takes_token_ids: ClassVar[bool] = False
    asks_once: ClassVar[bool] = False
    whole_rows: ClassVar[bool] = False
    stages: ClassVar[tuple[Stage, ...]] = (Stage(name="train"),)
    on_host: ClassVar[tuple[str, ...]] = ()
    common_options: ClassVar[tuple[str, ...]] = ()
    tolerance: ClassVar[float] = 0.0
    learns: bool = True
    physical: tuple[PhysicalTable, ...]

    def __init__(self, spec: TableSpec) -> None:
        super().__init__()
        self.spec = spec

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `nn.Module.to` and its like call."""
        stay = {name: self._buffers[name] for name in self.on_host if name in self._buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers.update(stay)
        return self

    @property
    def lookups(self) -> tuple[int, ...]:
        """For each tensor of `address`, the index of its table in `physical`."""
        return tuple(range(len(self.physical)))

    @property
    def side_by_side(self) -> bool:
        """Whether `combine` does no more than put the rows of its lookups side by side, so that what a kernel looked up
        is the logical row and `combine` need not be called. By default as `linear` says."""
        return self.linear

    @abstractmethod
    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        """Physical row ids, one int64 [N] per lookup: a pure function of the ids. Runs early, on the loader's
        thread."""

    def side(self, ids_N: Tensor) -> Tensor | None:
        """What `combine` must know of the ids besides their rows (offsets, signs, groups, masks), [N, ...]: pure and
        early too."""
        return None

    @abstractmethod
    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        """Logical rows [N, D] from physical rows, one [N, width] per lookup, and what `side` made. Differentiable.

        `self.training` tells training (random masks, noise) from evaluation.
        """

    def combine_distinct(self, rows: tuple[Tensor, ...], places_LN: Tensor, side: Tensor | None) -> Tensor:
        """What `combine` makes, from rows that were looked up once each. For methods with `asks_once`.

        Args:
            rows: for each lookup its distinct rows [U, width]: those of all features of the table, perhaps followed by
                rows of zeros.
            places_LN: for each lookup where each id's row stands among them, int64 [L, N].
            side: as for `combine`.
        """
        return self.combine(tuple(own.index_select(0, at) for own, at in zip(rows, places_LN, strict=True)), side)

    def extra_loss(self) -> Tensor | None:
        """A scalar to add to the loss of the forward pass that has just run; None for none."""
        return None

    def forget_loss(self) -> None:
        """Drops what `combine` left for `extra_loss`. Called before each training pass: nobody need have asked for the
        loss of the one before, whose graph would be kept."""

    @property
    def has_schedule(self) -> bool:
        """Whether `after_step` must follow the training in the stage that the method is in. By default where there is
        an `after_step`."""
        return type(self).after_step.__func__ is not Method.after_step.__func__  # type: ignore[attr-defined]

    @classmethod
    def settles(cls) -> bool:
        """Whether there is a `settle` that does something."""
        return cls.settle.__func__ is not Method.settle.__func__  # type: ignore[attr-defined]

    def search_parameters(self) -> list[nn.Parameter]:
        """Parameters that validation batches move in a stage that alternates; training batches leave them alone
        there."""
        return []

    @classmethod
    def after_step(cls, methods: Sequence[Self], rows: LocalRows, *, step: int, num_steps: int) -> None:
        """Changes rows in place after a training step (pruning on a schedule). Called once for all tables of the
        method.

        Args:
            methods: the method of each table that is stored by it.
            rows: what this process holds; writes are the method's to make and count as training.
            step: steps done in this stage, counting from 1.
            num_steps: steps of this stage.
        """

    @classmethod
    def settle(cls, methods: Sequence[Self], rows: LocalRows) -> None:
        """Makes rows what will be served (pruned to the budget, codes refreshed). Called before each evaluation,
        checkpoint choice and packing in the last stage; idempotent."""

    @classmethod
    def advance(cls, methods: Sequence[Self], rows: LocalRows, *, score: Score | None) -> list[Advance]:
        """What the next stage starts from, one entry per table. Called at the end of every stage but the last.

        Args:
            methods: the method of each table that is stored by it.
            rows: what this process holds.
            score: of the model with the methods as they stand now (they may set masks on themselves between calls);
                None where there is no model, as in `build_table`: then choose by the budget alone.
        """
        raise NotImplementedError(f"{cls.__name__} has one stage")

    @abstractmethod
    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        """The inference form, from the rows [R, width] of each physical table by name.

        It may share memory with the rows that it is given: pass copies if they go on being trained.
        """

    @classmethod
    def allocate(cls, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        """Shares serving bytes between the tables of a collection that are stored by this method.

        The default gives every table the same share of its plain bytes. A method with a better rule (dims by
        popularity, ranks by size) returns specs with options or budgets of its own; the sum of serving bytes must stay
        within `nbytes`.

        Raises:
            BudgetError: it can't be done; states the floor.
        """
        plain = sum(spec.plain_nbytes for spec in specs)
        return [replace(spec, budget=min(1.0, nbytes / plain)) for spec in specs]

    def options(self) -> Any:
        """The spec's options, or this method's defaults.

        Raises:
            ConfigError: the options are another method's, or a value is of the wrong type.
        """
        return options_of(self.spec, self.Config)


_LOCAL: dict[str, type[Method]] = {}


def register_method(name: str, method: type[Method]) -> None:
    """Adds a method of this process, for notebooks and trials; a package announces its methods by an entry point.

    Raises:
        ConfigError: it is no method, or the name is taken by another class.
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ConfigError(f"'{name}' is to be {method!r}, which is no subclass of embank.tables.Method")
    taken = _LOCAL.get(name) or _installed().get(name)
    if taken is not None and taken is not method:
        raise ConfigError(f"method '{name}' is registered already ({taken}); choose another name")
    _LOCAL[name] = method


@cache
def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)}


def registered_methods() -> list[str]:
    """Names of all methods: those of installed packages (not yet imported) and those of this process."""
    return sorted({*_installed(), *_LOCAL})


def method_class(name: str) -> type[Method]:
    """The class of a registered method.

    Raises:
        ConfigError: nothing of this name is registered; the message has the nearest one.
    """
    if name in _LOCAL:
        return _LOCAL[name]
    if name not in _installed():
        known = registered_methods()
        raise ConfigError(f"there is no method '{name}'; {nearest_or_all(name, known, label='known methods')}")
    loaded = _installed()[name].load()
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        raise ConfigError(f"method '{name}' ({_installed()[name].value}) is not a subclass of embank.tables.Method")
    return loaded


def build_method(spec: TableSpec, *, seed: int = 0) -> Method:
    """The method of a spec, ready to address and combine.

    Args:
        spec: of the table.
        seed: initial values of dense parameters depend on it and on the table's name alone; no global generator moves.

    Raises:
        ConfigError: unknown method, options of another method, or a table without a vocabulary that needs one.
        BudgetError: the budget is below the method's floor.
    """
    try:
        method = method_class(spec.method)
    except ConfigError as error:
        raise ConfigError(f"table '{spec.name}': {error}") from error
    if not spec.has_vocabulary:
        _refuse_no_vocabulary(spec, method)
    with own_defaults(), seeded(seed, "method", spec.name):
        return method(spec)


def _refuse_no_vocabulary(spec: TableSpec, method: type[Method]) -> None:
    why = f"table '{spec.name}' has no vocabulary (its ids are hashes of tokens)"
    if not method.takes_token_ids:
        able = [name for name in registered_methods() if method_class(name).takes_token_ids]
        raise ConfigError(
            f"{why}, but method '{spec.method}' needs one, for the number of ids, their counts or their order. Use a "
            "method that hashes "
            f"ids ({', '.join(able)}) with a number of rows, or prepare the column with a vocabulary"
        )
    if spec.budget is not None:
        raise ConfigError(
            f"{why}, so there is no plain table that its budget {spec.budget} could be a share of; give the number of "
            "rows in its place"
        )
