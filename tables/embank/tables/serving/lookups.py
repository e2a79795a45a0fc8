"""Packed tables looked up by plain tensors, as few calls as possible for all features together.

`PackedCollection` takes a KeyedJaggedTensor, feature by feature. Here features with one id in each row are looked up
side by side: their ids are stacked and checked at once, and tables whose rows are in one file and alike (width, codec)
are one matrix, from which one call takes the rows of all of them.

Legend: F features with one id in each row, K uses of a group, B rows of a batch, N ids of a feature with bags.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embank.tables.collections.ids import check_ids, int64_ids, is_any_outside, missing_ids
from embank.tables.collections.paths import summed
from embank.tables.errors import ConfigError, DataError
from embank.tables.method.base import Spine
from embank.tables.method.together import Array
from embank.tables.serving.codecs.fp32 import Fp32
from embank.tables.serving.native.kernel import Kernel
from embank.tables.serving.packed import PackedCollection
from embank.tables.serving.stacks import Rows, Stack, Use
from embank.tables.serving.table import looked_up
from embank.tables.specs import TableSpec

Ids = Mapping[str, Tensor]


class _Alone(NamedTuple):
    """A use that is asked alone, and what looks its ids up where it has bags and compiled code knows its rows."""

    use: Use
    kernel: Kernel | None


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
        self._of_single = _values_of(self.single)
        self._num_single = len(self.single)
        sizes = [self.tables[feature].num_embeddings for feature in self.single]
        self.num_ids_F1: Array = np.array(sizes, dtype=np.uint64)[:, None]
        self.parts: list[list[Stack | _Alone]] = []
        at = 0
        for size in [len(uses)] if parts is None else parts:
            self.parts.append(self._steps(uses[at : at + size]))
            at += size
        firsts = [part[0] for part in self.parts if len(part) == 1 and not self.bags]
        stacks = [first for first in firsts if isinstance(first, Stack)]
        self._stacks = stacks if len(stacks) == len(self.parts) else []

    def _steps(self, uses: Sequence[Use]) -> list[Stack | _Alone]:
        """How some columns are made: what lies in one matrix, and next to each other in the output, at once."""
        steps: list[Stack | _Alone] = []
        run: list[tuple[Rows, int]] = []
        for place, use in enumerate(uses):
            rows, following = Rows.of(use), next(iter(uses[place + 1 :]), None)
            if use.feature in self.bags or rows is None:
                steps.append(_Alone(use, None if rows is None else _kernel_of(rows)))
            else:
                run.append((rows, self.column[use.feature]))
                if following is None or not self._goes_on(rows, following):
                    steps.append(Stack.of([rows for rows, _ in run], [column for _, column in run]))
                    run = []
        return steps

    def _goes_on(self, rows: Rows, following: Use) -> bool:
        other = None if following.feature in self.bags else Rows.of(following)
        return other is not None and other.place == rows.place

    def __call__(self, ids: Ids | Tensor, lengths: Ids, *, num_rows: int, padded: int | None = None) -> list[Tensor]:
        """Pooled logical rows, fp32 [B, columns] for each part.

        Args:
            ids: for each feature integers: [B], or those of its bags one after the other, [N]. Without bags one tensor
                [features, B] in the order of `features` will do, and spares a call.
            lengths: for each feature with bags how many ids each has, integers [B].
            num_rows: B.
            padded: so many rows come out, those behind the batch's of id 0 and of empty bags.

        Raises:
            IdRangeError: an id outside its table.
            DataError: a feature is missing, or a tensor has another shape or type.
            CheckpointError: the bundle that the tables are from was damaged unnoticed, and an id leads nowhere.
        """
        if self._stacks and (padded is None or padded <= num_rows):  # what a server mostly asks, without detours
            ids_FB = self._stacked(ids, num_rows)
            return [stack(ids_FB) for stack in self._stacks]
        ids_FB, bags = self._checked(ids, lengths, num_rows, padded)
        return [_side_by_side(self._begun(part, ids_FB, bags), ids_FB) for part in self.parts]

    def blocks(
        self,
        ids: Ids | Tensor,
        lengths: Ids,
        *,
        num_rows: int,
        padded: int | None = None,
        block_rows: int | None = None,
    ) -> Iterator[list[Tensor]]:
        """The same, some rows at a time, each time for all parts: what is taken of a stack of tables stays in a core's
        cache for who uses it.

        Args:
            ids, lengths, num_rows, padded: see `__call__`.
            block_rows: rows at a time, 1 or more; None gives all at once.

        Raises:
            ConfigError: `block_rows` is less.
            IdRangeError, DataError, CheckpointError: as from `__call__`.
        """
        if block_rows is not None and block_rows < 1:
            raise ConfigError(f"block_rows is {block_rows}; give 1 or more, or None for all rows at once")
        ids_FB, bags = self._checked(ids, lengths, num_rows, padded)
        steps = [self._begun(part, ids_FB, bags) for part in self.parts]
        size = ids_FB.shape[1]
        if block_rows is None or size <= block_rows:
            yield [_side_by_side(part, ids_FB) for part in steps]
            return
        for start in range(0, size, block_rows):
            own = slice(start, min(start + block_rows, size))
            yield [
                _side_by_side([s if isinstance(s, Stack) else s[own] for s in part], ids_FB[:, own]) for part in steps
            ]

    def _begun(self, part: Sequence[Stack | _Alone], ids_FB: Array, bags: "_Bags") -> Sequence[Stack | Tensor]:
        """A part's tables that are asked alone, looked up."""
        return [step if isinstance(step, Stack) else self._looked_up(step, ids_FB, bags) for step in part]

    def _looked_up(self, step: _Alone, ids_FB: Array, bags: "_Bags") -> Tensor:
        """Rows [B, D] of a use, whatever its method does."""
        spec, pack, feature = step.use
        if feature not in bags:
            return looked_up(pack, torch.from_numpy(ids_FB[self.column[feature]]), spec=spec)
        ids_N, lengths_B = bags[feature]
        rows_ND = None if step.kernel is None else step.kernel(ids_N.unsqueeze(0).numpy())
        if rows_ND is None:
            rows_ND = looked_up(pack, ids_N, spec=spec)
        return summed(rows_ND, lengths_B, pooling=spec.pooling)

    def _checked(self, ids: Ids | Tensor, lengths: Ids, num_rows: int, padded: int | None) -> "tuple[Array, _Bags]":
        """Ids int64 [F, B] of the features with one in each row, and those of bags with their lengths, all of them
        within their tables."""
        ids_FB = self._stacked(ids, num_rows)
        bags = {feature: self._bags_of(feature, ids, lengths, num_rows) for feature in self.bags}
        if padded is None or padded <= num_rows:
            return ids_FB, bags
        padded_FB = np.zeros((len(ids_FB), padded), dtype=np.int64)
        padded_FB[:, :num_rows] = ids_FB
        return padded_FB, {name: (own, F.pad(sizes, (0, padded - num_rows))) for name, (own, sizes) in bags.items()}

    def _stacked(self, ids: Ids | Tensor, num_rows: int) -> Array:
        """Ids int64 [F, B] of the features with one in each row, all of them within their tables."""
        if not self.single:
            return np.empty((0, num_rows), dtype=np.int64)
        try:
            stacked = ids if isinstance(ids, Tensor) else torch.stack(self._of_single(ids))
            ids_FB = (stacked if stacked.dtype is torch.int64 else int64_ids(stacked)).numpy()
        except (LookupError, TypeError, RuntimeError):
            ids_FB = None
        if ids_FB is None or ids_FB.shape != (self._num_single, num_rows):
            self._refuse_other_shapes(ids, num_rows)
        if is_any_outside(ids_FB, sizes_F1=self.num_ids_F1):
            self._refuse_range(ids_FB)
        return ids_FB

    def _refuse_range(self, ids_FB: Array) -> None:
        for feature, ids_B in zip(self.single, torch.from_numpy(ids_FB), strict=True):
            spec = self.tables[feature]
            check_ids(ids_B, table=spec.name, feature=feature, num_embeddings=spec.num_embeddings)

    def _refuse_other_shapes(self, ids: Ids | Tensor, num_rows: int) -> NoReturn:
        """Raises DataError for ids that are not one integer for each row."""
        if isinstance(ids, Tensor):
            raise DataError(
                f"the ids are a tensor of shape {list(ids.shape)} on {ids.device}; give [features, rows] in host "
                f"memory: [{self._num_single}, {num_rows:,}] here"
            )
        _refuse_no_mapping("ids", ids)
        for feature in self.single:
            self._refuse_other_shape(feature, ids, num_rows)
        raise DataError("the ids of the features can't be put together; give them as int64 tensors in host memory")

    def _refuse_other_shape(self, feature: str, ids: Ids, num_rows: int) -> None:
        """Raises DataError where the ids of a feature are not one integer for each row."""
        if feature not in ids:
            raise missing_ids(feature, table=self.tables[feature].name, present=ids)
        if not isinstance(ids[feature], Tensor):
            raise DataError(f"the ids of feature '{feature}' are a {type(ids[feature]).__name__}; give a tensor")
        int64_ids(ids[feature], what=f"ids of feature '{feature}'")
        if ids[feature].shape != (num_rows,):
            raise DataError(
                f"feature '{feature}' has ids of shape {list(ids[feature].shape)} for {num_rows:,} rows; give one id "
                "for each row, or the lengths of its bags"
            )

    def _bags_of(self, feature: str, ids: Ids | Tensor, lengths: Ids, num_rows: int) -> tuple[Tensor, Tensor]:
        """Ids int64 [N] of a feature, and the lengths [B] of its bags, checked."""
        spec = self.tables[feature]
        if isinstance(ids, Tensor):
            raise DataError(f"feature '{feature}' has bags, and the ids are one tensor; give them by feature")
        for what, given in (("ids", ids), ("lengths", lengths)):
            _refuse_no_mapping(what, given)
            if feature not in given:
                raise missing_ids(feature, table=spec.name, present=given)
            if not isinstance(given[feature], Tensor) or given[feature].dim() != 1:
                raise DataError(f"feature '{feature}' needs ids and lengths of its bags as tensors of one dimension")
        ids_N = int64_ids(ids[feature], what=f"ids of feature '{feature}'")
        lengths_B = int64_ids(lengths[feature], what=f"lengths of feature '{feature}'")
        total, num_ids = int(lengths_B.sum()), ids_N.numel()
        is_each = bool(((lengths_B >= 0) & (lengths_B <= num_ids)).all())  # huge ones may sum up to it, past int64
        if lengths_B.shape != (num_rows,) or total != num_ids or not is_each:
            raise DataError(
                f"feature '{feature}' has {lengths_B.numel():,} bags of {total:,} ids in all, for {num_rows:,} rows "
                f"and {num_ids:,} ids; give the length of a bag for each row, 0 or more, that sum up to the ids"
            )
        check_ids(ids_N, table=spec.name, feature=feature, num_embeddings=spec.num_embeddings)
        return ids_N, lengths_B


def _kernel_of(rows: Rows) -> Kernel | None:
    """What looks up the ids of a table that is asked alone; rows as they are torch gives as fast, and few sooner."""
    is_plain = type(rows.spine) is Spine and isinstance(rows.matrix, Fp32)
    return None if is_plain else Stack.of([rows], [0]).kernel


_Bags = Mapping[str, tuple[Tensor, Tensor]]


def _refuse_no_mapping(what: str, given: object) -> None:
    """Raises DataError for what has nothing by feature."""
    if not isinstance(given, Mapping):
        raise DataError(f"the {what} are a {type(given).__name__}; give a dict of tensors by feature")


def _values_of(keys: Sequence[str]) -> Callable[[Ids], tuple[Tensor, ...]]:
    """What gives a dict's values of some keys; of one key and of none, too, unlike `itemgetter`."""
    return itemgetter(*keys) if len(keys) > 1 else lambda ids: tuple([ids[key] for key in keys])


def _side_by_side(steps: Sequence[Stack | Tensor], ids_FB: Array) -> Tensor:
    """Rows of some steps, [B, columns]."""
    blocks = [step(ids_FB) if isinstance(step, Stack) else step for step in steps]
    if len(blocks) == 1:
        return blocks[0]
    return torch.cat(blocks, dim=1) if blocks else torch.empty(ids_FB.shape[1], 0)
