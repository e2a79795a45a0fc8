"""Tables whose rows are in one file and alike (width, codec): one matrix, from which one call takes the rows of all.

Legend: F features with one id in each row, K uses of a group, J uses of one method, B rows of a batch.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from embank.tables.collections.ids import WORD, is_any_outside
from embank.tables.errors import CheckpointError, EmbankError
from embank.tables.method.base import Spine
from embank.tables.method.together import Array, Rule, Widened
from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.native.kernel import Kernel
from embank.tables.serving.table import PackedTable
from embank.tables.specs import TableSpec
from embank.tables.storage.refusals import cause_of
from embank.tables.storage.resources import refuse_exhausted


class Use(NamedTuple):
    """A feature looked up in a table."""

    spec: TableSpec
    pack: PackedTable
    feature: str


class Rows(NamedTuple):
    """Where the rows of a table are, and what makes logical ones of them, where all of it can be done for several
    tables at once: those of the same place."""

    spec: TableSpec
    matrix: Coded
    spine: Spine
    place: Hashable

    @classmethod
    def of(cls, use: Use) -> "Rows | None":
        """Those of a table; None where it is to be asked alone."""
        pack = use.pack
        if len(pack.lookups) != 1 or len(pack.coded) != 1 or not _is_whole(type(pack.spine)):
            return None
        (matrix,), own = pack.coded, pack.spine.joint_place()
        place = matrix.joint_place()
        if own is None or place is None:
            return None
        kind = type(pack.spine) if own else Spine  # spines that only address go with each other
        return cls(use.spec, matrix, pack.spine, (kind, own, type(matrix), place))


def _is_whole(kind: type[Spine]) -> bool:
    """Whether `together` is of the class that has the other steps, or of one below it: one above knows nothing of
    them."""
    own = _owner(kind, "together")
    return own is Spine or all(issubclass(own, _owner(kind, step)) for step in ("address", "side", "combine"))


def _is_laid_out(kind: type[Coded]) -> bool:
    """Whether `layout` tells what `joined` gives, likewise."""
    return issubclass(_owner(kind, "layout"), _owner(kind, "joined"))


def _owner(kind: type, step: str) -> type:
    """The class that a step is of."""
    return next(cls for cls in kind.__mro__ if step in vars(cls))


class Stack:
    """Uses next to each other in the output, each with one id in a row, whose rows one call takes.

    Args:
        rows: of each use.
        columns: which of the stacked features each one is.
    """

    def __init__(self, rows: Sequence[Rows], columns: Sequence[int]) -> None:
        matrices = [own.matrix for own in rows]
        self.take = type(matrices[0]).joined(matrices)
        self.names = [own.spec.name for own in rows]
        self.columns = list(columns)
        last = columns[0] + len(columns)
        self.chosen = slice(columns[0], last) if self.columns == list(range(columns[0], last)) else self.columns
        steps = _together(rows)
        self.address, self.addresses, self.combine = steps.address, steps.addresses, steps.combine
        self.is_addressed = self.address is not None or bool(self.addresses)
        sizes = [own.matrix.num_joint_rows() for own in rows]
        tops = [size + 1 if top is None else top for top, size in zip(steps.tops, sizes, strict=True)]
        self.is_safe = all(top <= size for top, size in zip(tops, sizes, strict=True))
        self.num_rows_K1: Array = np.array(sizes, dtype=np.uint64)[:, None]
        self.kernel: Kernel | None = None
        is_known = steps.combine is None or steps.widening is not None or steps.padded is not None
        if is_known and _is_laid_out(type(matrices[0])):
            layouts, num_ids = [m.layout() for m in matrices], [own.spec.num_embeddings for own in rows]
            kernel = Kernel.of(layouts, steps.rules, steps.widening, num_ids=num_ids, padded=steps.padded)
            if kernel is not None and all(own.spec.embedding_dim == kernel.form.dim for own in rows):
                self.kernel = kernel

    @classmethod
    def of(cls, rows: Sequence[Rows], columns: Sequence[int]) -> "Stack":
        """One for some uses.

        Raises:
            CheckpointError: the bundle that the tables are from is damaged, and says what can't be.
        """
        try:
            return cls(rows, columns)
        except EmbankError:
            raise
        except Exception as error:  # whatever wrong facts and tensors lead to
            raise _told(error, names=[own.spec.name for own in rows], doing="putting together tables") from error

    def __call__(self, ids_FB: Array) -> Tensor:
        """Rows side by side, [B, K D].

        Raises:
            CheckpointError: the bundle that the tables are from was damaged unnoticed, and an id leads nowhere.
        """
        ids_KB = ids_FB[self.chosen]
        try:
            rows_BE = None if self.kernel is None else self.kernel(ids_KB)
            if rows_BE is not None:
                return rows_BE
            rows_KB, side = self._addressed(ids_KB) if self.is_addressed else (ids_KB, None)
            if not self.is_safe:
                self._refuse_elsewhere(rows_KB)
            rows_BKD = self.take(rows_KB)
            if self.combine is not None:
                rows_BKD = self.combine(rows_BKD, side)
            return rows_BKD.flatten(1)
        except EmbankError:
            raise
        except Exception as error:  # whatever a lookup of wrong tensors raises
            raise _told(error, names=self.names, doing=f"looking up {ids_KB.size:,} ids of tables") from error

    def _addressed(self, ids_KB: Array) -> tuple[Array, Array | None]:
        """Rows [K, B] of ids, of all tables of a method at once where it can, and what is to be known besides."""
        if self.address is not None:
            return self.address(ids_KB)
        rows_KB = ids_KB.copy()
        for places_J, address in self.addresses:
            rows_KB[places_J], _ = address(ids_KB[places_J])
        return rows_KB, None

    def _refuse_elsewhere(self, rows_KB: Array) -> None:
        """Raises CheckpointError where an address is not in its own table, but for the matrix another one's row."""
        if is_any_outside(rows_KB, sizes_F1=self.num_rows_K1):
            k = int((rows_KB.view(WORD) >= self.num_rows_K1).nonzero()[0][0])
            raise CheckpointError(
                f"ids of table '{self.names[k]}' can't be looked up: they have rows {int(rows_KB[k].min())} to "
                f"{int(rows_KB[k].max())} of {int(self.num_rows_K1[k, 0])}. What is served of it is damaged: copy or "
                "export its bundle again"
            )


def _told(error: Exception, *, names: Sequence[str], doing: str) -> CheckpointError:
    """What is raised for an error among some tables, unless memory has run out."""
    refuse_exhausted(error, doing=f"{doing} from '{names[0]}' on")
    return CheckpointError(
        f"ids of the tables from '{names[0]}' to '{names[-1]}' can't be looked up: {cause_of(error)}. What is served "
        "of one of them is damaged: copy or export its bundle again"
    )


_Address = Callable[[Array], tuple[Array, Array | None]]
_Combine = Callable[[Tensor, Array | None], Tensor]


class _Steps(NamedTuple):
    """Those of some tables.

    Attributes:
        address: what addresses all of them at once, or None.
        addresses: in place of it, for each of several methods which tables it has and what addresses those.
        combine: what makes logical rows of all; None where physical ones are.
        tops: of each a number of rows that no address of it reaches, where one is known.
        rules, widening, padded: see `Together`.
    """

    address: _Address | None
    addresses: list[tuple[list[int], _Address]]
    combine: _Combine | None
    tops: list[int | None]
    rules: list[Rule | None]
    widening: Widened | None
    padded: int | None


def _together(rows: Sequence[Rows]) -> _Steps:
    kinds: dict[type[Spine], list[int]] = {}
    for place, own in enumerate(rows):
        kinds.setdefault(type(own.spine), []).append(place)
    addresses: list[tuple[list[int], _Address]] = []
    tops: list[int | None] = [own.spec.num_embeddings for own in rows]
    rules: list[Rule | None] = [Rule("own", own.spec.num_embeddings) for own in rows]
    for kind, places in kinds.items():
        together = kind.together([rows[place].spine for place in places])
        if together.address is None:
            continue
        addresses.append((places, together.address))
        for at, place in enumerate(places):
            tops[place] = None if together.tops is None else together.tops[at]
            rules[place] = None if together.rules is None else together.rules[at]
    # `together` is the last kind's: of more than one kind none combines
    if len(kinds) == 1:
        address = addresses[0][1] if addresses else None
        return _Steps(address, [], together.combine, tops, rules, together.widening, together.padded)
    return _Steps(None, addresses, together.combine, tops, rules, together.widening, together.padded)
