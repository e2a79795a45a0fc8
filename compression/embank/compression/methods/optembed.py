"""OptEmbed: which ids deserve a row, and how wide each table's rows should be (Lyu et al., CIKM 2022)."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import field
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embank.compression.budget.floors import refuse_small_budget
from embank.compression.fitting.means import Means
from embank.compression.parts.evolution import Candidate, EvolutionConfig, evolve
from embank.compression.parts.levels import Space, shape_nbytes
from embank.compression.parts.magnitude import cut_to_count, magnitudes
from embank.compression.parts.masks import find_mask
from embank.compression.parts.row_chunks import numbered_chunks
from embank.compression.parts.sparse import (
    JoinedBits,
    bit_at,
    popcount,
    rank_at,
    rank_by_word,
    rank_octets,
    word_ranks,
)
from embank.tables import (
    Advance,
    Carry,
    Held,
    JointSpine,
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
from embank.tables.method.together import Array, Rule, Together

_BELOW_ALL = -1.0
"""A threshold that every norm exceeds."""


@option_class
class OptEmbedConfig:
    """Options of the table whose rows and width are searched.

    Args:
        alpha: strength of the term alpha * exp(-t) that raises the threshold t.
        width_sampling: how the supernet draws the width of a looked-up row: "uniform", each as likely, is the paper's;
            "log" draws each doubling as likely. Narrow rows are then trained more, and score in the supernet more as
            they would trained alone.
        evolution: sizes of the search over widths; one for all tables of a collection.
    """

    alpha: float = 1e-4
    width_sampling: Literal["uniform", "log"] = "uniform"
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)


class Step(torch.autograd.Function):
    """1 above 0, else 0, with the long-tailed surrogate derivative 2 - 4 |x| up to 0.4, then 0.4 up to 1, then 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        size = x.abs()
        tail = torch.where(size <= 1, 0.4, 0.0)
        return grads[0] * torch.where(size <= 0.4, 2 - 4 * size, tail)


def mean_norm(init: RowInit, dim: int) -> float:
    """Expected L1 norm of an initial row."""
    return dim * init.scale * (0.5 if init.kind == "uniform" else (2 / torch.pi) ** 0.5)


class _Supernet(Schedule):
    """A supernet, a search over its rows and widths, and a retraining of what the search chose."""

    common_options: ClassVar[tuple[str, ...]] = ("evolution",)
    stages: ClassVar[tuple[Stage, ...]] = (
        Stage(name="supernet", is_search=True),
        Stage(name="retrain", fresh_network=True),
    )

    def loss(self, method: "OptEmbed") -> Tensor | None:
        return method.config.alpha * torch.exp(-method.threshold) if method.spec.stage == 0 else None

    def advance(
        self, methods: "Sequence[OptEmbed]", rows: LocalRows, *, score: Score | None, seed: int
    ) -> list[Advance]:
        levels = [method.row_levels(rows) for method in methods]
        space = Space([m.spec for m in methods], [[count for _, count in own] for own in levels])
        best = space.default()
        if score is not None:
            config = methods[0].config.evolution

            def score_of(candidate: Candidate, *, share: float = 1.0) -> float:
                for method, own, (level, width) in zip(methods, levels, candidate, strict=True):
                    method.trial = (own[level][0], width)
                return score(max_samples=config.max_samples, share=share)

            try:
                best, _ = evolve(
                    [best],
                    score=partial(score_of, share=config.screening),
                    final_score=None if config.screening == 1 else score_of,
                    draw=space.draw,
                    repair=space.repair,
                    config=config,
                    seed=seed,
                )
            finally:  # a search may be interrupted
                for method in methods:
                    method.trial = None
        return [
            method.chosen(rows, threshold=own[level][0], width=width)
            for method, own, (level, width) in zip(methods, levels, best, strict=True)
        ]


class OptEmbed(Method):
    """Two stages: a supernet with a row threshold and random widths, then a retraining of the rows and columns that
    were chosen.

    In the supernet a row counts if its L1 norm exceeds the table's threshold t, which is trained with a surrogate
    gradient, and each looked-up row is cut to a random number of its first columns. At its end an evolution over (rows,
    width) of every table looks for the best validation score within the budgets of all tables of the method, which are
    one pool. Rows come in levels: those above the trained threshold, the half of them with the largest norms, a
    quarter, and so on. Without a score each table keeps as many rows as leave it at least a quarter of its columns, and
    all columns that its own budget then holds. Pruned ids give zeros.

    Raises:
        BudgetError: the budget does not hold the bitmap of kept ids and one entry.

    Source: section 3 of the paper. Thresholds are in units of the mean norm of an initial row, since the surrogate's
    reach of 1 would otherwise depend on the number of ids. The original has no budget: its rows fall below the
    threshold only as far as weight decay shrinks stale rows, which sparse updates don't do; the levels make rows a part
    of the search instead. As there, the search takes the supernet that validation found best, and retraining starts
    from the initial values. It serves rows of full width with masks; here what is served is the kept columns of the
    kept rows. See `evolve` for the search.

    Example:
        >>> table = build_table(method="optembed", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> {name: tuple(rows.shape) for name, rows in table.collection.weights().items()}
        {'table': (250, 3)}
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.098
    """

    Config = OptEmbedConfig
    traits = Traits(whole_rows=True, schedule=_Supernet(), fitting=Means())
    held = Held(on_host=("words", "ranks"))
    words: Tensor
    ranks: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.config: OptEmbedConfig = self.options
        floor_nbytes = min(spec.plain_nbytes, shape_nbytes(spec, num_kept=1, width=1))
        refuse_small_budget(spec, needs="the bitmap of kept ids and one entry", floor_nbytes=floor_nbytes)
        self.unit = mean_norm(default_init(spec), spec.embedding_dim) or 1.0
        self.width, self.num_kept = spec.embedding_dim, spec.num_embeddings
        self.trial: tuple[float, int] | None = None  # threshold and width that the search is trying
        if spec.stage == 0:
            self.threshold = nn.Parameter(torch.zeros(()))
        else:
            words, _ = rank_octets(spec.found["kept"])
            self.register_buffer("words", words, persistent=False)
            self.register_buffer("ranks", word_ranks(words), persistent=False)
            self.width, self.num_kept = int(spec.found["width"]), int(popcount(words).sum())
        self.physical = (own_table(spec, num_rows=max(1, self.num_kept), width=self.width),)

    @property
    def keeps_all(self) -> bool:
        """Every id has a row."""
        return self.num_kept == self.spec.num_embeddings

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        if self.spec.stage == 0 or self.keeps_all:
            return (ids_N,)
        return (rank_by_word(self.words, self.ranks, ids_N) * bit_at(self.words, ids_N),)

    def side(self, ids_N: Tensor) -> Tensor | None:
        return None if self.spec.stage == 0 or self.keeps_all else bit_at(self.words, ids_N)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        rows_ND = rows[0]
        if self.spec.stage == 1:
            kept_ND = rows_ND if side is None else rows_ND * side[:, None]
            return F.pad(kept_ND, (0, self.spec.embedding_dim - self.width))
        threshold, width = self.trial or (self.threshold, self.spec.embedding_dim)
        is_kept_N = Step.apply(self.norms(rows_ND) - threshold)  # type: ignore[no-untyped-call]
        widths_N = torch.full((rows_ND.shape[0],), width, device=rows_ND.device)
        if self.training:
            self._draw_widths(widths_N)
        in_prefix_ND = torch.arange(self.spec.embedding_dim, device=rows_ND.device) < widths_N[:, None]
        masked_ND: Tensor = rows_ND * is_kept_N[:, None] * in_prefix_ND
        return masked_ND

    def _draw_widths(self, widths_N: Tensor) -> None:
        """Fills in random widths."""
        dim = self.spec.embedding_dim
        if self.config.width_sampling == "uniform":
            widths_N.random_(1, dim + 1)
            return
        octaves_N = torch.rand(widths_N.shape, device=widths_N.device) * math.log2(dim + 1)
        widths_N.copy_(octaves_N.exp2().clamp_(max=dim))  # whole numbers: rounded down

    def norms(self, rows_ND: Tensor, numbers_N: Tensor | None = None) -> Tensor:
        """L1 norms in units of an initial row's, [N]."""
        return rows_ND.abs().sum(1) / self.unit

    def row_levels(self, rows: LocalRows) -> list[tuple[float, int]]:
        """Thresholds and how many rows exceed them: the trained one, then ones that halve the rows down to one.

        Where the bitmap outweighs what it saves even at width 1, which it does for a few ids, the last level keeps all
        rows.
        """
        trained = float(self.threshold.detach())
        levels = [(trained, self._count_above(rows, trained))]
        norms = magnitudes(rows, self.spec.name, self.norms)
        goal = levels[0][1] // 2
        while goal:
            least = torch.tensor(cut_to_count([norms], count=goal, total=rows.sum))
            threshold = float(torch.nextafter(least, torch.zeros(())))  # rows must exceed it
            levels.append((threshold, self._count_above(rows, threshold)))
            goal //= 2
        num = self.spec.num_embeddings
        smallest = min(shape_nbytes(self.spec, num_kept=count, width=1) for _, count in levels)
        if shape_nbytes(self.spec, num_kept=num, width=1) < smallest:
            levels.append((_BELOW_ALL, num))
        return levels

    def _count_above(self, rows: LocalRows, threshold: float) -> int:
        counts = [(self.norms(chunk) > threshold).sum() for _, chunk in numbered_chunks(rows, self.spec.name)]
        return int(rows.sum(torch.stack([torch.zeros((), dtype=torch.int64), *counts]).sum()))

    def chosen(self, rows: LocalRows, *, threshold: float, width: int) -> Advance:
        name, num = self.spec.name, self.spec.num_embeddings
        kept = find_mask(
            rows, name, shape=(num, 1), keep=lambda rows_rD, numbers_r: (self.norms(rows_rD) > threshold)[:, None]
        )
        ids_K = bit_at(rank_octets(kept)[0], torch.arange(num)).nonzero()[:, 0]
        carried = ids_K if ids_K.numel() else torch.zeros(1, dtype=torch.int64)
        return Advance(
            found={"kept": kept, "width": torch.tensor(width)},
            carries={name: Carry(table=name, rows=carried, initial=True)},
            dense={},
        )

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        values_RD = rows[self.spec.name]
        if self.spec.stage == 0:
            return Served.of_rows(values_RD * (self.norms(values_RD) > self.threshold.detach())[:, None])
        bitmap = None if self.keeps_all else rank_octets(self.spec.found["kept"])
        return Served.of_rows(values_RD, spine=Kept(dim=self.spec.embedding_dim, bitmap=bitmap))


class Kept(JointSpine):
    """The kept columns of the kept rows, and in a bitmap which ids have one.

    Args:
        dim: width of a logical row.
        bitmap: words and samples, see `rank_bits`; None where every id has a row.
    """

    held = Held(facts=("dim", "keeps_all"), uncounted=("words", "samples"), sizes=("dim",))
    words: Tensor
    samples: Tensor

    def __init__(self, *, dim: int, bitmap: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.dim, self.keeps_all = dim, bitmap is None
        if bitmap is not None:
            self.register_buffer("words", bitmap[0])
            self.register_buffer("samples", bitmap[1])

    def address_and_side(self, ids_N: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        if self.keeps_all:
            return (ids_N,), None
        words = self.words
        is_kept_N = bit_at(words, ids_N)
        return (rank_at(words, self.samples, ids_N) * is_kept_N,), is_kept_N

    def joint_place(self) -> Hashable:
        return self.dim, None if self.keeps_all else JoinedBits.place(self.words, self.samples)

    @classmethod
    def together(cls, spines: Sequence[Self]) -> Together:
        dim = spines[0].dim

        def combine(rows_BJw: Tensor, kept_JB: Array | None) -> Tensor:
            num_ids, num_tables, width = rows_BJw.shape
            if kept_JB is None and width == dim:
                return rows_BJw
            out_BJD = np.zeros((num_ids, num_tables, dim), dtype=np.float32)
            kept_BJ1: Array | float = 1.0 if kept_JB is None else kept_JB.T[..., None]
            np.multiply(rows_BJw.numpy(), kept_BJ1, out=out_BJD[..., :width])
            return torch.from_numpy(out_BJD)

        if spines[0].keeps_all:
            return Together(combine=combine, padded=dim)
        bits = JoinedBits([spine.words for spine in spines], [spine.samples for spine in spines])

        def address(ids_JB: Array) -> tuple[Array, Array]:
            words_JB, kept_JB = bits.at(ids_JB)
            return bits.ranks(ids_JB, words_JB) * kept_JB, kept_JB.astype(np.float32)

        rules = [Rule("kept", 64 * spine.words.numel(), kept=(spine.words, spine.samples)) for spine in spines]
        return Together(address=address, combine=combine, rules=rules, padded=dim)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        kept_Nw = rows[0] if side is None else rows[0] * side[:, None]
        return F.pad(kept_Nw, (0, self.dim - kept_Nw.shape[1]))
