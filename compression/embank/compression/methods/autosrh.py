"""AutoSrh: which columns matter for hot ids and which for cold ones, learned softly, then cut (Kong et al., TKDE
2023)."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from embank.compression.codecs.sparse import SparseRows
from embank.compression.fitting.thresholds import LargestNumbers
from embank.compression.parts.magnitude import allowed_nbytes, common_cut
from embank.compression.parts.masks import entry_mask, mask_of
from embank.compression.parts.row_chunks import row_chunks
from embank.tables import (
    Advance,
    Carry,
    ConfigError,
    Held,
    LocalRows,
    Method,
    Schedule,
    Score,
    Served,
    Stage,
    TableSpec,
    Traits,
    option_class,
    own_table,
)
from embank.tables.method.options import refuse_wrong_types

_RETRAIN = 2


@option_class
class AutoSrhConfig:
    """Options of the table with soft selection.

    Args:
        density: share of entries that is kept, where the table has no budget; None keeps all.
        num_groups: groups of ids by frequency.
        l1: push of the soft selection towards 0, in units of a group's mean absolute gradient.
    """

    density: float | None = None
    num_groups: int = 6
    l1: float = 1e-2

    def __post_init__(self) -> None:
        refuse_wrong_types(self)
        if self.num_groups < 1 or self.l1 < 0:
            raise ConfigError(
                f"num_groups is {self.num_groups} and l1 {self.l1}; give at least 1 group and an l1 of 0 or more"
            )


def frequency_bounds(counts: Tensor, *, num_groups: int) -> Tensor:
    """Splits ids into groups of near-equal size by how often they occur; ids of one count are never parted.

    Args:
        counts: int64 [N], occurrences in training.
        num_groups: at most so many groups; fewer if there are fewer distinct counts.

    Returns:
        int64 [groups - 1], ascending: an id's group is the number of bounds at or below its count.
    """
    distinct, sizes = torch.unique(counts, return_counts=True)
    ends = sizes.cumsum(0)
    bounds, done = [], 0
    for left in range(num_groups, 1, -1):
        taken = int(ends[done - 1]) if done else 0
        goal = taken + (counts.numel() - taken) / left
        done = max(done + 1, int((ends - goal).abs().argmin()) + 1)
        if done >= distinct.numel():
            break
        bounds.append(int(distinct[done]))
    return torch.tensor(bounds, dtype=torch.int64)


class _SoftSelection(Schedule):
    """A warm-up, a search that moves the soft selection by validation, and a retraining of what it leaves."""

    stages: ClassVar[tuple[Stage, ...]] = (
        Stage(name="warm-up", is_search=True),
        Stage(name="search", epochs=0.5, alternates=True, is_search=True),
        Stage(name="retrain", fresh_network=True),
    )

    def is_followed(self, method: "AutoSrh") -> bool:
        return False

    def search_parameters(self, method: "AutoSrh") -> list[nn.Parameter]:
        return [method.alpha] if method.spec.stage == 1 else []

    def after_step(
        self, methods: "Sequence[AutoSrh]", rows: LocalRows, *, step: int, num_steps: int, seed: int
    ) -> None:
        if methods[0].spec.stage == 1:
            for method in methods:
                method.alpha.clamp_(0, 1)

    def advance(
        self, methods: "Sequence[AutoSrh]", rows: LocalRows, *, score: Score | None, seed: int
    ) -> list[Advance]:
        if methods[0].spec.stage == 0:
            return [Advance(found={}, carries={m.spec.name: Carry(table=m.spec.name)}, dense={}) for m in methods]
        threshold = common_cut(methods, rows, transforms=[m.selected for m in methods])
        masks = [entry_mask(rows, m.spec, keep=m.kept(threshold)) for m in methods]
        chosen = [m.alpha.detach().clamp(0, 1).clone() for m in methods]
        founds = [{"mask": mask, "chosen": alpha} for mask, alpha in zip(masks, chosen, strict=True)]
        return [Advance(found=found, carries={}, dense={}) for found in founds]


class AutoSrh(Method):
    """Rows times a soft selection alpha in [0, 1] per group of ids and column; entries are pruned by |w alpha|, then
    retrained.

    Three stages: a warm-up of the plain table; a search, in which validation batches move alpha while training batches
    go on moving rows and network; after the cut to the budget a retraining of what is left from initial values, alpha
    frozen and at last folded into the rows. The budgets of all tables of the collection that are stored by this method
    are one pool.

    Raises:
        BudgetError: the budget does not hold one entry.
        ConfigError: both a budget and a density.

    Source: sections 3 and 4 of the paper. The public implementation in the VLDB'24 benchmark of Zhang et al. leaves the
    network frozen in the search and prunes after the last training; here the network trains on and pruning comes before
    the retraining, as the paper has it. Retraining goes on from nothing that was trained: what the warm-up and the
    search overfitted would stay. Gradients of alpha are divided by their group's mean absolute value, as there; the L1
    term is added after this division, so that its strength is what it says. Without counts, ids count as ranked by
    frequency.

    Example:
        >>> table = build_table(method="autosrh", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.09990625
    """

    Config = AutoSrhConfig
    traits = Traits(whole_rows=True, schedule=_SoftSelection(), fitting=LargestNumbers())
    held = Held(on_host=("mask", "chosen"))
    mask: Tensor
    chosen: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.config: AutoSrhConfig = self.options
        self.nbytes = allowed_nbytes(spec, density=self.config.density)
        self.physical = (own_table(spec),)
        self.bounds = None
        self.num_groups = min(self.config.num_groups, spec.num_embeddings)
        if spec.counts is not None:
            self.bounds = frequency_bounds(spec.counts, num_groups=self.num_groups)
            self.num_groups = self.bounds.numel() + 1
        if spec.stage == 1:
            self.alpha = nn.Parameter(torch.ones(self.num_groups, spec.embedding_dim))
            self.alpha.register_hook(self._search_gradient)  # type: ignore[no-untyped-call]
        if spec.stage == _RETRAIN:
            for name in ("mask", "chosen"):
                self.register_buffer(name, spec.found[name], persistent=False)

    def groups(self, ids_N: Tensor) -> Tensor:
        """Group of each id, int64 [N]: 0 has the rarest."""
        if self.bounds is None:
            num = self.spec.num_embeddings
            ranked_N: Tensor = (num - 1 - ids_N) * self.num_groups // num
            return ranked_N
        assert self.spec.counts is not None
        return torch.bucketize(self.spec.counts[ids_N], self.bounds, right=True)

    def _search_gradient(self, grad_GD: Tensor) -> Tensor:
        """Gradients in units of their group's mean, plus the L1 push, for groups that the batch had."""
        mean_G1 = grad_GD.abs().mean(1, keepdim=True)
        scaled_GD: Tensor = (grad_GD / (mean_G1 + 1e-8) + self.config.l1) * (mean_G1 > 0)
        return scaled_GD

    def side(self, ids_N: Tensor) -> Tensor | None:
        if self.spec.stage == 0:
            return None
        return self.groups(ids_N) if self.spec.stage == 1 else self._scale(ids_N)

    def _scale(self, ids_N: Tensor) -> Tensor:
        """What a row is multiplied with after the search, [N, D]."""
        mask_ND = mask_of(self.mask, ids_N, dim=self.spec.embedding_dim)
        return self.chosen[self.groups(ids_N)] * mask_ND

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        if side is None:
            return rows[0]
        if self.spec.stage == _RETRAIN:
            return rows[0] * side
        clipped_GD = self.alpha + (self.alpha.clamp(0, 1) - self.alpha).detach()  # gradients pass at the bounds too
        return rows[0] * clipped_GD[side]

    def selected(self, rows_rD: Tensor, numbers_r: Tensor) -> Tensor:
        """Rows of the table, given with their numbers, times alpha."""
        return rows_rD * self.alpha.detach().cpu().clamp(0, 1)[self.groups(numbers_r)]

    def kept(self, threshold: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Rows to which of their entries stay."""
        return lambda rows_rD, numbers_r: self.selected(rows_rD, numbers_r).abs() >= threshold

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        values_RD = rows[self.spec.name]
        if self.spec.stage == 0:
            return Served.of_rows(SparseRows(values_RD))
        scaled = []
        for first, chunk in row_chunks(values_RD):
            ids_r = torch.arange(first, first + len(chunk))
            scaled.append(self.selected(chunk, ids_r) if self.spec.stage == 1 else chunk * self._scale(ids_r))
        return Served.of_rows(SparseRows(torch.cat(scaled)))
