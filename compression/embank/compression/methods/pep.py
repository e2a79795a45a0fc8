"""PEP: learnable thresholds decide which entries of a table live; those are then trained anew (Liu et al., ICLR
2021)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from embank.compression.codecs.sparse import SparseRows
from embank.compression.fitting.thresholds import BeyondThresholds
from embank.compression.parts.magnitude import allowed_nbytes, common_cut
from embank.compression.parts.masks import entry_mask, mask_of
from embank.compression.parts.row_chunks import numbered_chunks, row_chunks
from embank.compression.parts.sparse import sparse_nbytes
from embank.tables import (
    Advance,
    ConfigError,
    Held,
    LocalRows,
    Method,
    RowInit,
    Schedule,
    Score,
    Served,
    Stage,
    TableSpec,
    Traits,
    default_init,
    option_class,
    own_table,
)
from embank.tables.method.options import refuse_wrong_types

_CHECKS = 100


@option_class
class PepConfig:
    """Options of the thresholded table.

    Args:
        density: share of entries that is kept, where the table has no budget; None leaves it to the thresholds.
        granularity: one threshold per table, or one per column.
        initial_share: the first thresholds, as a share of the standard deviation of initial values.
        pull: strength of the penalty pull / 2 * s**2 on the thresholds' parameters s, which raises thresholds until the
            target density is reached.
    """

    density: float | None = None
    granularity: Literal["table", "dimension"] = field(
        default="dimension", metadata={"choices": ("table", "dimension")}
    )
    initial_share: float = 0.1
    pull: float = 1e-5

    def __post_init__(self) -> None:
        refuse_wrong_types(self)
        if self.initial_share <= 0 or self.pull < 0:
            raise ConfigError(
                f"initial_share is {self.initial_share} and pull {self.pull}; give a positive share and a pull of 0 or "
                "more"
            )


def soft_threshold(values: Tensor, parameters: Tensor) -> Tensor:
    """S(v, s) = sign(v) relu(|v| - sigmoid(s)), equation 4 of the paper."""
    return values.sign() * torch.relu(values.abs() - parameters.sigmoid())


def standard_deviation(init: RowInit) -> float:
    """Of initial values."""
    return init.scale if init.kind == "normal" else init.scale / 3**0.5


class _Thresholds(Schedule):
    """Thresholds are pulled up until the target is reached; what they leave is trained again."""

    stages: ClassVar[tuple[Stage, ...]] = (
        Stage(name="thresholds", is_search=True, hands_over="end"),
        Stage(name="retrain", fresh_network=True),
    )

    def is_followed(self, method: "Pep") -> bool:
        return method.spec.stage == 0 and method.nbytes is not None

    def loss(self, method: "Pep") -> Tensor | None:
        if method.spec.stage:
            return None
        return method.is_pulling * method.config.pull / 2 * method.thresholds.square().sum()

    def after_step(self, methods: "Sequence[Pep]", rows: LocalRows, *, step: int, num_steps: int, seed: int) -> None:
        aiming = [m for m in methods if m.nbytes is not None]
        if methods[0].spec.stage or not aiming or step % max(1, num_steps // _CHECKS):
            return
        counts = torch.zeros(len(aiming), dtype=torch.int64)
        for i, method in enumerate(aiming):
            limits = method.thresholds.cpu().sigmoid()
            for _, chunk in numbered_chunks(rows, method.spec.name):
                counts[i] += (chunk.abs() > limits).sum()
        counts = rows.sum(counts)
        entries = [m.spec.num_embeddings * m.spec.embedding_dim for m in aiming]
        held = sum(int(sparse_nbytes(size, count)) for size, count in zip(entries, counts, strict=True))
        for method in aiming:
            method.is_pulling.fill_(held > sum(m.nbytes or 0 for m in aiming))

    def advance(self, methods: "Sequence[Pep]", rows: LocalRows, *, score: Score | None, seed: int) -> list[Advance]:
        aiming = [m for m in methods if m.nbytes is not None]
        cut = common_cut(aiming, rows, transforms=[m.thresholded for m in aiming]) if aiming else 0.0
        cuts = [0.0 if m.nbytes is None else cut for m in methods]
        masks = [entry_mask(rows, m.spec, keep=m.kept(own)) for m, own in zip(methods, cuts, strict=True)]
        return [Advance(found={"mask": mask}, carries={}, dense={}) for mask in masks]


class Pep(Method):
    """Stage 1 trains rows and thresholds together, stage 2 trains the surviving entries again from their initial
    values.

    At the end of stage 1 the entries survive that their thresholds leave, those with the largest |S(v, s)| as far as a
    budget
    goes: one cut for all tables of the collection, whose budgets are one pool. (In units of the thresholds, |v| /
    sigmoid(s), tables
    would not be comparable: thresholds begin in proportion to initial values, which are smaller in larger tables.)

    Raises:
        BudgetError: the budget does not hold one entry.
        ConfigError: both a budget and a density.

    Source: sections 3.2 and 3.3 of the paper (its "global" and "dimension-wise" thresholds; those per id need a
    threshold that moves for ids that a batch lacks, which sparse updates don't give). The released code starts s so low
    that sigmoid and its gradient are 0 in fp32, so that only the weight decay of its optimizer moves it, and stops by
    hand at a target; here s starts where it has a gradient, the decay is a term of the loss, and it ends when the
    target is reached.

    Example:
        >>> table = build_table(method="pep", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.09990625
    """

    Config = PepConfig
    traits = Traits(whole_rows=True, schedule=_Thresholds(), fitting=BeyondThresholds())
    held = Held(on_host=("mask",))
    mask: Tensor
    is_pulling: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.config: PepConfig = self.options
        aims = spec.budget is not None or self.config.density is not None
        self.nbytes = allowed_nbytes(spec, density=self.config.density) if aims else None
        init = default_init(spec)
        self.physical = (own_table(spec, init=init),)
        if spec.stage == 0:
            size = spec.embedding_dim if self.config.granularity == "dimension" else 1
            first = torch.tensor(min(0.5, self.config.initial_share * standard_deviation(init)))
            self.thresholds = nn.Parameter(torch.full((size,), float(first.logit())))
            self.register_buffer("is_pulling", torch.tensor(aims))
        else:
            self.register_buffer("mask", spec.found["mask"], persistent=False)

    def side(self, ids_N: Tensor) -> Tensor | None:
        if self.spec.stage == 0:
            return None
        return mask_of(self.mask, ids_N, dim=self.spec.embedding_dim)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return soft_threshold(rows[0], self.thresholds) if side is None else rows[0] * side

    def thresholded(self, rows_rD: Tensor, numbers_r: Tensor) -> Tensor:
        """What the thresholds leave of some entries."""
        return soft_threshold(rows_rD, self.thresholds.detach().cpu())

    def kept(self, cut: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Rows to which of their entries survive the thresholds and reach the cut."""

        def is_kept(rows_rD: Tensor, numbers_r: Tensor) -> Tensor:
            size_rD = self.thresholded(rows_rD, numbers_r).abs()
            return (size_rD >= cut) & (size_rD > 0)

        return is_kept

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        values_RD = rows[self.spec.name]
        if self.spec.stage == 0:
            return Served.of_rows(SparseRows(soft_threshold(values_RD, self.thresholds.detach())))
        dim = self.spec.embedding_dim
        kept = [
            chunk * mask_of(self.mask, torch.arange(first, first + len(chunk)), dim=dim)
            for first, chunk in row_chunks(values_RD)
        ]
        return Served.of_rows(SparseRows(torch.cat(kept)))
