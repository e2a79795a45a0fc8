"""How a logical table is stored: the spine of a lookup, and the method that has one.

    ids --address--> row ids --(rows)--> physical rows --combine--> logical rows --(pool)--> features

`address` and `side` are pure functions of ids and run early (data loader, prefetch thread). Rows live outside: in a
`RowStore` that updates them while a table is trained, held by a codec while it is served. `combine` runs in the forward
pass and may hold small dense parameters. Pooling comes after `combine`, unless that is linear in its rows.

All three are made of traceable tensor operations where they are served: no `.tolist()`, no `int(tensor)`, no loop that
depends on data. What differs from table to table are *facts* (numbers and texts that a bundle writes down) and tensors.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from embank.tables.method.allocation import Allocation
from embank.tables.method.fitting import Fitting
from embank.tables.method.options import options_of
from embank.tables.method.schedule import Schedule
from embank.tables.method.together import Array, Together
from embank.tables.rows.physical import PhysicalTable, RowInit, RowProjection, default_init
from embank.tables.specs import TableSpec

if TYPE_CHECKING:
    from embank.tables.serving.codecs.base import Coded


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a spine or a codec holds besides rows: what a bundle writes down, and what is to be known of it.

    Args:
        facts: names of plain attributes (numbers, texts, lists of them) that are saved.
        uncounted: names of tensors that the paper leaves out when it counts bytes, such as a map or a projection.
        on_host: names of buffers that `address` and `side` read in training: they stay in host memory, where these run,
            when a method goes to a GPU.
        sizes: those facts, whole numbers or lists of them, by which steps are repeated or tensors are made: a file in
            which one is above 524,288 is damaged.

    Example:
        >>> Held(facts=("num_rows", "width"), uncounted=("salt",), sizes=("width",))
        Held(facts=('num_rows', 'width'), uncounted=('salt',), on_host=(), sizes=('width',))
    """

    facts: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    on_host: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()


class Spine(nn.Module):
    """The three steps of a lookup around rows that it does not own. As it stands: each id is a row, taken as it is.

    Attributes:
        held: see `Held`. Everything that `address`, `side` and `combine` read when a table is served is a fact or a
            tensor of the spine itself (not of a submodule): so a bundle can write it down and make it again.

    Example:
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> spine = Spine()
        >>> (row_ids,) = spine.address(torch.tensor([1, 0]))
        >>> spine.combine((rows[row_ids],), spine.side(row_ids))
        tensor([[3., 4.],
                [1., 2.]])
    """

    held: ClassVar[Held] = Held()

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        """Row ids, one int64 [N] for each lookup: a pure function of the ids. Runs early, on the loader's thread."""
        return (ids_N,)

    def side(self, ids_N: Tensor) -> Tensor | None:
        """What `combine` must know of the ids besides their rows (offsets, signs, groups, masks), [N, ...]: pure and
        early too."""
        return None

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> "Tensor | Combined":
        """Logical rows [N, D] from physical rows, one [N, width] for each lookup, and what `side` made. Differentiable.

        By default the rows side by side. `self.training` tells training (random masks, noise) from evaluation.
        """
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def joint_place(self) -> Hashable | None:
        """What spines have in common that are looked up `together`; None where each table is asked alone. By default
        (), which all have that only address."""
        kind = type(self)
        return () if kind.combine is Spine.combine and kind.side is Spine.side else None

    @classmethod
    def together(cls, spines: Sequence[Self]) -> Together:
        """The steps of several tables of one `joint_place`, of one matrix each. As it stands, of tables that only
        address, one after the other."""

        def address(ids_JB: Array) -> tuple[Array, None]:
            rows = [spine.address(ids_B)[0] for spine, ids_B in zip(spines, torch.from_numpy(ids_JB), strict=True)]
            return torch.stack(rows).numpy(), None

        return Together() if cls.address is Spine.address else Together(address=address)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `nn.Module.to` and its like call."""
        stay = {name: self._buffers[name] for name in self.held.on_host if name in self._buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers.update(stay)
        return self


class JointSpine(Spine):
    """A spine whose `address` and `side` share work: `address_and_side` makes both.

    Example:
        >>> class Pairs(JointSpine):
        ...     def address_and_side(self, ids_N):
        ...         return (ids_N // 2,), ids_N % 2
        >>> Pairs().address(torch.tensor([4, 5])), Pairs().side(torch.tensor([4, 5]))
        ((tensor([2, 2]),), tensor([0, 1]))
    """

    def address_and_side(self, ids_N: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """What `address` and what `side` returns."""
        raise NotImplementedError

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return self.address_and_side(ids_N)[0]

    def side(self, ids_N: Tensor) -> Tensor | None:
        return self.address_and_side(ids_N)[1]


class Combined(NamedTuple):
    """What `combine` returns in a training pass that also adds to the loss.

    Example:
        >>> rows_ND, loss = Combined(torch.ones(2, 3), torch.tensor(0.5))
    """

    rows_ND: Tensor
    loss: Tensor


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What is to be known of a method without making one.

    Args:
        combines: how `combine` makes logical rows. "side by side": the looked-up rows next to each other, nothing else;
            "linearly": a sum over a bag may be taken before it; "freely": neither. None: "side by side" where `combine`
            is not overridden, else "freely".
        is_plain: row i of the one physical table, which is named after its table, is row i of the logical table: what
            TorchRec calls the table's weight.
        takes_token_ids: ids may be hashes of tokens, 0 .. 2**63 - 1, without a vocabulary: nothing depends on their
            number, counts or order, and `address` is exact for all of them.
        whole_rows: some step needs whole rows (a norm, a scale per row, a nearest code), so column-wise sharding is
            refused.
        adds_loss: `combine` adds to the loss of a training pass, see `Combined`.
        tolerance: largest difference between what is served and the settled table's own values, as a share of the
            table's largest value. 0 means up to float rounding.
        schedule: what is done between steps.
        allocation: how bytes are shared between tables.
        fitting: how rows are made from vectors that others have trained.

    Example:
        >>> traits = Traits(combines="linearly", takes_token_ids=True)
        >>> method_class("unified").traits.takes_token_ids
        True
    """

    combines: Literal["side by side", "linearly", "freely"] | None = None
    is_plain: bool = False
    takes_token_ids: bool = False
    whole_rows: bool = False
    adds_loss: bool = False
    tolerance: float = 0.0
    schedule: Schedule = field(default_factory=Schedule)
    allocation: Allocation = field(default_factory=Allocation)
    fitting: Fitting = field(default_factory=Fitting)


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a table is served as.

    Args:
        spine: whose address, side and combine are served.
        matrices: what it reads, by name: rows [R, width], which any codec may hold, or rows that are coded already.
        lookups: for each tensor of `address`, the name of the matrix that it indexes.

    Example:
        >>> served = Served.of_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> served.lookups
        ('rows',)
        >>> PackedTable.of(served).lookup(torch.tensor([1]))
        tensor([[3., 4.]])
    """

    spine: Spine
    matrices: "Mapping[str, Tensor | Coded]"
    lookups: tuple[str, ...]

    @classmethod
    def of_rows(cls, rows: "Tensor | Coded", *, spine: Spine | None = None) -> "Served":
        """One lookup in one matrix; by default each id has its row."""
        return cls(spine=Spine() if spine is None else spine, matrices={"rows": rows}, lookups=("rows",))


class Method(Spine):
    """How one logical table is stored.

    Subclasses set `physical` in `__init__`; everything else has a default that suits a method of one stage whose rows
    are looked up, combined and served as they are.

    Args:
        spec: of the table.
        seed: initial values of dense parameters depend on it and on the table's name.

    Attributes:
        Config: the frozen dataclass of the method's own options.
        traits: what is to be known of the method.
        spec: the table's.
        options: the spec's, or the defaults of `Config`.
        physical: for each tensor that `address` returns the physical table that it indexes; one that is looked up
            several times is there several times.

    Raises:
        ConfigError: options of another method, or a value of the wrong type.

    Example:
        >>> @option_class
        ... class ModuloConfig:
        ...     num_rows: int = 100
        >>> class Modulo(Method):
        ...     Config = ModuloConfig
        ...     held = Held(facts=("num_rows",))
        ...     def __init__(self, spec, *, seed=0):
        ...         super().__init__(spec, seed=seed)
        ...         self.num_rows = self.options.num_rows
        ...         self.physical = (own_table(spec, num_rows=self.num_rows),)
        ...     def address(self, ids_N):
        ...         return (ids_N % self.num_rows,)
        >>> modulo = Modulo(TableSpec(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"]))
        >>> modulo.address(torch.tensor([7, 107]))
        (tensor([7, 7]),)
    """

    Config: ClassVar[type]
    traits: Traits = Traits()
    physical: tuple[PhysicalTable, ...] = ()

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.options: Any = options_of(spec, self.Config)

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        """What is served, from the rows [R, width] of each physical table by name. By default this spine over them."""
        names = tuple(table.name for table in self.physical)
        return Served(spine=self, matrices={name: rows[name] for name in names}, lookups=names)


class DistinctMethod(Method):
    """A method whose `combine` costs much per row: a collection looks each distinct row of a batch up once and calls
    `combine_distinct`.

    Example:
        >>> issubclass(method_class("tt_rec"), DistinctMethod)
        True
    """

    def combine_distinct(self, rows: tuple[Tensor, ...], places_LN: Tensor, side: Tensor | None) -> "Tensor | Combined":
        """What `combine` makes, from rows that were looked up once each.

        Args:
            rows: for each lookup its distinct rows [U, width]: those of all features of the table, perhaps followed by
                rows of zeros.
            places_LN: for each lookup where each id's row is among them, int64 [L, N].
            side: as for `combine`.
        """
        return self.combine(tuple(own.index_select(0, at) for own, at in zip(rows, places_LN, strict=True)), side)


def own_table(
    spec: TableSpec,
    *,
    name: str | None = None,
    num_rows: int | None = None,
    width: int | None = None,
    init: RowInit | None = None,
    projection: RowProjection | None = None,
) -> PhysicalTable:
    """A physical table of a logical one's own.

    Args:
        spec: of the logical table.
        name: by default the logical table's.
        num_rows: by default a row for each id.
        width: by default the embedding dim.
        init: by default as a plain table of so many rows begins.
        projection: applied to rows after each update of theirs.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"])
        >>> own = own_table(spec, num_rows=100)
        >>> own.name, own.num_embeddings, own.embedding_dim
        ('item', 100, 8)
    """
    return PhysicalTable(
        name=spec.name if name is None else name,
        num_embeddings=spec.num_embeddings if num_rows is None else num_rows,
        embedding_dim=spec.embedding_dim if width is None else width,
        init=default_init(spec, num_rows=num_rows) if init is None else init,
        projection=projection,
    )


def physical_tables(method: Method) -> tuple[PhysicalTable, ...]:
    """The physical tables of a method, each once, in the order of its lookups.

    Example:
        >>> spec = TableSpec(
        ...     name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"], method="unified", budget=0.1
        ... )
        >>> method = build_method(spec)  # two lookups in one table
        >>> len(method.physical), len(physical_tables(method))
        (2, 1)
    """
    return tuple(dict.fromkeys(method.physical))


def combination(method: Method) -> Literal["side by side", "linearly", "freely"]:
    """How a method's `combine` makes logical rows, see `Traits`."""
    if method.traits.combines is not None:
        return method.traits.combines
    return "side by side" if type(method).combine is Spine.combine else "freely"
