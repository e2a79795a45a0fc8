"""Fits of networks in place of tables: a regression on the vectors, by Adam, with fixed steps and a fixed seed."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from embank.tables import CurrentRows, Fitted, Fitting, Wanted
from embank.tables.ids.hashing import generator_of

_STEPS, _BATCH, _LR = 1500, 512, 4e-3
_SAMPLE = 8192


class Regression(Fitting):
    """Of deep hash embeddings: 1,500 steps of Adam on batches of 512 ids, drawn by their weights; the step falls to 0
    by a cosine. The last layer is then solved for by least squares, batch norm being held.

    Example:
        >>> options = method_class("dhe").Config(width=8, num_layers=2)
        >>> table = build_table(method="dhe", num_embeddings=20, embedding_dim=4, options=options)
        >>> table.fit(torch.rand(20, 4)).error < 0.2
        True
    """

    @torch.enable_grad()
    def fit(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        (method,), (own,) = methods, wanted
        name, network = method.spec.name, deepcopy(method).train()
        network.requires_grad_(True)
        generator = generator_of(seed, "fit network", name)
        bounds_K = own.weights_K.double().cumsum(0)
        scale = own.vectors_KD.square().mean().clamp(min=1e-30)
        optimizer = torch.optim.Adam(network.parameters(), lr=_LR)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        for _ in range(_STEPS):
            drawn = torch.rand(min(_BATCH, 8 * len(bounds_K)), dtype=torch.float64, generator=generator)
            chosen = torch.searchsorted(bounds_K, drawn * bounds_K[-1]).clamp(max=len(bounds_K) - 1)
            found = network.combine((), network.side(own.ids_K[chosen]))
            loss = (found - own.vectors_KD[chosen]).square().mean() / scale
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            falling.step()
        with torch.no_grad():
            _settle_statistics(network, own)
            _solve_last(network.eval(), own)
        return Fitted(rows={}, dense={name: {key: value.detach() for key, value in network.state_dict().items()}})


def _settle_statistics(network: Any, wanted: Wanted) -> None:
    """Batch norm's running statistics, layer by layer, over ids drawn evenly."""
    num = len(wanted.ids_K)
    ids = wanted.ids_K if num <= _SAMPLE else wanted.ids_K[torch.arange(_SAMPLE) * num // _SAMPLE]
    if len(ids) < 2:
        return
    for depth, norm in enumerate(network.norms):
        x_SW = network.hidden[depth](_hidden(network, ids, depth=depth))
        norm.running_mean.copy_(x_SW.mean(0))
        norm.running_var.copy_(x_SW.var(0))


def _hidden(network: Any, ids_N: Tensor, *, depth: int | None = None) -> Tensor:
    """What goes into a layer, the last one by default, in evaluation mode."""
    from embank.compression.methods.dhe import encode

    x_NW = encode(ids_N, network.hash_constants, network.encoding)
    for linear, norm in list(zip(network.hidden, network.norms, strict=True))[:depth]:
        normed = F.batch_norm(linear(x_NW), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        x_NW = F.mish(normed)
    return x_NW


def _solve_last(network: Any, wanted: Wanted) -> None:
    """The last layer by weighted least squares."""
    from embank.compression.fitting.means import chunks

    width = network.last.in_features + 1
    gram_WW = torch.zeros(width, width, dtype=torch.float64)
    right_WD = torch.zeros(width, network.last.out_features, dtype=torch.float64)
    for ids_k, vectors_kD, weights_k in chunks(wanted, width=network.hash_constants.shape[1] + width):
        x_kW = F.pad(_hidden(network, ids_k).double(), (0, 1), value=1.0)
        weighted_kW = x_kW * weights_k[:, None]
        gram_WW += weighted_kW.T @ x_kW
        right_WD += weighted_kW.T @ vectors_kD
    ridge_WW = 1e-8 * gram_WW.trace() / width * torch.eye(width, dtype=torch.float64)
    before_WD = torch.cat([network.last.weight.T, network.last.bias[None]]).double()
    solved_WD = torch.linalg.solve(gram_WW + ridge_WW, right_WD + ridge_WW @ before_WD)
    network.last.weight.copy_(solved_WD[:-1].T)
    network.last.bias.copy_(solved_WD[-1])
