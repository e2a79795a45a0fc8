"""What a lookup calls of its spine."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from embank.tables.method.base import Combined, DistinctMethod, JointSpine, Spine


class Steps(NamedTuple):
    """What a lookup calls of its spine, found once, since a module's attributes are slow to ask; None for what any
    spine has."""

    both: Callable[[Tensor], tuple[tuple[Tensor, ...], Tensor | None]] | None
    address: Callable[[Tensor], tuple[Tensor, ...]] | None
    side: Callable[[Tensor], Tensor | None] | None
    combine: Callable[[tuple[Tensor, ...], Tensor | None], Tensor | Combined] | None
    combine_distinct: Callable[[tuple[Tensor, ...], Tensor, Tensor | None], Tensor | Combined] | None

    @classmethod
    def of(cls, spine: Spine) -> "Steps":
        kind = type(spine)
        return cls(
            both=spine.address_and_side if isinstance(spine, JointSpine) else None,
            address=None if kind.address is Spine.address else spine.address,
            side=None if kind.side is Spine.side else spine.side,
            combine=None if kind.combine is Spine.combine else spine.combine,
            combine_distinct=spine.combine_distinct if isinstance(spine, DistinctMethod) else None,
        )
