"""DeepLight: magnitude pruning while training, ever more of it (Deng et al., WSDM 2021)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from embank.compression.codecs.sparse import SparseRows
from embank.compression.parts.magnitude import allowed_nbytes, common_cut, cut_to_count, kept_by_bytes, magnitudes
from embank.compression.parts.row_chunks import row_chunks
from embank.tables import (
    ConfigError,
    LocalRows,
    Method,
    OwnRows,
    Schedule,
    Served,
    TableSpec,
    Traits,
    option_class,
    own_table,
)
from embank.tables.method.options import refuse_wrong_types

_RAMP_HUNDREDS = 687.32
"""Hundreds of steps after which 1 - 0.99**(t / 100) is 0.999: what the published schedule calls its end."""


@option_class
class DeepLightConfig:
    """Options of the pruned table.

    Args:
        density: share of entries that is kept, where the table has no budget; None keeps all.
        begin, end: shares of the steps at which pruning begins and at which it has reached its final density.
        num_prunings: prunings between begin and end; later ones, against regrowth, keep their rhythm.
    """

    density: float | None = None
    begin: float = 0.1
    end: float = 0.8
    num_prunings: int = 100

    def __post_init__(self) -> None:
        refuse_wrong_types(self)
        if not 0 <= self.begin < self.end <= 1:
            raise ConfigError(f"pruning begins at {self.begin} and ends at {self.end}; give 0 <= begin < end <= 1")
        if self.num_prunings < 1:
            raise ConfigError(f"num_prunings is {self.num_prunings}; prune at least once")


def scheduled_sparsity(final: float, progress: float) -> float:
    """Share of zeros at some point of the ramp.

    Args:
        final: share of zeros at its end.
        progress: 0 at the ramp's beginning, 1 at its end; later it is at its end.

    Source: DeepLight's adaptive sparsity S (1 - D**(t / U)) with its published D = 0.99 and U = 100 steps. Those never
    end and depend on the batch size; here the ramp is laid over a share of the training, so that progress 1 is the step
    at which the original has reached 0.999 S, and the rest is cut off there.
    """
    if progress >= 1:
        return final
    return final * (1 - float(0.99 ** (_RAMP_HUNDREDS * max(0.0, progress))))


class _Pruning(Schedule):
    """Ever more of the smallest entries become zero; what is served keeps the budget exactly."""

    common_options: ClassVar[tuple[str, ...]] = ("begin", "end", "num_prunings")

    def after_step(
        self, methods: "Sequence[DeepLight]", rows: LocalRows, *, step: int, num_steps: int, seed: int
    ) -> None:
        options = methods[0].config
        first, last = options.begin * num_steps, options.end * num_steps
        every = max(1, int((last - first) / options.num_prunings))
        if step < first or step % every:
            return
        num_entries = sum(m.spec.num_embeddings * m.spec.embedding_dim for m in methods)
        kept = sum(kept_by_bytes(m.spec, m.nbytes) for m in methods)
        sparsity = scheduled_sparsity(1 - kept / num_entries, (step - first) / (last - first))
        tables = [magnitudes(rows, m.spec.name) for m in methods]
        count = num_entries - int(sparsity * num_entries)
        self._prune(methods, rows, threshold=cut_to_count(tables, count=count, total=rows.sum))

    def settle(self, methods: "Sequence[DeepLight]", rows: LocalRows) -> None:
        self._prune(methods, rows, threshold=common_cut(methods, rows))

    def _prune(self, methods: "Sequence[DeepLight]", rows: LocalRows, *, threshold: float) -> None:
        # Just below the threshold: hardshrink drops what equals its bound.
        below = float(torch.nextafter(torch.tensor(threshold), torch.zeros(())))
        for method in methods:
            for _, chunk in row_chunks(rows[method.spec.name]):
                chunk.copy_(F.hardshrink(chunk, below))


class DeepLight(Method):
    """A plain table whose smallest entries are set to zero every so often: more of them with time, then to the budget
    exactly.

    There is no mask: pruned entries can grow back until the next pruning. One threshold spans all tables of the
    collection that are stored by this method, and their budgets are one pool, so a table may end above its own share
    and another below. The schedule is one for all of them.

    Raises:
        BudgetError: the budget does not hold one entry.
        ConfigError: both a budget and a density.

    Source: section 3.3 of the paper, for embeddings only (it also prunes networks). The released code finds its
    threshold by about 20 scans of all weights every 10 steps, and may evaluate and save a table that has grown back
    above its target; here a pruning takes two scans, and what is evaluated and served is pruned exactly first
    (`settle`).

    Example:
        >>> table = build_table(method="deeplight", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.09990625
    """

    Config = DeepLightConfig
    traits = Traits(schedule=_Pruning(), fitting=OwnRows())

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.config: DeepLightConfig = self.options
        self.nbytes = allowed_nbytes(spec, density=self.config.density)
        self.physical = (own_table(spec),)

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        return Served.of_rows(SparseRows(rows[self.spec.name]))
