"""Product quantisation that is trained with the table: codebooks, codes, their budget and their packed form. DPQ and
MGQE stand on it.

A row of width D is cut into C parts; part c is replaced by the nearest of K centroids of codebook c. Legend: N ids in a
batch, w = D / C.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from embank.compression.budget.floors import floor_error
from embank.compression.codecs.codes import CodedRows, decode, nearest_codes
from embank.compression.fitting.codes import Centroids
from embank.compression.parts.bits import code_bits, packed_nbytes
from embank.compression.parts.row_chunks import fetch
from embank.tables import (
    Combined,
    ConfigError,
    DistinctMethod,
    LocalRows,
    Schedule,
    Served,
    TableSpec,
    Traits,
    default_init,
    own_table,
)
from embank.tables.ids.hashing import generator_of, seeded
from embank.tables.method.modes import statistics_move

MAX_CODES = 256
_RESTARTS = 20
_LOOKUPS_PER_CODE = 8


class CodeShape(NamedTuple):
    """Sizes of a quantised table: `num_codebooks` C; `num_codes` K; ids below `num_head` use all codes, others the
    first `num_tail_codes`."""

    num_codebooks: int
    num_codes: int
    num_tail_codes: int
    num_head: int

    def code_nbytes(self, num_embeddings: int) -> int:
        """Bytes of the codes."""
        head, tail = self.num_head, num_embeddings - self.num_head
        c = self.num_codebooks
        return packed_nbytes(head * c, code_bits(self.num_codes)) + packed_nbytes(
            tail * c, code_bits(self.num_tail_codes)
        )

    def nbytes(self, num_embeddings: int, dim: int) -> int:
        """Serving bytes: codes and centroids."""
        return self.code_nbytes(num_embeddings) + 4 * self.num_codes * dim


def choose_shape(
    spec: TableSpec, *, num_codebooks: int | None, num_codes: int | None, num_tail_codes: int | None, head_share: float
) -> CodeShape:
    """The sizes that give the codes the most bits within the budget; among equals the one with the most codes.

    Args:
        spec: the table.
        num_codebooks, num_codes: None leaves them to the budget; without one they are the largest divisor of the dim
            that makes parts of at least 2 columns, and 256 or the number of ids.
        num_tail_codes: None takes a quarter of `num_codes`, at least 2.
        head_share: share of ids that use all codes; 1 for all.

    Raises:
        BudgetError: the budget is below the smallest of them; states the floor.
        ConfigError: sizes that don't fit the table.
    """
    dim, num = spec.embedding_dim, spec.num_embeddings
    if num_codebooks is not None and (num_codebooks < 1 or dim % num_codebooks):
        raise ConfigError(
            f"table '{spec.name}' has dim {dim}, which {num_codebooks} codebooks do not divide; use a divisor of the "
            "dim"
        )
    for name, value in (("num_codes", num_codes), ("num_tail_codes", num_tail_codes)):
        if value is not None and not 1 <= value <= 1 << 16:
            raise ConfigError(f"table '{spec.name}' has {name} {value}; use 1 to 65,536")
    if num_tail_codes is not None and num_codes is not None and num_tail_codes > num_codes:
        raise ConfigError(
            f"table '{spec.name}' has {num_tail_codes} tail codes of {num_codes}; use at most as many as there are"
        )
    num_head = math.ceil(head_share * num)
    divisors = [c for c in range(1, dim + 1) if dim % c == 0]
    powers = [1 << b for b in range(1, code_bits(MAX_CODES) + 1) if 1 << b <= num] or [1]
    if spec.budget is None:
        divisors, powers = [max(c for c in divisors if c <= max(1, dim // 2))], powers[-1:]

    def shape(c: int, k: int) -> CodeShape:
        return CodeShape(c, k, min(k, num_tail_codes or max(2, k // 4)), num_head)

    shapes = [
        shape(c, k)
        for c in (divisors if num_codebooks is None else [num_codebooks])
        for k in (powers if num_codes is None else [num_codes])
    ]
    if spec.budget is not None:
        allowed = spec.budget * spec.plain_nbytes
        floor = min(s.nbytes(num, dim) for s in shapes)
        shapes = [s for s in shapes if s.nbytes(num, dim) <= allowed]
        if not shapes:
            raise floor_error(spec, needs="codes and centroids", floor_nbytes=floor)
    return max(shapes, key=lambda s: (s.code_nbytes(num), s.num_codes))


def codebook_choices(spec: TableSpec) -> tuple[int, ...]:
    """Numbers of codebooks that a search tries: those that make parts of 2, 4 and 8 columns."""
    dim = spec.embedding_dim
    return tuple(sorted(dim // width for width in (2, 4, 8) if dim % width == 0)) or (1,)


class ProductQuantiser(nn.Module):
    """Codebooks with straight-through gradients.

    Gradients pass a code unchanged to the row that chose it. Centroids are moved by `loss` alone, towards the rows that
    chose them; there is no term that ties rows to centroids.

    Source: Chen et al., ICML 2020, section 2.3 (DPQ-VQ). Published code averages the squared distance over a batch,
    which leaves the centroids' step to the batch size and to how often a code is used; here each centroid's term is
    averaged over its own rows, so that a gradient step of rate 1/2 is a step of k-means. Centroids start as rows do,
    and those that no row has chosen for long are set upon rows (`restart`); published code starts them at 3e-4 or less
    and leaves dead ones dead.
    """

    usage: Tensor

    def __init__(self, spec: TableSpec, shape: CodeShape) -> None:
        super().__init__()
        self.shape = shape
        c, k = shape.num_codebooks, shape.num_codes
        init = default_init(spec)
        centroids_CKw = torch.empty(c, k, spec.embedding_dim // c)
        if init.kind == "normal":
            centroids_CKw.normal_(init.mean, init.scale)
        else:
            centroids_CKw.uniform_(init.mean - init.scale, init.mean + init.scale)
        self.centroids = nn.Parameter(centroids_CKw)
        self.register_buffer("usage", torch.zeros(c, k, dtype=torch.int64))

    def forward(
        self, rows_UD: Tensor, is_head_U: Tensor | None, times_U: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Quantised rows [U, D], and in a training pass the codebook loss.

        Their values are the centroids', their gradients go to `rows_UD`.

        Args:
            rows_UD: of the ids of a batch.
            is_head_U: which of them may use all codes; None for all.
            times_U: how often each occurs in the batch, int64, perhaps never; None for once each.
        """
        codes_UC = self.encode(rows_UD, is_head_U)
        quantised_UD = decode(self.centroids, codes_UC)
        if not self.training or not torch.is_grad_enabled():
            return quantised_UD.detach(), None
        if times_U is None:
            times_U = torch.ones(rows_UD.shape[0], dtype=torch.int64, device=rows_UD.device)
        counts_CK = torch.zeros_like(self.usage).scatter_add_(1, codes_UC.T, times_U.expand(codes_UC.shape[1], -1))
        if statistics_move():
            self.usage += counts_CK
        members_UC = counts_CK.gather(1, codes_UC.T).T.clamp(min=1)
        width = self.centroids.shape[2]
        distances_UC = (quantised_UD - rows_UD.detach()).square().view(*codes_UC.shape, width).sum(2)
        loss = (distances_UC * times_U[:, None] / members_UC).sum()
        return quantised_UD.detach() + (rows_UD - rows_UD.detach()), loss

    def distinct(self, rows_UD: Tensor, places_N: Tensor, is_head_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`forward` for ids that share rows, each of which is encoded once.

        Args:
            rows_UD: distinct rows; some may be those of another feature's ids.
            places_N: where each id's row is among them.
            is_head_N: which ids may use all codes; None for all.

        Returns:
            [N, D], and the loss.
        """
        times_U = torch.bincount(places_N)
        is_head_U = None
        if is_head_N is not None:
            is_head_U = is_head_N.new_zeros(times_U.numel()).scatter_(0, places_N, is_head_N)
        quantised_UD, loss = self(rows_UD[: times_U.numel()], is_head_U, times_U)
        return quantised_UD.index_select(0, places_N), loss

    @torch.no_grad()
    def encode(self, rows_ND: Tensor, is_head_N: Tensor | None) -> Tensor:
        """Nearest centroid of each part, int64 [N, C]; ids outside the head choose among the first `num_tail_codes`."""
        return nearest_codes(rows_ND, self.centroids, is_head_N, num_tail_codes=self.shape.num_tail_codes)

    @torch.no_grad()
    def restart(self, rows: LocalRows, spec: TableSpec, *, step: int, seed: int) -> None:
        """Sets centroids that nothing has chosen since the last call onto rows, once codes have had a fair chance.

        The rows are drawn by rank with density 1 / rank, about as often as training meets them, and alike in all
        processes.
        """
        usage_CK = rows.sum(self.usage)
        num_codebooks, num_codes = usage_CK.shape
        if int(usage_CK[0].sum()) < _LOOKUPS_PER_CODE * num_codes:
            return
        generator = generator_of(seed, "restart", spec.name, step)
        share_K = torch.rand(num_codes, generator=generator, dtype=torch.float64)
        ids_K = ((spec.num_embeddings + 1) ** share_K).long().clamp(1, spec.num_embeddings) - 1
        drawn_KD = fetch(rows, spec.name, ids_K).to(self.centroids.device)
        parts_CKw = drawn_KD.view(num_codes, num_codebooks, -1).transpose(0, 1)
        self.centroids.copy_(torch.where((usage_CK == 0)[:, :, None], parts_CKw, self.centroids))
        self.usage.zero_()


class _Restarts(Schedule):
    """Centroids that no row chooses are set onto rows, a few times in the first half of the training."""

    def after_step(
        self, methods: "Sequence[QuantisedRows]", rows: LocalRows, *, step: int, num_steps: int, seed: int
    ) -> None:
        if restart_due(step, num_steps):
            for method in methods:
                method.quantiser.restart(rows, method.spec, step=step, seed=seed)


class QuantisedRows(DistinctMethod):
    """A plain table in training, of which every part passes through its nearest centroid; codes and centroids are
    served.

    Codes are made anew in every forward pass and at packing, so none is stale and ids that training never met have one.
    What methods of this kind differ in is which codes an id may use.
    """

    traits = Traits(whole_rows=True, adds_loss=True, schedule=_Restarts(), fitting=Centroids())

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        with seeded(seed, "method", spec.name):
            self.quantiser = ProductQuantiser(spec, self.shape())
        self.physical = (own_table(spec),)

    @abstractmethod
    def shape(self) -> CodeShape:
        """Sizes of the codes, by options and budget."""

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor | Combined:
        return _with_loss(*self.quantiser(rows[0], side))

    def combine_distinct(self, rows: tuple[Tensor, ...], places_LN: Tensor, side: Tensor | None) -> Tensor | Combined:
        return _with_loss(*self.quantiser.distinct(rows[0], places_LN[0], side))

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        shape = self.quantiser.shape
        return Served.of_rows(
            CodedRows(
                rows[self.spec.name],
                self.quantiser.centroids.detach(),
                num_head=shape.num_head,
                num_tail_codes=shape.num_tail_codes,
            )
        )


def _with_loss(quantised_ND: Tensor, loss: Tensor | None) -> Tensor | Combined:
    return quantised_ND if loss is None else Combined(quantised_ND, loss)


def restart_due(step: int, num_steps: int) -> bool:
    """Dead centroids are looked for a few times in the first half of the training."""
    return step % max(1, num_steps // _RESTARTS) == 0 and 2 * step <= num_steps
