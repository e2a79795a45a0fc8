"""What some tables of one method do when they are looked up at once.

By NumPy, whose calls take a third of the time of torch's: for one id of each table little else counts.

Legend: J tables, B ids of each, w numbers of a physical row, D of a logical one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[Any]


class Together(NamedTuple):
    """The steps of some tables of one matrix each, the same as each table's own to the bit.

    Attributes:
        address: rows int64 [J, B] for ids int64 [J, B], and what `combine` must know of them, [J, B, ...]; None where
            each id is its row.
        combine: logical rows fp32 [B, J, D], one piece of memory, from physical rows [B, J, w] and what `address` told
            besides; None where these are those.
        tops: of each table a number of rows that no address reaches, whatever the id; None where only a look at the
            addresses tells.
    """

    address: Callable[[Array], tuple[Array, Array | None]] | None = None
    combine: Callable[[Tensor, Array | None], Tensor] | None = None
    tops: Sequence[int] | None = None
