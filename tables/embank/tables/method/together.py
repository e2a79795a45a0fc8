"""What some tables of one method do when they are looked up at once.

By NumPy, whose calls take a third of the time of torch's: for one id of each table little else counts.

Legend: J tables, B ids of each, w numbers of a physical row, D of a logical one.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[Any]


class Rule(NamedTuple):
    """How a table comes from an id to a row, for compiled code that does it by itself.

    Attributes:
        kind: "own" takes the id; "cut" takes it below `num_rows`, else row 0; "hash" is `hash_rows`; "kept" counts the
            ids before it that have a row, and others give zeros.
        num_rows: that an id may come to; of "kept", which looks for itself whether there is such a row, ids.
        salt: of the hash.
        kept: words int64 of the bitmap of ids that have a row, and samples, see
            `embank.compression.parts.sparse.rank_bits`.
    """

    kind: Literal["own", "cut", "hash", "kept"]
    num_rows: int
    salt: int = 0
    kept: tuple[Tensor, Tensor] | None = None


class Widened(NamedTuple):
    """What a `combine` does that multiplies each physical row by its table's matrix, for compiled code.

    Attributes:
        weights_JdD: the matrices; a physical row has d numbers.
        biases_JD: what is added, or None.
    """

    weights_JdD: Tensor
    biases_JD: Tensor | None = None


class Together(NamedTuple):
    """The steps of some tables of one matrix each, the same as each table's own to the bit; compiled code that is told
    of them (`rules`, `widening`, `padded`) may add up products in another order.

    Attributes:
        address: rows int64 [J, B] for ids int64 [J, B], and what `combine` must know of them, [J, B, ...]; None where
            each id is its row.
        combine: logical rows fp32 [B, J, D], one piece of memory, from physical rows [B, J, w] and what `address` told
            besides; None where these are those.
        tops: of each table a number of rows that no address reaches, whatever the id; None where only a look at the
            addresses tells.
        rules: what `address` does, of each table; None where it is something else.
        widening: what `combine` does; None where it is something else.
        padded: numbers of a logical row, where `combine` does nothing else than zeros: behind those of a physical one,
            and for ids that rules give no row.
    """

    address: Callable[[Array], tuple[Array, Array | None]] | None = None
    combine: Callable[[Tensor, Array | None], Tensor] | None = None
    tops: Sequence[int] | None = None
    rules: Sequence[Rule] | None = None
    widening: Widened | None = None
    padded: int | None = None
