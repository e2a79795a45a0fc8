"""What every collection of tables is, however it looks ids up: specs, their methods, and the stores that hold their
rows.

`TableCollection` pools bags, `SequenceCollection` keeps every id's row. Stages, checkpoints and bytes need neither and
take any `Tables`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from embank.tables.collections.copying import reduced
from embank.tables.collections.held_rows import fp32_rows, settled_copies, writing
from embank.tables.collections.ids import output_key, refuse_bad_names
from embank.tables.collections.importing import import_rows
from embank.tables.collections.named import NamedModules
from embank.tables.collections.paths import PATHS, LookupPath, Pass, Use
from embank.tables.collections.row_mark import RowMarkHolder
from embank.tables.collections.state import (
    identity_tensor,
    load_num_updates,
    load_row_state,
    num_updates,
    row_state,
    set_rows,
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
from embank.tables.rows.held_bytes import distinct_nbytes
from embank.tables.rows.physical import PhysicalTable
from embank.tables.rows.store_spec import refuse_bad_lr
from embank.tables.sharding.processes import Processes, is_one_of_many
from embank.tables.specs import TableSpec

if TYPE_CHECKING:
    from embank.tables.serving.codecs.base import Coded
    from embank.tables.serving.table import PackedTable
    from embank.tables.sharding.sharded_rows import Sharding


class Tables(OneStep, ABC):
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
        self.mark = RowMarkHolder(self)
        self.specs = tuple(specs)
        self.seed = seed
        self.backend = backend
        self.optimizer = optimizer or RowOptimizer()
        self.lr = self.optimizer.lr  # see `set_lr`
        self.tier = tier or RowTier()
        self.tier.refuse_missing_device()
        refuse_bad_names(self.specs, owner=type(self).__name__)
        self.methods = NamedModules({spec.name: build_method(spec, seed=seed) for spec in self.specs}).to(self.device)
        self.is_accompanied = any(needs_company(method) for method in self.built_methods())
        refuse_differing(list(self.built_methods()))

    def get_extra_state(self) -> Tensor:
        """What the rows in a `state_dict` belong to."""
        return identity_tensor(self)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: `load_state_dict` compares it before it loads rows."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """What `state_dict` calls, here and in a module that the tables are part of."""
        rows = row_state(self)
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: view for name, view in rows.items()})

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """What `load_state_dict` calls. Rows are copied into place, with `assign` too: they can't be replaced."""
        loaded = load_row_state(self, state_dict, prefix=prefix, missing=missing_keys)
        others: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, others, error_msgs)
        unexpected_keys += [name for name in others if name not in loaded]

    @property
    def arguments(self) -> dict[str, Any]:
        """What a collection like this one is made with, besides specs and sharding."""
        return {"seed": self.seed, "backend": self.backend, "optimizer": self.optimizer, "tier": self.tier}

    def rebuilt(self, specs: Sequence[TableSpec]) -> Self:
        """A new collection of other specs with everything else as here."""
        sharding = None if self.sharding is None else self.sharding.for_specs(specs)
        return type(self)(specs, sharding=sharding, **self.arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        """What `pickle`, `copy.deepcopy` and `torch.save` of a whole model call.

        Raises:
            ConfigError: rows are files, or spread over processes.
        """
        return reduced(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `nn.Module.to`, `half` and their like call. Types stay as they are, here and in the methods.

        Raises:
            ConfigError: a move to another device than the rows'.
        """
        super()._apply(keeping_types(fn, device=self.device), recurse)  # type: ignore[no-untyped-call]
        return self

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
        how = {"seed": self.seed, "backend": self.backend, "optimizer": self.optimizer, "tier": self.tier}
        spec = StoreSpec.of_tables(tables, lookups=lookups, **how)
        if self.sharding is None:
            return build_rows(spec)
        from embank.tables.sharding.sharded_rows import (
            ShardedRows,  # TorchRec's distributed half takes a while to import
        )

        return ShardedRows(spec, sharding=self.sharding)

    @contextmanager
    def _pass(self) -> Iterator[Pass]:
        """A forward pass."""
        if self._would_drift() and self.training:
            raise replica_error()
        with moving_statistics(self.statistics_learn):
            yield Pass(rows_learn=self.rows_learn, losses=[])

    def _end_pass(self, outputs: Sequence[Tensor], within: Pass) -> Sequence[Tensor]:
        """To be called last in every forward pass, with what it returns."""
        if self._would_drift():
            forbid_backward(outputs, error=replica_error)
        is_training = self.is_accompanied and self.training and torch.is_grad_enabled()
        return accompanied(self, outputs, within.losses) if is_training else outputs

    def _would_drift(self) -> bool:
        """Whether a backward pass would update rows here that other processes have too, each by its own part of a
        batch."""
        return self.sharding is None and self.rows_learn and torch.is_grad_enabled() and is_one_of_many()

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
            ConfigError: it is negative or not finite.
        """
        refuse_bad_lr(lr)
        self.lr = lr
        for rows in self.row_stores():
            rows.set_lr(lr)

    def weights(self) -> dict[str, Tensor]:
        """Rows [R, D] of each physical table by name: views, not copies.

        They can be written to within `writing`, but nothing checks what is written: `copy_` spreads one row over all of
        them. `set_rows` checks.
        """
        return {name: view for rows in self.row_stores() for name, view in rows.weights().items()}

    def writing(self) -> AbstractContextManager[None]:
        """For changes in place of what `weights` and `optimizer_state` return, see `RowStore.writing`."""
        return writing(self)

    def set_rows(self, table: str, rows_RD: Tensor) -> None:
        """Replaces the rows of a physical table; its optimizer state stays.

        Args:
            table: the physical table's name, which for plain tables is the table's own.
            rows_RD: all of its rows, also where rows are sharded: each process takes those that it holds.

        Raises:
            ConfigError: no such table, or rows of another shape; nothing has changed.
        """
        set_rows(self, table, rows_RD)

    import_rows = import_rows  # vectors that others have trained

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Row-optimizer state by physical table and name: views, not copies."""
        return {name: state for rows in self.row_stores() for name, state in rows.optimizer_state().items()}

    def dense_parameters(self) -> list[nn.Parameter]:
        """What methods hold besides rows; an ordinary optimizer updates it."""
        return list(self.methods.parameters())

    def nbytes(self, kind: Literal["training", "serving", "nominal"]) -> int:
        """Bytes held in training by this process (padding, optimizer state and a kernel's caches and constants
        included; what one batch needs is not, nor is what an optimizer keeps for `dense_parameters`), by the packed
        form, or of this by what the methods' papers count.

        Raises:
            ConfigError: another kind.
        """
        if kind == "training":
            held = [t for rows in self.row_stores() for t in rows.held_tensors()]
            return distinct_nbytes([*held, *self.methods.parameters(), *self.methods.buffers()])
        if kind not in ("serving", "nominal"):
            raise ConfigError(f"there are no '{kind}' bytes; ask for 'training', 'serving' or 'nominal'")
        packs = self.packs()
        if kind == "nominal":
            return distinct_nbytes([t for pack in packs for t in pack.counted()])
        return distinct_nbytes([t for pack in packs for t in pack.buffers()])

    def packs(self, *, copied: bool = False, codec: str | Mapping[str, str] = "fp32") -> "list[PackedTable]":
        """The inference form of each table as it would be settled, in host memory; where rows are there, it may share
        them unless they are to be copied. The tables themselves stay as they are.

        Args:
            copied: share no memory with the rows.
            codec: what the methods do not code themselves is held by it; a name for all tables, or by table.

        Raises:
            ConfigError: rows are sharded: this process has a part of them; or there is no such codec or table.
        """
        from embank.tables.serving.codecs.registry import codecs_by_table
        from embank.tables.serving.table import pack_table

        self.refuse_packing_parts()
        rows = {
            name: weight.clone().cpu() if copied else weight.cpu()
            for name, weight in {**fp32_rows(self), **settled_copies(self)}.items()
        }
        methods = list(self.built_methods())
        codecs = codecs_by_table(codec, [method.spec.name for method in methods])
        shared: dict[tuple[str, str], Coded] = {}
        return [
            pack_table(deepcopy(m).cpu() if self.tier.on_gpu else m, rows, codec=codecs[m.spec.name], shared=shared)
            for m in methods
        ]

    def refuse_packing_parts(self) -> None:
        """Raises ConfigError if rows are sharded, so that what is here is not all of them."""
        if self.sharding is not None:
            raise ConfigError(
                f"the rows of these tables are spread over {self.processes.count} processes, so they can't be packed "
                "here, nor their serving bytes be counted: save_checkpoint on all of them, load_checkpoint in one "
                "process, and pack there"
            )

    @property
    def plain_nbytes(self) -> int:
        """Bytes of the plain fp32 tables, what budgets refer to."""
        return sum(spec.plain_nbytes for spec in self.specs)

    @property
    def device(self) -> torch.device:
        """Where the output is."""
        return torch.device(self.tier.device)
