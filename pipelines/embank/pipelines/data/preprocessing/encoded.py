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
        unknown_rows: feature to the number [R] of its values in each row that training did not have (or dropped by
            `min_count`), for features that have any. Missing values are no unknown ones, and features without a
            vocabulary know all values.
    """

    ids: Mapping[str, IntArray]
    bags: Mapping[str, Bags]
    dense: npt.NDArray[np.float32]
    unknown_rows: Mapping[str, IntArray] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.dense)

    @property
    def unknown(self) -> dict[str, int]:
        """Feature to the number of its unknown values, for features that have any."""
        counts = {name: int(counts_R.sum()) for name, counts_R in self.unknown_rows.items()}
        return {name: count for name, count in counts.items() if count}

    def slice(self, start: int, stop: int) -> Encoded:
        """Rows `start` to `stop`, or to the last one."""
        stop = min(stop, self.num_rows)
        return Encoded(
            ids={name: ids_R[start:stop] for name, ids_R in self.ids.items()},
            bags={
                name: Bags(values=bags.slice(start, stop), offsets=bags.offsets[start : stop + 1] - bags.offsets[start])
                for name, bags in self.bags.items()
            },
            dense=self.dense[start:stop],
            unknown_rows={name: counts_R[start:stop] for name, counts_R in self.unknown_rows.items()},
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
            unknown_rows={
                name: np.concatenate([part.unknown_rows.get(name, np.zeros(part.num_rows, np.int64)) for part in parts])
                for name in dict.fromkeys(name for part in parts for name in part.unknown_rows)
            },
        )


def _joined(bags: Sequence[Bags]) -> Bags:
    lengths = np.concatenate([np.diff(one.offsets) for one in bags])
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Bags(values=np.concatenate([one.values for one in bags]), offsets=offsets)


def counted(is_unknown_L: npt.NDArray[np.bool_], offsets: IntArray) -> IntArray:
    """How many members [R] of each bag are unknown."""
    sums = np.zeros(len(is_unknown_L) + 1, dtype=np.int64)
    np.cumsum(is_unknown_L, out=sums[1:])
    counts_R: IntArray = sums[offsets[1:]] - sums[offsets[:-1]]
    return counts_R
