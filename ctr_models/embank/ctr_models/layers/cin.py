"""Compressed interaction network: explicit interactions of bounded order, vector by vector."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CompressedInteraction(nn.Module):
    """Layers x^k_h = sum over i, j of W^k_hij (x^{k-1}_i * x^0_j), each summed over the dim at the end.

    Rows and dims are flattened to N = B D, since every column of the embedding goes through the same layer alone.

    Source: Lian et al. 2018 (xDeepFM), equations 6 and 7.

    Args:
        num_fields: F, rows of x^0.
        units: feature maps of each layer.
    """

    def __init__(self, num_fields: int, units: tuple[int, ...]) -> None:
        super().__init__()
        self.num_fields = num_fields
        self.weights = nn.ParameterList()
        width = num_fields
        for maps in units:
            weight = nn.init.xavier_normal_(torch.empty(maps, num_fields * width))
            self.weights.append(nn.Parameter(weight.view(maps, num_fields, width)))
            width = maps

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Interact: [B, F, D] to [B, sum of units]."""
        num_rows, _, dim = fields_BFD.shape
        base_NF = fields_BFD.transpose(1, 2).reshape(num_rows * dim, self.num_fields)
        maps_NM, pooled = base_NF, []
        for weight_HFM in self.weights:
            maps_NM = _interact(base_NF, maps_NM, weight_HFM)
            pooled.append(maps_NM.view(num_rows, dim, weight_HFM.shape[0]).sum(dim=1))
        return torch.cat(pooled, dim=1)


def _interact(base_NF: Tensor, maps_NM: Tensor, weight_HFM: Tensor) -> Tensor:
    """sum over i, j of W_hij base_i maps_j, [N, H], in the order whose intermediate is the smaller one.

    A convolution over the outer product, as in the published code, is slower on a CPU, up to three times for few
    feature maps.
    """
    num_maps, num_fields, width = weight_HFM.shape
    if num_maps <= width:
        half_NHF = F.linear(maps_NM, weight_HFM.reshape(num_maps * num_fields, width)).view(-1, num_maps, num_fields)
        return torch.bmm(half_NHF, base_NF.unsqueeze(2).to(half_NHF.dtype)).squeeze(2)
    outer_NFM = base_NF.unsqueeze(2) * maps_NM.unsqueeze(1)
    return F.linear(outer_NFM.flatten(1), weight_HFM.reshape(num_maps, num_fields * width))
