"""Rows as a model reads them: ids, bags of ids and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from embank.pipelines.data.prepare.blocks import Bags, IntArray


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """R encoded rows.

    Attributes:
        ids: int64 [R] of each single-valued feature.
        bags: of each multi-valued feature; values int64.
        dense: float32 [R, I].
        unknown: feature to the number of its values that training did not have (or dropped by `min_count`); missing
            values are no unknown ones. Features without a vocabulary know all values.
    """

    ids: Mapping[str, IntArray]
    bags: Mapping[str, Bags]
    dense: npt.NDArray[np.float32]
    unknown: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.dense)

    def slice(self, start: int, stop: int) -> Encoded:
        """Rows `start` to `stop`, without counts of unknown values."""
        return Encoded(
            ids={name: ids_R[start:stop] for name, ids_R in self.ids.items()},
            bags={
                name: Bags(values=bags.slice(start, stop), offsets=bags.offsets[start : stop + 1] - bags.offsets[start])
                for name, bags in self.bags.items()
            },
            dense=self.dense[start:stop],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Encoded]) -> Encoded:
        """The rows of several, at least one, in order."""
        first = parts[0]
        if len(parts) == 1:
            return first
        return cls(
            ids={name: np.concatenate([part.ids[name] for part in parts]) for name in first.ids},
            bags={name: _joined([part.bags[name] for part in parts]) for name in first.bags},
            dense=np.concatenate([part.dense for part in parts]),
            unknown={name: sum(part.unknown.get(name, 0) for part in parts) for name in first.unknown},
        )


def _joined(bags: Sequence[Bags]) -> Bags:
    lengths = np.concatenate([np.diff(one.offsets) for one in bags])
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Bags(values=np.concatenate([one.values for one in bags]), offsets=offsets)
