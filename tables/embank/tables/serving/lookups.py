"""Packed tables looked up by plain tensors, as few calls as possible for all features together.

`PackedCollection` takes a KeyedJaggedTensor, feature by feature. Here features with one id in each row are looked up
side by side: their ids are stacked and checked at once, and tables whose rows are in one file and alike (width, codec)
are one matrix, from which one call takes the rows of all of them.

Legend: F features with one id in each row, K uses of a group, B rows of a batch, N ids of a feature with bags.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from embank.tables.collections.ids import check_ids, int64_ids, missing_ids
from embank.tables.collections.paths import summed
from embank.tables.errors import CheckpointError, DataError
from embank.tables.method.base import JointSpine, Spine
from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.packed import PackedCollection
from embank.tables.serving.table import PackedTable, looked_up
from embank.tables.specs import TableSpec

Ids = Mapping[str, Tensor]


class Use(NamedTuple):
    """A feature looked up in a table."""

    spec: TableSpec
    pack: PackedTable
    feature: str


class _Rows(NamedTuple):
    """Where the rows of a table are, for a spine that only addresses: None where each id is its row."""

    table: str
    matrix: Coded
    place: Hashable
    spine: Spine | None

    @classmethod
    def of(cls, use: Use) -> "_Rows | None":
        """Those of a table; None where a lookup is more than that, or takes its rows alone."""
        pack = use.pack
        kind, matrices = type(pack.spine), pack.coded
        is_plain = kind.combine is Spine.combine and kind.side is Spine.side and not isinstance(pack.spine, JointSpine)
        if not is_plain or len(pack.lookups) != 1 or len(matrices) != 1:
            return None
        place = matrices[0].joint_place()
        if place is None:
            return None
        own = None if kind.address is Spine.address else pack.spine
        return cls(use.spec.name, matrices[0], (type(matrices[0]), place), own)


class _Stack:
    """Uses next to each other in the output, each with one id in a row, whose rows one call takes.

    Args:
        rows: of each use.
        columns: which of the stacked features each one is.
    """

    def __init__(self, rows: Sequence[_Rows], columns: Sequence[int]) -> None:
        matrices = [own.matrix for own in rows]
        self.take = type(matrices[0]).joined(matrices)
        self.names = [own.table for own in rows]
        self.columns = list(columns)
        self.columns_K = torch.tensor(self.columns)
        self.addresses = _addresses([own.spine for own in rows])
        self.num_rows_K1 = torch.tensor([[own.matrix.num_joint_rows()] for own in rows])
        self.is_next = self.columns == list(range(columns[0], columns[0] + len(columns)))

    def __call__(self, ids_FB: Tensor) -> Tensor:
        """Rows side by side, [B, K D]."""
        first = self.columns[0]
        ids_KB = ids_FB[first : first + len(self.columns)] if self.is_next else ids_FB.index_select(0, self.columns_K)
        if self.addresses:
            ids_KB = self._addressed(ids_KB)
            self._refuse_elsewhere(ids_KB)
        rows_ND = self.take(ids_KB)
        return rows_ND.view(ids_FB.shape[1], len(self.columns) * rows_ND.shape[1])  # of no rows -1 would say nothing

    def _addressed(self, ids_KB: Tensor) -> Tensor:
        """Rows [K, B] of ids, of all tables of a method at once where it can."""
        (places_J, address), *others = self.addresses
        if not others and len(places_J) == len(self.columns):
            return address(ids_KB)
        rows_KB = ids_KB.clone()
        for places_J, address in self.addresses:
            rows_KB[places_J] = address(ids_KB.index_select(0, places_J))
        return rows_KB

    def _refuse_elsewhere(self, rows_KB: Tensor) -> None:
        """Raises CheckpointError where an address is not in its own table, but for the matrix another one's row."""
        wrong_KB = (rows_KB < 0) | (rows_KB >= self.num_rows_K1)
        if bool(wrong_KB.any()):
            k = int(wrong_KB.nonzero()[0, 0])
            raise CheckpointError(
                f"ids of table '{self.names[k]}' can't be looked up: they have rows {int(rows_KB[k].min())} to "
                f"{int(rows_KB[k].max())} of {int(self.num_rows_K1[k])}. What is served of it is damaged: copy or "
                "export its bundle again"
            )


def _addresses(spines: Sequence[Spine | None]) -> list[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """For each method among some tables which of them it has, and what gives rows [J, B] for their ids [J, B]."""
    kinds: dict[type[Spine], list[int]] = {}
    for place, spine in enumerate(spines):
        if spine is not None:
            kinds.setdefault(type(spine), []).append(place)
    found = []
    for kind, places in kinds.items():
        own = [spine for place in places if (spine := spines[place]) is not None]
        together = kind.address_together(own)
        found.append((torch.tensor(places), _one_by_one(own) if together is None else together))
    return found


def _one_by_one(spines: Sequence[Spine]) -> Callable[[Tensor], Tensor]:
    return lambda ids_JB: torch.stack([spine.address(ids_B)[0] for spine, ids_B in zip(spines, ids_JB, strict=True)])


class Lookups:
    """The tables of a packed collection over plain tensors: what `PackedCollection` returns, in parts.

    Nothing in it changes once it is made: threads may share it.

    Args:
        collection: the tables; shared, not copied.
        parts: numbers of uses, one after the other, whose columns belong together; None takes all as one part.
        bags: features whose rows hold any number of ids. Others hold one.

    Attributes:
        features: what is looked up, in the order of the tables.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=10, embedding_dim=2, feature_names=["item", "seen"])
        >>> packed = pack_collection(TableCollection([spec]))
        >>> lookups = Lookups(packed, bags=["seen"])
        >>> ids = {"item": torch.tensor([7, 8]), "seen": torch.tensor([1, 2, 3])}
        >>> (values,) = lookups(ids, {"seen": torch.tensor([0, 3])}, num_rows=2)
        >>> values.shape  # two features of two columns each
        torch.Size([2, 4])
    """

    def __init__(
        self, collection: PackedCollection, *, parts: Sequence[int] | None = None, bags: Collection[str] = ()
    ) -> None:
        uses = [Use(s, pack, feature) for s, pack in collection.packed_tables() for feature in s.feature_names]
        self.tables: dict[str, TableSpec] = {}  # of each feature the smallest one, which its ids must fit
        for use in uses:
            own = self.tables.setdefault(use.feature, use.spec)
            if use.spec.num_embeddings < own.num_embeddings:
                self.tables[use.feature] = use.spec
        self.features = list(self.tables)
        self.bags = [feature for feature in self.features if feature in bags]
        self.single = [feature for feature in self.features if feature not in bags]
        self.column = {feature: column for column, feature in enumerate(self.single)}
        self.last_F1 = torch.tensor([[self.tables[feature].num_embeddings - 1] for feature in self.single])
        self.zero_F1 = torch.zeros_like(self.last_F1)
        self.parts: list[list[_Stack | Use]] = []
        at = 0
        for size in [len(uses)] if parts is None else parts:
            self.parts.append(self._steps(uses[at : at + size]))
            at += size

    def _steps(self, uses: Sequence[Use]) -> list["_Stack | Use"]:
        """How some columns are made: what lies in one matrix, and next to each other in the output, at once."""
        steps: list[_Stack | Use] = []
        run: list[tuple[_Rows, int]] = []
        for place, use in enumerate(uses):
            rows, following = _Rows.of(use), next(iter(uses[place + 1 :]), None)
            if use.feature in self.bags or rows is None:
                steps.append(use)
            else:
                run.append((rows, self.column[use.feature]))
                if following is None or not self._goes_on(rows, following):
                    steps.append(_Stack([rows for rows, _ in run], [column for _, column in run]))
                    run = []
        return steps

    def _goes_on(self, rows: _Rows, following: Use) -> bool:
        other = None if following.feature in self.bags else _Rows.of(following)
        return other is not None and other.place == rows.place

    def __call__(self, ids: Ids, lengths: Ids, *, num_rows: int, padded: int | None = None) -> list[Tensor]:
        """Pooled logical rows, fp32 [B, columns] for each part.

        Args:
            ids: for each feature integers: [B], or those of its bags one after the other, [N].
            lengths: for each feature with bags how many ids each has, integers [B].
            num_rows: B.
            padded: so many rows come out, those behind the batch's of id 0 and of empty bags.

        Raises:
            IdRangeError: an id outside its table.
            DataError: a feature is missing, or a tensor has another shape or type.
            CheckpointError: the bundle that the tables are from was damaged unnoticed, and an id leads nowhere.
        """
        (parts,) = self.blocks(ids, lengths, num_rows=num_rows, padded=padded)
        return parts

    def blocks(
        self, ids: Ids, lengths: Ids, *, num_rows: int, padded: int | None = None, block_rows: int | None = None
    ) -> Iterator[list[Tensor]]:
        """The same, some rows at a time, each time for all parts: what is taken of a stack of tables stays in a core's
        cache for who uses it.

        Args:
            ids, lengths, num_rows, padded: see `__call__`.
            block_rows: rows at a time; None gives all at once.
        """
        ids_FB = self._stacked(ids, num_rows)
        bags = {feature: self._bags_of(feature, ids, lengths, num_rows) for feature in self.bags}
        if padded is not None and padded > num_rows:
            ids_FB = F.pad(ids_FB, (0, padded - num_rows))
            bags = {name: (ids_N, F.pad(sizes_B, (0, padded - num_rows))) for name, (ids_N, sizes_B) in bags.items()}
        steps: list[list[_Stack | Tensor]] = [
            [step if isinstance(step, _Stack) else self._looked_up(step, ids_FB, bags) for step in part]
            for part in self.parts
        ]
        size = ids_FB.shape[1]
        if block_rows is None or size <= block_rows:
            yield [_side_by_side([s(ids_FB) if isinstance(s, _Stack) else s for s in part], size) for part in steps]
            return
        for start in range(0, size, block_rows):
            end = min(start + block_rows, size)
            own_FB = ids_FB[:, start:end]
            yield [
                _side_by_side([s(own_FB) if isinstance(s, _Stack) else s[start:end] for s in part], end - start)
                for part in steps
            ]

    def _looked_up(self, use: Use, ids_FB: Tensor, bags: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Rows [B, D] of a use, whatever its method does."""
        if use.feature not in bags:
            return looked_up(use.pack, ids_FB[self.column[use.feature]], spec=use.spec)
        ids_N, lengths_B = bags[use.feature]
        return summed(looked_up(use.pack, ids_N, spec=use.spec), lengths_B, pooling=use.spec.pooling)

    def _stacked(self, ids: Ids, num_rows: int) -> Tensor:
        """Ids int64 [F, B] of the features with one in each row, all of them within their tables."""
        if not self.single:
            return torch.empty(0, num_rows, dtype=torch.int64)
        try:
            ids_FB = int64_ids(torch.stack([ids[feature] for feature in self.single]))
        except (KeyError, TypeError, RuntimeError):
            ids_FB = None
        if ids_FB is None or ids_FB.shape != (len(self.single), num_rows):
            for feature in self.single:
                self._refuse_other_shape(feature, ids, num_rows)
            raise DataError("the ids of the features can't be put together; give them as int64 tensors in host memory")
        if not torch.equal(ids_FB.clamp(self.zero_F1, self.last_F1), ids_FB):  # quicker for one row than two extremes
            self._refuse_range(ids_FB)
        return ids_FB

    def _refuse_range(self, ids_FB: Tensor) -> None:
        for feature, ids_B in zip(self.single, ids_FB, strict=True):
            spec = self.tables[feature]
            check_ids(ids_B, table=spec.name, feature=feature, num_embeddings=spec.num_embeddings)

    def _refuse_other_shape(self, feature: str, ids: Ids, num_rows: int) -> None:
        """Raises DataError where the ids of a feature are not one integer for each row."""
        if feature not in ids:
            raise missing_ids(feature, table=self.tables[feature].name, present=ids)
        if not isinstance(ids[feature], Tensor):
            raise DataError(f"the ids of feature '{feature}' are a {type(ids[feature]).__name__}; give a tensor")
        int64_ids(ids[feature])
        if ids[feature].shape != (num_rows,):
            raise DataError(
                f"feature '{feature}' has ids of shape {list(ids[feature].shape)} for {num_rows:,} rows; give one id "
                "for each row, or the lengths of its bags"
            )

    def _bags_of(self, feature: str, ids: Ids, lengths: Ids, num_rows: int) -> tuple[Tensor, Tensor]:
        """Ids int64 [N] of a feature, and the lengths [B] of its bags, checked."""
        spec = self.tables[feature]
        for given in (ids, lengths):
            if feature not in given:
                raise missing_ids(feature, table=spec.name, present=given)
            if not isinstance(given[feature], Tensor) or given[feature].dim() != 1:
                raise DataError(f"feature '{feature}' needs ids and lengths of its bags as tensors of one dimension")
        ids_N, lengths_B = int64_ids(ids[feature]), int64_ids(lengths[feature])
        total = int(lengths_B.sum())
        if lengths_B.shape != (num_rows,) or total != ids_N.numel() or bool((lengths_B < 0).any()):
            raise DataError(
                f"feature '{feature}' has {lengths_B.numel():,} bags of {total:,} ids in all, for {num_rows:,} rows "
                f"and {ids_N.numel():,} ids; give the length of a bag for each row, 0 or more, that sum up to the ids"
            )
        check_ids(ids_N, table=spec.name, feature=feature, num_embeddings=spec.num_embeddings)
        return ids_N, lengths_B


def _side_by_side(blocks: Sequence[Tensor], num_rows: int) -> Tensor:
    if len(blocks) == 1:
        return blocks[0]
    return torch.cat(list(blocks), dim=1) if blocks else torch.empty(num_rows, 0)
