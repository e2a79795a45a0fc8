"""Inner products of all pairs of fields: the interaction of DLRM and IPNN.

`torchrec.models.dlrm.InteractionArch` takes the upper triangle by advanced indexing, whose backward scatters into a
zeroed [B, F, F] tensor and then multiplies twice, once for each factor of X X^T. That gradient, made symmetric, is one
gather and one product; this file adds no more than that. `index_select` on the flattened matrix is the fastest of the
ways to gather here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _PairProducts(torch.autograd.Function):
    @staticmethod
    def forward(fields_BFD: Tensor, pairs: Tensor, expand: Tensor) -> Tensor:
        gram_BFF = torch.bmm(fields_BFD, fields_BFD.transpose(1, 2))
        return gram_BFF.flatten(1).index_select(1, pairs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        fields_BFD, _, expand = inputs
        ctx.save_for_backward(fields_BFD, expand)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        fields_BFD, expand = ctx.saved_tensors
        num_fields = fields_BFD.shape[1]
        # One zero column stands for the diagonal, which the forward never reads.
        padded = F.pad(grads[0].to(fields_BFD.dtype), (0, 1))
        grad_BFF = padded.index_select(1, expand).view(fields_BFD.shape[0], num_fields, num_fields)
        return torch.bmm(grad_BFF, fields_BFD), None, None


class PairProducts(nn.Module):
    """The P = F (F - 1) / 2 inner products of [B, F, D], ordered (0, 1), (0, 2), ..., (1, 2), ...

    First derivatives only: the hand-written backward is not differentiable again.

    Args:
        num_fields: F.

    Attributes:
        num_pairs: P; 0 for a single field.
    """

    pairs: Tensor
    expand: Tensor

    def __init__(self, num_fields: int) -> None:
        super().__init__()
        rows, columns = torch.triu_indices(num_fields, num_fields, offset=1)
        self.num_pairs = rows.numel()
        # Where each entry of the gradient matrix comes from; its diagonal comes from the zero column behind the pairs.
        expand = torch.full((num_fields, num_fields), self.num_pairs)
        expand[rows, columns] = expand[columns, rows] = torch.arange(self.num_pairs)
        self.register_buffer("pairs", rows * num_fields + columns, persistent=False)
        self.register_buffer("expand", expand.flatten(), persistent=False)

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Multiply: [B, F, D] to [B, P]."""
        if not torch.is_grad_enabled():  # autograd's function costs as much as the products of one row
            return _PairProducts.forward(fields_BFD, self.pairs, self.expand)
        return _PairProducts.apply(fields_BFD, self.pairs, self.expand)  # type: ignore[no-any-return, no-untyped-call]
