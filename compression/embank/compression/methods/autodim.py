"""AutoDim: a width for each table, chosen by training a mixture of widths (Zhao et al., WWW 2021)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embank.compression.budget.floors import refuse_small_budget
from embank.compression.fitting.widths import WidthSvd
from embank.compression.parts.projected import Projected
from embank.tables import (
    Advance,
    ConfigError,
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
from embank.tables.ids.hashing import seeded
from embank.tables.method.modes import evaluating, statistics_move

_MIN_TEMPERATURE = 0.01
_MOMENTUM = 0.1
_EPS = 1e-5


@option_class
class AutoDimConfig:
    """Options of the table whose width is searched.

    Args:
        widths: candidates, ascending; None takes the powers of two below the dim, and the dim.
    """

    widths: tuple[int, ...] | None = None


class _Search(Schedule):
    """A temperature that falls in the search, and the choice of widths at its end."""

    stages: ClassVar[tuple[Stage, ...]] = (
        Stage(name="search", alternates=True, is_search=True, hands_over="end"),
        Stage(name="retrain", fresh_network=True),
    )

    def search_parameters(self, method: "AutoDim") -> list[nn.Parameter]:
        return [method.logits] if method.spec.stage == 0 else []

    def is_followed(self, method: "AutoDim") -> bool:
        return method.spec.stage == 0

    def after_step(
        self, methods: Sequence["AutoDim"], rows: LocalRows, *, step: int, num_steps: int, seed: int
    ) -> None:
        if methods[0].spec.stage == 0:
            for method in methods:
                method.temperature.fill_(max(_MIN_TEMPERATURE, 1 - step / num_steps))

    def advance(
        self, methods: Sequence["AutoDim"], rows: LocalRows, *, score: Score | None, seed: int
    ) -> list[Advance]:
        limited = [m for m in methods if m.spec.budget is not None]
        limit = sum((m.spec.budget or 1) * m.spec.plain_nbytes for m in limited)
        chosen: dict[str, int] = {}
        for group, bound in ((limited, limit), ([m for m in methods if m not in limited], float("inf"))):
            costs = [[width_nbytes(m.spec, width) for width in m.widths] for m in group]
            picks = choose([m.logits.log_softmax(0).tolist() for m in group], costs, limit=bound)
            chosen |= {m.spec.name: pick for m, pick in zip(group, picks, strict=True)}
        widths = [torch.tensor(method.widths[chosen[method.spec.name]]) for method in methods]
        return [Advance(found={"width": width}, carries={}, dense={}) for width in widths]


class AutoDim(Method):
    """Two stages: a search, in which a table of every candidate width takes part, and a retraining of the chosen one.

    In the search a row is sum_c p_c norm(T_c row_c + b_c), where norm is batch normalisation without scale and p comes
    from logits that validation batches move, by a Gumbel softmax whose temperature falls with the stage's steps. Then
    each table gets one
    width: together the likeliest ones that fit the budgets of all tables of the method, which are one pool.

    Raises:
        BudgetError: the budget does not hold the smallest width.
        ConfigError: widths that are not ascending within 1 .. dim.

    Source: sections 2 and 3 of the paper. There the choice is the largest logit, whatever it costs, and the temperature
    falls with the number of samples, here with the share of the search that is done. The public implementation in the
    VLDB'24 benchmark of Zhang et al. retrains from the weights of the search but drops their normalisation; here all of
    the model is trained anew, since rows that learned beside those of other widths have learned something else.

    Example:
        >>> table = build_table(method="autodim", num_embeddings=1000, embedding_dim=8, budget=0.2)
        >>> {name: tuple(rows.shape) for name, rows in table.collection.weights().items()}
        {'table/width1': (1000, 1)}
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.127
    """

    Config = AutoDimConfig
    traits = Traits(whole_rows=True, schedule=_Search(), fitting=WidthSvd())
    temperature: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        options: AutoDimConfig = self.options
        dim = spec.embedding_dim
        self.widths = options.widths or (*(1 << b for b in range((dim - 1).bit_length())), dim)
        if list(self.widths) != sorted(set(self.widths)) or not 1 <= self.widths[0] <= self.widths[-1] <= dim:
            raise ConfigError(
                f"table '{spec.name}' has widths {self.widths}; give ascending ones from 1 to its dim, {dim}"
            )
        needs = f"rows of width {self.widths[0]} and their projection"
        refuse_small_budget(spec, needs=needs, floor_nbytes=width_nbytes(spec, self.widths[0]))
        if spec.stage == 1:
            self.widths = (int(spec.found["width"]),)
        self.physical = tuple(own_table(spec, name=f"{spec.name}/width{width}", width=width) for width in self.widths)
        with seeded(seed, "method", spec.name):
            projections = [Projection(width, dim, searched=spec.stage == 0) for width in self.widths]
        self.projections = nn.ModuleList(projections)
        if spec.stage == 0:
            self.logits = nn.Parameter(torch.zeros(len(self.widths)))
            self.register_buffer("temperature", torch.ones(()))

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (ids_N,) * len(self.widths)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        pairs = zip(self.projections, rows, strict=True)
        outputs = [projection(part) for projection, part in pairs]
        if self.spec.stage == 1:
            only_ND: Tensor = outputs[0]
            return only_ND
        return torch.einsum("c,cnd->nd", self.probabilities(), torch.stack(outputs))

    def probabilities(self) -> Tensor:
        """Weight of each width, [C]; in training with Gumbel noise, drawn once per call."""
        logits_C = self.logits.log_softmax(0)
        if self.training:
            logits_C = logits_C - torch.empty_like(logits_C).exponential_().log()
        return (logits_C / self.temperature).softmax(0)

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        if self.spec.stage == 0:  # in the search: the logical table itself
            with evaluating(self):
                return Served.of_rows(self.combine(tuple(rows[table.name] for table in self.physical), None))
        projection = self.projections[0]
        assert isinstance(projection, Projection)
        weight_cD, bias_D = projection.weight.detach(), projection.bias.detach()
        values_Rc = rows[self.physical[0].name]
        if values_Rc.shape[0] * self.spec.embedding_dim <= values_Rc.numel() + weight_cD.numel() + bias_D.numel():
            return Served.of_rows(values_Rc @ weight_cD + bias_D)
        return Served.of_rows(values_Rc, spine=Projected(weight_cD, bias_D))


class Projection(nn.Module):
    """Rows [N, c] to [N, D]: linear, and in the search batch-normalised.

    Args:
        width, dim: c and D.
        searched: whether there is a normalisation.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, dim: int, *, searched: bool) -> None:
        super().__init__()
        weight_cD = torch.randn(width, dim)
        # The mean square is exactly 1 / c, so that projected rows have the variance of rows.
        self.weight = nn.Parameter(weight_cD / (weight_cD.square().mean() * width).sqrt())
        self.bias = nn.Parameter(torch.zeros(dim))
        self.searched = searched
        if searched:
            self.register_buffer("mean", torch.zeros(dim))
            self.register_buffer("variance", torch.ones(dim))

    def forward(self, rows_Nc: Tensor) -> Tensor:
        """Logical rows [N, D]; in training normalised by the batch, whose mean and variance move the running ones."""
        projected_ND = rows_Nc @ self.weight + self.bias
        if not self.searched:
            return projected_ND
        if not self.training or projected_ND.shape[0] < 2:  # one row has no variance
            return (projected_ND - self.mean) * (self.variance + _EPS).rsqrt()
        mean, variance = (self.mean, self.variance) if statistics_move() else (None, None)
        return F.batch_norm(projected_ND, mean, variance, training=True, momentum=_MOMENTUM, eps=_EPS)


def width_nbytes(spec: TableSpec, width: int) -> int:
    """Serving bytes of a table of some width: rows, projection and bias, or the plain table where that is smaller."""
    dim = spec.embedding_dim
    return min(spec.plain_nbytes, 4 * (spec.num_embeddings * width + width * dim + dim))


def choose(scores: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], *, limit: float) -> list[int]:
    """One option for each of several tables: a high sum of scores at a sum of costs within a limit.

    From each table's best option (the dearest of equals) downwards, always by the step that loses the least score per
    byte saved, until it fits; then upwards again, by the best steps that still fit.

    Args:
        scores, costs: by table and option; costs ascend.
        limit: at least the sum of the smallest costs.
    """
    picks = [max(range(len(own)), key=lambda k: (own[k], k)) for own in scores]

    def excess() -> float:
        return sum(own[pick] for own, pick in zip(costs, picks, strict=True)) - limit

    while excess() > 0:
        steps = [
            ((scores[t][pick] - scores[t][k]) / (costs[t][pick] - costs[t][k]), costs[t][pick] - costs[t][k], t, k)
            for t, pick in enumerate(picks)
            for k in range(pick)
            if costs[t][k] < costs[t][pick]
        ]
        _, _, table, option = min(steps)
        picks[table] = option
    while True:
        better = [
            (scores[t][k] - scores[t][pick], t, k)
            for t, pick in enumerate(picks)
            for k in range(len(scores[t]))
            if scores[t][k] > scores[t][pick] and excess() + costs[t][k] - costs[t][pick] <= 0
        ]
        if not better:
            return picks
        _, table, option = max(better)
        picks[table] = option
