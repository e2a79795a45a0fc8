"""`MemoryTables`: the rows of a language model's memory, beside the model and not in it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch.distributed as dist
from torch import Tensor

from embank.tables.collections.addressed import AddressedSequence
from embank.tables.collections.sequence import SequenceCollection
from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.memory.layouts import MemoryLayout, marked_tokens
from embank.tables.rows.room import row_nbytes, short_of_memory
from embank.tables.rows.store_spec import Backend, RowOptimizer, RowTier, refuse_names
from embank.tables.sharding.plan import Placement, Plan, check_plan
from embank.tables.sharding.planner import table_loads
from embank.tables.sharding.sharded_rows import Sharding
from embank.tables.specs import TableSpec
from embank.tables.storage.checkpoint import (
    load_rows,
    meta_of,
    read_verified,
    refuse_foreign,
    write_checkpoint,
)
from embank.tables.storage.new_folder import new_folder
from embank.tables.wording import human_bytes

Cut = Literal["rows", "heads", "columns"]
LayerRows = dict[str, dict[int, Tensor]]
"""By kind of memory and layer what the layer reads, [B, T, row_dim]."""

DEFAULT_OPTIMIZER = RowOptimizer(name="rowwise_adagrad", lr=0.8)
"""Rows of n-grams are seen a few times each, and want a rate far above the model's. It decides on more than any other
setting: try .2, .8 and 3.2."""


@dataclass(frozen=True, kw_only=True)
class AddressedMemory:
    """Rows that a batch asks for, by kind of memory; made ahead of the forward pass.

    Args:
        by_kind: what `SequenceCollection.address` made.
        marked_BT: the batch's marked compressed ids, for the history.
    """

    by_kind: Mapping[str, AddressedSequence]
    marked_BT: Tensor


class MemoryTables:
    """Rows of all memory layers of a model, looked up in one go before its first block.

    It is no module: `half()`, `state_dict()`, `parameters()` and optimizers of the model don't reach the rows, which
    have an optimizer and a learning rate of their own, without decay, and are updated in the backward pass. Each kind
    of memory has a collection of its own.

    Args:
        layouts: at most one of each kind, all of one tokenizer.
        optimizer: how rows are updated, for all kinds or by kind; None takes `DEFAULT_OPTIMIZER`. Lazy Adam is in the
            torch backend.
        backend, tier, seed, dedupe: as for `SequenceCollection`; on the disk tier each kind gets a folder.
        cut: how rows are spread over the processes of `group`, for all kinds or by kind: "rows" deals each table's rows
            to all of them, "heads" gives each table to one, "columns" gives each process a part of every row, for wide
            STEM rows. None holds them all here.
        group: the processes; None takes all.

    Raises:
        ConfigError: kinds named twice, settings of a kind that is not there, tokenizers that differ, rows of a type
            that the backend can't train, tables larger than the tier, or a cut by columns of rows whose width the
            processes do not divide or whose optimizer keeps a number for each whole row (row-wise Adagrad).

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> words = Tokenizer(models.WordLevel({"<s>": 0, "the": 1, "The": 2, "cat": 3}, unk_token="<s>"))
        >>> compression = TokenCompression.from_tokenizer(words)
        >>> config = EngramConfig(layer_ids=[1], rows_per_order=100, memory_dim=32, num_heads=2)
        >>> memory = MemoryTables([EngramLayout(config, compression, pad_token=0)])
        >>> addressed = memory.address(torch.tensor([[1, 3], [2, 3]]))  # in the data loader
        >>> rows = memory.look_up(addressed)["engram"][1]
        >>> rows.shape, torch.equal(rows[0], rows[1])  # "the cat" and "The cat"
        (torch.Size([2, 2, 32]), True)
        >>> rows.sum().backward()  # updates the rows
        >>> memory.step()
    """

    def __init__(
        self,
        layouts: Sequence[MemoryLayout],
        *,
        optimizer: RowOptimizer | Mapping[str, RowOptimizer] | None = None,
        backend: Backend = "fbgemm",
        tier: RowTier | None = None,
        cut: Cut | Mapping[str, Cut] | None = None,
        group: dist.ProcessGroup | None = None,
        seed: int = 0,
        dedupe: bool = False,
    ) -> None:
        self.layouts = {layout.kind: layout for layout in layouts}
        if not layouts or len(self.layouts) < len(layouts):
            kinds = [layout.kind for layout in layouts]
            raise ConfigError(f"the memory's tables are of the kinds {kinds}; give at least one, and each once")
        compressions = [layout.compression for layout in layouts]
        self.compression = compressions[0]
        for other in compressions[1:]:
            if other.digest != self.compression.digest:
                raise ConfigError("the kinds of memory are made for different tokenizers; make them for one")
        for name, given in (("optimizer", optimizer), ("cut", cut)):
            if isinstance(given, Mapping):
                self._refuse_unknown_kinds(given, what=f"`{name}`")
        if isinstance(cut, Mapping) and set(cut) != set(self.layouts):
            raise ConfigError(f"`cut` names the kinds {sorted(cut)}; name all of {sorted(self.layouts)}, or none")
        self.lookback = max(layout.lookback for layout in layouts)
        planned: dict[str, dict[str, Any]] = {}
        nbytes: dict[str, int] = {}
        for kind, layout in self.layouts.items():
            own = optimizer.get(kind) if isinstance(optimizer, Mapping) else optimizer
            refuse_names(tier=tier, optimizer=own)
            own = own or DEFAULT_OPTIMIZER
            specs = layout.specs
            own_cut = cut[kind] if isinstance(cut, Mapping) else cut
            own_tier = _tier_of(tier or RowTier(), kind)
            sharding = None if own_cut is None else _sharding(specs, own_cut, group, optimizer=own, tier=own_tier)
            num_ranks = 1 if sharding is None else sharding.plan.world_size
            nbytes[kind] = (
                sum(s.num_embeddings * row_nbytes(s.embedding_dim, own, dtype=own_tier.dtype) for s in specs)
                // num_ranks
            )
            planned[kind] = {"specs": specs, "optimizer": own, "tier": own_tier, "sharding": sharding}
        refuse_larger_than_memory(nbytes, tier or RowTier())
        self.collections = {
            kind: SequenceCollection(**how, seed=seed, backend=backend, dedupe=dedupe) for kind, how in planned.items()
        }

    def address(
        self,
        token_ids_BT: Tensor,
        *,
        dead_BT: Tensor | None = None,
        starts_BT: Tensor | None = None,
        before_BS: Tensor | None = None,
    ) -> AddressedMemory:
        """Which rows a batch asks for: pure, and meant to run in the data loader.

        Args:
            token_ids_BT: int64, as the tokenizer gives them.
            dead_BT: bool, positions without a token (padding).
            starts_BT: bool, positions at which another document begins.
            before_BS: marked compressed ids before them, where sequences come in pieces.

        Raises:
            DataError: ids that the tokenizer does not have, or other shapes.
        """
        marked_BT = marked_tokens(self.compression, token_ids_BT, dead_BT=dead_BT, starts_BT=starts_BT)
        return AddressedMemory(
            by_kind={
                kind: self.collections[kind].address(layout.ids(token_ids_BT, marked_BT, before_BS))
                for kind, layout in self.layouts.items()
            },
            marked_BT=marked_BT,
        )

    def prefetch(self, addressed: AddressedMemory) -> None:
        """A hint that `look_up` will be called with this batch soon. Never changes results."""
        for kind, collection in self.collections.items():
            collection.prefetch(addressed.by_kind[kind])

    def look_up(self, addressed: AddressedMemory) -> LayerRows:
        """What every layer reads: a backward pass from it updates the rows."""
        looked_up: LayerRows = {}
        for kind, layout in self.layouts.items():
            rows = cast(dict[str, Tensor], self.collections[kind](addressed.by_kind[kind]))
            looked_up[kind] = layout.by_layer(rows)
        return looked_up

    def __call__(self, token_ids_BT: Tensor, **marks: Tensor | None) -> LayerRows:
        """`look_up` of `address`."""
        return self.look_up(self.address(token_ids_BT, **marks))

    def step(self) -> None:
        """Ends a training step, after the backward pass."""
        for collection in self.collections.values():
            collection.step()

    def set_lr(self, lr: float | Mapping[str, float]) -> None:
        """Sets the rows' learning rate for the next step, of all kinds or by kind.

        Raises:
            ConfigError: a kind that is not there.
        """
        if isinstance(lr, Mapping):
            self._refuse_unknown_kinds(lr, what="set_lr")
        for kind, collection in self.collections.items():
            if not isinstance(lr, Mapping):
                collection.set_lr(lr)
            elif kind in lr:
                collection.set_lr(lr[kind])

    def _refuse_unknown_kinds(self, given: Mapping[str, Any], *, what: str) -> None:
        unknown = sorted(set(given) - set(self.layouts))
        if unknown:
            raise ConfigError(f"{what} names memory of kind '{unknown[0]}'; here it is {sorted(self.layouts)}")

    def train(self, mode: bool = True) -> "MemoryTables":
        """Training mode or, with False, evaluation mode."""
        for collection in self.collections.values():
            collection.train(mode)
        return self

    def eval(self) -> "MemoryTables":
        """Evaluation mode."""
        return self.train(False)

    def nbytes(self) -> int:
        """Bytes held here for rows and their optimizer state."""
        return sum(collection.nbytes("training") for collection in self.collections.values())

    def manifest(self) -> dict[str, Any]:
        """What decides on what rows mean, by kind, as JSON."""
        return {kind: layout.manifest() for kind, layout in self.layouts.items()}

    def refuse_other(self, manifest: Mapping[str, Any], *, what: str) -> None:
        """Refuses rows that are not of these very tables.

        Raises:
            CheckpointError: names the difference.
        """
        if set(manifest) != set(self.layouts):
            raise CheckpointError(
                f"{what} has memory of the kinds {sorted(manifest)}; here it is {sorted(self.layouts)}"
            )
        for kind, layout in self.layouts.items():
            layout.refuse_other(manifest[kind], what=what)

    def save(
        self,
        folder: str | Path,
        *,
        what: str | None = None,
        cure: str = "Nothing was left behind; make room or choose another folder",
    ) -> None:
        """Writes rows and their optimizer state: a checkpoint for each kind, which any number of processes can load. At
        every moment either all kinds or none of them are at `folder`.

        All processes call it together.

        Args:
            folder: must not exist yet.
            what, cure: of messages, for who saves it as a part of something else.

        Raises:
            CheckpointError: something is there already.
            WorkError: it can't be written, or rows are not finite; nothing is left behind.
        """
        processes = next(iter(self.collections.values())).processes  # kinds are spread over the same ones, or none is
        with ExitStack() as published:
            with processes.together():
                made = published.enter_context(new_folder(Path(folder), kind="memory")) if processes.is_first else None
            temporary = processes.first(made)
            assert temporary is not None
            for kind, collection in self.collections.items():
                write_checkpoint(
                    temporary / kind,
                    tables=collection,
                    dense={},
                    meta={"memory": self.layouts[kind].manifest()},
                    what=what or f"the memory '{Path(folder).absolute()}'",
                    cure=cure,
                )
            with processes.together():
                published.close()

    def load(self, folder: str | Path, *, optimizer: bool = True) -> None:
        """Loads what `save` wrote, after checking all of it, and that it is of these very tables: what is refused
        leaves all rows as they are.

        Args:
            folder: as given to `save`.
            optimizer: False leaves the optimizer's state alone.

        Raises:
            CheckpointError: damaged, or trained with another tokenizer, hash or size.
        """
        for kind, layout in self.layouts.items():
            own = Path(folder) / kind
            layout.refuse_other(meta_of(own).get("memory") or {}, what=f"the memory in '{own}'")
        for kind, collection in self.collections.items():
            read_verified(Path(folder) / kind, collection)
            refuse_foreign(Path(folder) / kind, collection, optimizer=optimizer)
        for kind, collection in self.collections.items():
            load_rows(Path(folder) / kind, tables=collection, optimizer=optimizer)


def memory_plan(tables: Sequence[str], *, world_size: int, cut: Cut) -> Plan:
    """Where tables go: "rows" deals each one's rows to all ranks, "columns" each row's numbers, "heads" gives whole
    tables to one rank after the other.

    Raises:
        ConfigError: another cut.
    """
    if cut == "rows":
        return Plan(world_size=world_size, tables={name: Placement(kind="row_wise") for name in tables})
    if cut == "columns":
        pieces = Placement(kind="column_wise", ranks=tuple(range(world_size)))
        return Plan(world_size=world_size, tables=dict.fromkeys(tables, pieces))
    if cut != "heads":
        raise ConfigError(f"rows can't be cut by '{cut}'; use 'rows', 'heads' or 'columns'")
    ranks = {name: place % world_size for place, name in enumerate(tables)}
    return Plan(
        world_size=world_size,
        tables={name: Placement(kind="table_wise", ranks=(rank,)) for name, rank in ranks.items()},
    )


def _sharding(
    specs: Sequence[TableSpec], cut: Cut, group: dist.ProcessGroup | None, *, optimizer: RowOptimizer, tier: RowTier
) -> Sharding:
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            f"rows are to be cut by {cut}, but there are no processes to spread them over; start with torchrun and "
            "call torch.distributed.init_process_group"
        )
    plan = memory_plan([spec.name for spec in specs], world_size=dist.get_world_size(group), cut=cut)
    loads = table_loads(specs, optimizer=optimizer, num_samples=None, row_dtype=tier.dtype)
    check_plan(plan, loads, optimizer=optimizer.name)
    return Sharding(plan=plan, group=group)


def _tier_of(tier: RowTier, kind: str) -> RowTier:
    if tier.directory is None:
        return tier
    return replace(tier, directory=tier.directory / kind)


def refuse_larger_than_memory(nbytes: Mapping[str, int], tier: RowTier) -> None:
    """Refuses tables that together are more than the memory that is left; a disk's room is checked when its files are
    made.

    Args:
        nbytes: by kind.
        tier: where rows are to be held.

    Raises:
        ConfigError: names both sizes.
    """
    total = sum(nbytes.values())
    free = short_of_memory(total, tier)
    if free is not None:
        raise ConfigError(
            f"the {' and '.join(nbytes)} tables need {human_bytes(total)} with their optimizer state, and {free.owner} "
            f"has {human_bytes(free.nbytes)} of memory left; use the tier 'disk', more processes, or fewer rows"
        )
