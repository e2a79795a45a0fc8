"""What every collection of tables is, however it looks ids up: specs, their methods, and the stores that hold their
rows.

`TableCollection` pools bags, `SequenceCollection` keeps every id's row. Stages, checkpoints and bytes need neither and
take any `Tables`.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from embank.tables.collections.addressed import Addressed
from embank.tables.collections.bags import Bags
from embank.tables.collections.configs import specs_of, tier_of
from embank.tables.collections.fused_optimizer import RowsOptimizer
from embank.tables.collections.held_rows import writing
from embank.tables.collections.ids import output_key, refuse_bad_names
from embank.tables.collections.importing import import_rows
from embank.tables.collections.named import NamedModules
from embank.tables.collections.packable import Packable
from embank.tables.collections.parameters import (
    expose_rows,
    external_error,
    follow_parameters,
    initialise,
    settle_optimizer,
)
from embank.tables.collections.paths import PATHS, Asked, Ids, LookupPath, Pass, Use, UseRows
from embank.tables.collections.placed import Placed
from embank.tables.collections.row_mark import RowMarkHolder
from embank.tables.collections.saved import Saved
from embank.tables.collections.state import (
    load_num_updates,
    num_updates,
)
from embank.tables.collections.traced import OneStep
from embank.tables.collections.training import (
    TrainingState,
    accompanied,
    forbid_backward,
    needs_company,
    refuse_unknown_length,
    replica_error,
    summed_losses,
)
from embank.tables.errors import ConfigError
from embank.tables.method.base import Method
from embank.tables.method.casts import keeping_types, own_defaults
from embank.tables.method.modes import moving_statistics
from embank.tables.method.options import refuse_differing
from embank.tables.method.registry import build_method
from embank.tables.rows import Backend, RowOptimizer, RowStore, RowTier, StoreSpec, build_rows
from embank.tables.rows.physical import PhysicalTable
from embank.tables.rows.room import refuse_larger_than_memory
from embank.tables.rows.store_spec import refuse_bad_lr, refuse_names
from embank.tables.sharding.processes import Processes, is_one_of_many
from embank.tables.specs import TableSpec

if TYPE_CHECKING:
    from torchrec.modules.embedding_configs import BaseEmbeddingConfig

    from embank.tables.sharding.sharded_rows import Sharding


class Tables(Placed, Saved, Packable, OneStep):
    """Logical tables, each stored by its own method, and their rows.

    Rows are neither parameters nor buffers: they have an optimizer of their own, and what is done to a model's
    parameters (casts, moves, clipping, another optimizer) does not reach them. They are part of `state_dict`, see
    `embank.tables.collections.state`.

    Args:
        specs: the logical tables.
        seed: initial values depend on it and on the tables' names alone.
        backend: "fbgemm" (fused updates) or "torch" (the slow twin; Adam).
        optimizer: how rows are updated.
        tier: where rows are held.
        sharding: spreads rows over processes; None holds them all here.

    Raises:
        ConfigError: no table, two tables of one name, or what methods refuse.
        BudgetError: a budget below its method's floor.
    """

    plain_prefix: ClassVar[str]  # of plain tables' rows in a `state_dict`, as TorchRec has it
    rows_are_parameters: ClassVar[bool] = False  # of the model

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        seed: int,
        backend: Backend,
        optimizer: RowOptimizer | None,
        tier: RowTier | None,
        sharding: "Sharding | None",
    ) -> None:
        super().__init__()
        self.sharding = sharding
        self.processes = Processes(None if sharding is None else sharding.process_group)
        self.rows_learn = True  # see `stages.rows_held` and `RowMark`
        self.statistics_learn = True  # see `stages.rows_held`
        self.training_state = TrainingState()
        self.mark = RowMarkHolder(self, is_shown=not self.rows_are_parameters)
        self.specs = tuple(specs)
        self.seed = seed
        self.backend = backend
        refuse_names(tier=tier, optimizer=optimizer)
        self.optimizer = optimizer or RowOptimizer()
        self.lr = self.optimizer.lr  # see `set_lr`
        self.tier = tier or RowTier()
        self.tier.refuse_missing_device()
        self.chosen_optimizer: RowsOptimizer | None = None  # see `fused_optimizer`
        self.rows_frozen = False  # by `requires_grad_(False)`, see `follow_parameters`
        self.followed: list[dict[str, Any]] = []  # groups of optimizers that a program has chosen for the rows
        self.followed_rate = 0.0
        refuse_bad_names(self.specs, owner=type(self).__name__)
        if sharding is not None and self.optimizer.is_external:
            raise external_error(self.processes.count)

    @own_defaults()
    def _make(self) -> None:
        """Makes methods and rows. A subclass calls it when it has what `_make_paths` needs, and it is called again when
        tables leave the meta device or change their optimizer."""
        methods = NamedModules({spec.name: build_method(spec, seed=self.seed) for spec in self.specs})
        self.methods = methods.to(self.device)
        self.is_accompanied = any(needs_company(method) for method in self.built_methods())
        refuse_differing(list(self.built_methods()))
        self._refuse_larger_than_memory()
        self._make_paths()
        if not self.tier.is_meta:
            initialise(self)
        expose_rows(self)

    @abstractmethod
    def _make_paths(self) -> None:
        """Lookup paths, and with them the rows."""

    def _refuse_larger_than_memory(self) -> None:
        """Raises ConfigError for more rows than there is memory for, those of all lookup paths together."""
        tables = list({table.name: table for method in self.built_methods() for table in method.physical}.values())
        spec = StoreSpec.of_tables(tables, lookups=(), **self._how_held)
        if self.sharding is not None:
            parts = (self.sharding.plan.shard(table, self.sharding.rank) for table in tables)
            spec = replace(spec, shards=[part for part in parts if part is not None])
        refuse_larger_than_memory(spec)

    @property
    def _how_held(self) -> dict[str, Any]:
        """What all stores of the collection have in common."""
        return {"seed": self.seed, "backend": self.backend, "optimizer": self.optimizer, "tier": self.tier}

    @property
    def arguments(self) -> dict[str, Any]:
        """What a collection like this one is made with, besides specs and sharding."""
        return self._how_held

    def rebuilt(self, specs: Sequence[TableSpec]) -> Self:
        """A new collection of other specs with everything else as here."""
        sharding = None if self.sharding is None else self.sharding.for_specs(specs)
        return self.of_specs(specs, sharding=sharding, **self.arguments)

    @classmethod
    def from_configs(
        cls,
        configs: "Sequence[BaseEmbeddingConfig]",
        *,
        method: str | Mapping[str, str] = "full",
        budget: float | Mapping[str, float] | None = None,
        options: Any = None,
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        tier: RowTier | None = None,
        **how: Any,
    ) -> Self:
        """A collection of tables that TorchRec's configs describe.

        Args:
            configs: `EmbeddingBagConfig` or `EmbeddingConfig`; a config without feature names looks up the feature of
                its own name.
            method: how tables are stored, for all or by table; those that are not named are plain.
            budget: serving bytes / bytes of the plain tables, for all that have a method or by table.
            options: of the method, for all or by table.
            is_weighted: whether tables pool by the ids' weights.
            device: where the tables are; on "meta" they hold nothing yet.
            tier: where rows are held besides; their type is the configs' `data_type`.
            how: other arguments of the collection.

        Raises:
            ConfigError: what a table, a method or a backend refuses.

        Example:
            >>> from torchrec import EmbeddingBagConfig
            >>> config = EmbeddingBagConfig(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"])
            >>> tables = TableCollection.from_configs([config], method="hash", budget=0.1)
            >>> tables.nbytes("serving") / tables.plain_nbytes <= 0.1
            True
        """
        specs = specs_of(configs, method=method, budget=budget, options=options, weighted=is_weighted)
        return cls.of_specs(specs, tier=tier_of(configs, tier=tier, device=device), **how)

    @classmethod
    def of_specs(cls, specs: Sequence[TableSpec], **how: Any) -> Self:
        """A collection of this class, whatever arguments its users give.

        Args:
            specs: the logical tables.
            how: as `arguments` has them, and sharding.
        """
        return cls(specs, **how)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `nn.Module.to`, `half` and their like call. Types stay as they are, here and in the methods.

        Raises:
            ConfigError: a move to another device than the rows'.
        """
        if self.tier.is_meta:
            self.materialise(fn(torch.empty(0, device="meta")).device)
            return self
        super()._apply(keeping_types(fn, device=self.device), recurse)  # type: ignore[no-untyped-call]
        return self

    @abstractmethod
    def lookup_paths(self) -> Mapping[str, LookupPath]:
        """The lookup paths, by the names that `Addressed.paths` has for them."""

    @abstractmethod
    def asked(self, batch: Bags) -> Asked:
        """The first half of addressing a batch: what it asks of the tables, which refuse it here or not at all."""

    def joined(self, asked: Asked) -> Addressed:
        """The second half: its rows as the stores look them up."""
        paths = {name: path.joined(asked.uses) for name, path in self.lookup_paths().items()}
        return replace(asked.rest, paths=paths)

    def use_rows(self, batch: Bags, *, tables: Collection[str] | None = None) -> dict[str, UseRows]:
        """By output key, what becomes of a batch's ids.

        Args:
            batch: the ids.
            tables: of which tables; None of all.

        Raises:
            IdRangeError: an id outside its table.
            DataError: a feature is missing.
        """
        return {
            use.key: path.use_rows(use, Ids(*batch.of(use.feature, spec=use.method.spec)))
            for path in self.lookup_paths().values()
            for use in path.uses
            if tables is None or use.method.spec.name in tables
        }

    @abstractmethod
    def row_stores(self) -> list[RowStore]:
        """The row stores that are in use."""

    def built_methods(self) -> Iterator[Method]:
        """The method of each spec, in order."""
        for method in self.methods:
            assert isinstance(method, Method)
            yield method

    def _key(self, spec: TableSpec, feature: str) -> str:
        return output_key(spec, feature, specs=self.specs)

    def _path(self, kind: str, pairs: Iterable[tuple[Method, str]]) -> LookupPath:
        """A lookup path over rows of its own.

        Args:
            kind: see `PATHS`.
            pairs: methods and the features that they look up, in the order of the lookups.
        """
        pairs = list(pairs)
        tables: dict[str, PhysicalTable] = {}
        for table in (table for method, _ in pairs for table in method.physical):
            if tables.setdefault(table.name, table) != table:
                raise ConfigError(
                    f"two methods declare the physical table '{table.name}' with different shapes: "
                    f"{tables[table.name]} and {table}"
                )
        numbers = {name: number for number, name in enumerate(tables)}
        is_once = PATHS[kind].asks_once
        lookups: list[int] = list(numbers.values()) if is_once else []
        uses: list[Use] = []
        for method, feature in pairs:
            own = [numbers[table.name] for table in method.physical]
            positions = own if is_once else range(len(lookups), len(lookups) + len(own))
            lookups += [] if is_once else own
            uses.append(Use(method, feature, self._key(method.spec, feature), tuple(positions)))
        store = self._store(list(tables.values()), lookups) if tables else None
        return PATHS[kind](store, uses, device=self.device)

    @own_defaults()
    def _store(self, tables: Sequence[PhysicalTable], lookups: Sequence[int]) -> RowStore:
        spec = StoreSpec.of_tables(tables, lookups=lookups, **self._how_held)
        if self.sharding is None:
            return build_rows(spec)
        from embank.tables.sharding.sharded_rows import (
            ShardedRows,  # TorchRec's distributed half takes a while to import
        )

        return ShardedRows(spec, sharding=self.sharding)

    @contextmanager
    def _pass(self) -> Iterator[Pass]:
        """A forward pass."""
        settle_optimizer(self)
        if self._would_drift() and self.training:
            raise replica_error()
        with moving_statistics(self.statistics_learn):
            yield Pass(rows_learn=self.rows_learn and not self.rows_frozen, losses=[])

    def _end_pass(self, outputs: Sequence[Tensor], within: Pass) -> Sequence[Tensor]:
        """To be called last in every forward pass, with what it returns."""
        if self._would_drift():
            forbid_backward(outputs, error=replica_error)
        is_training = self.is_accompanied and self.training and torch.is_grad_enabled()
        return accompanied(self, outputs, within.losses) if is_training else outputs

    def _would_drift(self) -> bool:
        """Whether a backward pass would update rows here that other processes have too, each by its own part of a
        batch."""
        is_alone = self.sharding is None and not self.optimizer.is_external
        return is_alone and self.rows_learn and torch.is_grad_enabled() and is_one_of_many()

    def begin(self, *, num_steps: int, step: int = 0) -> None:
        """Says how long a training is, before its first step. Methods with a schedule need it: pruning, temperatures,
        restarts of codes.

        Args:
            num_steps: steps of the training; of a method with several stages, of the current one.
            step: steps done before, where a training is resumed.

        Raises:
            ConfigError: no step, or more done than there are, or no whole numbers.
        """
        self.training_state.begin(num_steps=num_steps, step=step)
        if step and not num_updates(self):  # otherwise what was loaded says how many, several to a step perhaps
            load_num_updates(self, step)

    def step(self) -> None:
        """Ends a training step, after the backward pass: finishes the rows' update, and lets methods follow their
        schedules.

        All processes of a sharded collection call it together.

        Raises:
            ConfigError: a method has a schedule, and `begin` was not called.
        """
        from embank.tables.collections.stages import after_step, settle

        if self.is_accompanied:
            refuse_unknown_length(self)
        self.update_rows()
        state = self.training_state
        state.num_done += 1
        after_step(self, step=state.num_done, num_steps=state.num_steps or state.num_done)
        if state.num_done == state.num_steps:
            settle(self)

    def extra_loss(self) -> Tensor | None:
        """What methods add to the loss of the training pass that has just run, to be asked for once; None if nothing.

        A backward pass takes it along by itself, with weight 1, unless it was asked for. Ask for it and add it to the
        loss to see it, or where the loss is scaled (accumulation over micro-batches).
        """
        loss = self.training_state.take_loss()
        return summed_losses(self, []) if loss is None else loss

    def update_rows(self) -> None:
        """Finishes the rows' update after a backward pass: the first half of `step`."""
        for rows in self.row_stores():
            rows.update()

    def set_lr(self, lr: float) -> None:
        """Sets the rows' learning rate for the next step.

        Raises:
            ConfigError: it is negative or not finite, or the rows are left to an optimizer of the program.
        """
        refuse_bad_lr(lr)
        if self.optimizer.is_external:
            settle_optimizer(self)
        if self.optimizer.is_external:
            raise ConfigError(
                "these rows are parameters for an optimizer of the program, and their rate is its; set it there, or "
                "give the tables an optimizer of their own (optimizer=RowOptimizer(...))"
            )
        self.lr = lr
        for rows in self.row_stores():
            rows.set_lr(lr)
        if self.chosen_optimizer is not None:
            self.chosen_optimizer.follow_lr(lr)

    def weights(self) -> dict[str, Tensor]:
        """Rows [R, D] of each physical table by name: views, not copies.

        They can be written to within `writing`, but nothing checks what is written: `copy_` spreads one row over all of
        them. `set_rows` and `import_rows` check.
        """
        if self.optimizer.is_external and self.rows_are_parameters:
            follow_parameters(self)  # a program may have replaced some
        return {name: view for rows in self.row_stores() for name, view in rows.weights().items()}

    def writing(self) -> AbstractContextManager[None]:
        """For changes in place of what `weights` and `optimizer_state` return, see `RowStore.writing`."""
        return writing(self)

    import_rows = import_rows  # vectors that others have trained

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Row-optimizer state by physical table and name: views, not copies."""
        return {name: state for rows in self.row_stores() for name, state in rows.optimizer_state().items()}

    def dense_parameters(self) -> list[nn.Parameter]:
        """What methods hold besides rows; an ordinary optimizer updates it."""
        return list(self.methods.parameters())

    @property
    def device(self) -> torch.device:
        """Where the output is."""
        return torch.device(self.tier.device)
