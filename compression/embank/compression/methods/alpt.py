"""ALPT: low-precision rows whose steps are learned (Li et al., "Adaptive Low-Precision Training for Embeddings in
Click-Through Rate Prediction", AAAI 2023, arXiv 2212.05735)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from embank.compression.codecs.grids import SteppedRows
from embank.compression.fitting.grids import Steps
from embank.compression.parts.grid import Bits, clamp_codes, high_codes, num_wide_rows
from embank.tables import ConfigError, Method, Served, TableSpec, Traits, default_init, option_class, own_table
from embank.tables.rows.rounding import noise, round_stochastically

_STEP_NBYTES = 4
_SMALLEST_STEP = 2.0**-100
"""Of a row of zeros; far below any row's."""


@option_class
class AlptConfig:
    """Options of ALPT.

    Args:
        bits: 8 or 16 for every row. None takes 16 for as many rows as the budget holds, from the most frequent id on,
            and 8 for the others; without a budget 8 for all.
        step_lr: learning rate of the steps, as a share of the rows'. Hetu's EMC takes 2e-5 / 1e-3.
    """

    bits: Bits | None = None
    step_lr: float = field(default=0.02, metadata={"choices": (0.005, 0.02, 0.08)})


class Alpt(Method):
    """Rows s * (whole numbers of 8 or 16 bits) with a learned step s per row, kept as the physical row's last column.

    The published training step (as in Hetu's EMC) has two passes over a batch:
    (1) forward and backward with the stored rows, w' = s W - lr dL/d(s W); (2) forward and backward with Q(w'), the
    nearest grid point, for the step's gradient by LSQ (Esser et al., ICLR 2020), s' = s - lr_s g dL/ds; (3) store w' /
    s', rounded at random. Here rows are updated inside the backward pass, so there is no second one. What replaces it:
    where no number moves by half a step or more, which is the case this method is made for, Q(w') *is* the row that
    pass 1 has read. Then the gradients of both passes are the same, and pass 1 has left it behind in the row: dL/dQ =
    (Q(w') - w') / lr. So the projection that runs after an update has all that the LSQ gradient takes, `learned_steps`.
    It is also the gradient of half the squared rounding error, which says what these steps learn: to trade rounding
    against clipping.

    With plain SGD it is the two-pass step to float rounding (a test runs both), except that

    * the network stands still between the passes, where the published step has updated it;
    * numbers that do move by more than half a step give a rounding error in place of their gradient;
    * with an adaptive row optimizer it is the gradient as preconditioned by it, and that optimizer's own statistics do
      not cover the steps (row-wise Adagrad averages over D + 1 columns, the last one with gradient 0);
    * g = 1 / sqrt(D high), as in LSQ, without the batch size, which a row does not know;
    * a step grows at most to where the whole row fits, and at most halves: it stays positive, which EMC does not
      ensure;
    * a row starts with the step that holds its initial values. EMC's .01 rounds 98% of +-3e-4 to zero.

    Bytes: serving holds codes and an fp32 step per row. Training holds rows in fp32 and the optimizer's state. The last
    column makes rows one
    wider: the fbgemm backend takes embedding dims to 2,047.

    Raises:
        BudgetError: the budget does not hold the codes and 4 bytes per row.
        ConfigError: a step_lr that is negative or not finite.

    Example:
        >>> table = build_table(method="alpt", num_embeddings=1000, embedding_dim=8)
        >>> {name: tuple(rows.shape) for name, rows in table.collection.weights().items()}
        {'table': (1000, 9)}
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.375
    """

    Config = AlptConfig
    traits = Traits(whole_rows=True, fitting=Steps())

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        options: AlptConfig = self.options
        if not 0 <= options.step_lr < float("inf"):
            raise ConfigError(f"table '{spec.name}' has step_lr {options.step_lr}; it must be finite and 0 or more")
        self.num_wide = num_wide_rows(spec, bits=options.bits, step_nbytes=_STEP_NBYTES)
        grid = LearnedGrid(num_wide=self.num_wide, step_lr=options.step_lr)
        init = replace(default_init(spec), last_column=0.0)
        self.physical = (own_table(spec, width=spec.embedding_dim + 1, init=init, projection=grid),)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return rows[0][:, :-1]

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        return Served.of_rows(SteppedRows(rows[self.spec.name], num_wide=self.num_wide))


@dataclass(frozen=True, kw_only=True)
class LearnedGrid:
    """Moves the steps of rows [values | step] and rounds the values to them; see `RowProjection`.

    Args:
        num_wide: rows below it have 16 bits, the others 8.
        step_lr: see `AlptConfig`.
    """

    num_wide: int
    step_lr: float

    def __call__(self, rows_UD: Tensor, rows_U: Tensor, *, seed: int) -> Tensor:
        high_U1 = high_codes(rows_U, num_wide=self.num_wide)
        values_UD, step_U1 = rows_UD[:, :-1], rows_UD[:, -1:]
        step_U1 = learned_steps(values_UD, step_U1, high_U1, step_lr=self.step_lr)
        noise_UD = noise(rows_U, num_columns=values_UD.shape[1], seed=seed)
        codes_UD = clamp_codes(round_stochastically(values_UD / step_U1, noise_UD), high_U1)
        return torch.cat([codes_UD * step_U1, step_U1], dim=1)


def learned_steps(values_UD: Tensor, step_U1: Tensor, high_U1: Tensor, *, step_lr: float) -> Tensor:
    """New steps [U, 1] of rows that were just updated: one step of gradient descent, positive, no larger than the row
    needs.

    Args:
        values_UD: w', the values after their update, not rounded yet.
        step_U1: their steps; 0 for rows that have none yet.
        high_U1: their largest codes.
        step_lr: see `AlptConfig`.
    """
    needed_U1 = (values_UD.abs().amax(dim=1, keepdim=True) / high_U1).clamp(min=_SMALLEST_STEP)
    step_U1 = torch.where(step_U1 > 0, step_U1, needed_U1)
    upstream_UD = nearest(values_UD, step_U1, high_U1) - values_UD  # the rows' learning rate times dL/dQ
    g_U1 = (values_UD.shape[1] * high_U1).rsqrt()
    moved_U1 = step_U1 - step_lr * g_U1 * lsq_gradient(values_UD, step_U1, high_U1, upstream_UD)
    return torch.maximum(torch.minimum(moved_U1, torch.maximum(step_U1, needed_U1)), step_U1 / 2)


def nearest(values_UD: Tensor, step_U1: Tensor, high_U1: Tensor) -> Tensor:
    """Q(w): the nearest grid points, clipped to the range of the codes."""
    return clamp_codes((values_UD / step_U1).round(), high_U1) * step_U1


def lsq_gradient(values_UD: Tensor, step_U1: Tensor, high_U1: Tensor, upstream_UD: Tensor) -> Tensor:
    """dL/ds by LSQ: rounding counts as the identity, so dQ/ds is round(w / s) - w / s inside the range and the
    outermost code beyond it.

    Args:
        values_UD: w.
        step_U1: s.
        high_U1: largest codes.
        upstream_UD: dL/dQ.

    Returns:
        [U, 1].

    Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, the gradient of the step size.
    """
    scaled_UD = values_UD / step_U1
    inside_UD = (scaled_UD >= -high_U1 - 1) & (scaled_UD <= high_U1)
    slope_UD = torch.where(inside_UD, scaled_UD.round() - scaled_UD, clamp_codes(scaled_UD, high_U1))
    return (upstream_UD * slope_UD).sum(dim=1, keepdim=True)
