"""Cross layers of DCN and DCN-V2 over flat inputs [B, W].

TorchRec's `VectorCrossNet` and `LowRankMixtureCrossNet` compute on [B, W, 1], a batch of tiny products, and take
several times as long as the same on [B, W] here; its `CrossNet` lacks the padded product (layers/mlp.py) that makes an
odd W, such as Criteo's 429, a tenth faster. Its `LowRankCrossNet` is right and fast, but a model that is served should
not wait for TorchRec to be imported.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embank.ctr_models.layers.mlp import make_linear


class VectorCross(nn.Module):
    """x_{l+1} = x_0 (x_l . w_l) + b_l + x_l. Source: Wang et al. 2017 (DCN), equation 3.

    Args:
        width: columns W.
        num_layers: cross layers.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.init.xavier_normal_(torch.empty(width, 1)) for _ in range(num_layers))
        self.biases = nn.ParameterList(torch.zeros(width) for _ in range(num_layers))

    def forward(self, x0_BW: Tensor) -> Tensor:
        """Cross: [B, W] to [B, W]."""
        x_BW = x0_BW
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x_BW = x0_BW * (x_BW @ weight) + bias + x_BW
        return x_BW

    @property
    def first_weight(self) -> Tensor:
        """Weights [1, W] by which the first layer reads its input before it multiplies."""
        weight: Tensor = self.weights[0].T
        return weight


class MatrixCross(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l. Source: Wang et al. 2021 (DCN V2), equation 1.

    Args:
        width: columns W.
        num_layers: cross layers.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make_linear(width, width) for _ in range(num_layers))

    def forward(self, x0_BW: Tensor) -> Tensor:
        """Cross: [B, W] to [B, W]."""
        x_BW = x0_BW
        for layer in self.layers:
            x_BW = torch.addcmul(x_BW, x0_BW, layer(x_BW).to(x_BW.dtype))
        return x_BW

    @property
    def first_weight(self) -> Tensor:
        """Weights [W, W] by which the first layer reads its input before it multiplies."""
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        return first.weight


class LowRankCross(nn.Module):
    """x_{l+1} = x_0 * (U_l V_l^T x_l + b_l) + x_l. Source: Wang et al. 2021 (DCN V2), equation 2.

    Parameters have the names of TorchRec's `LowRankCrossNet`, which computes the same.

    Args:
        width: columns W.
        num_layers: cross layers.
        rank: of the matrices.
    """

    def __init__(self, width: int, num_layers: int, *, rank: int) -> None:
        super().__init__()
        self.W_kernels = nn.ParameterList(nn.init.xavier_normal_(torch.empty(width, rank)) for _ in range(num_layers))
        self.V_kernels = nn.ParameterList(nn.init.xavier_normal_(torch.empty(rank, width)) for _ in range(num_layers))
        self.bias = nn.ParameterList(torch.zeros(width) for _ in range(num_layers))

    def forward(self, x0_BW: Tensor) -> Tensor:
        """Cross: [B, W] to [B, W]."""
        x_BW = x0_BW
        for up, down, bias in zip(self.W_kernels, self.V_kernels, self.bias, strict=True):
            x_BW = x0_BW * (F.linear(F.linear(x_BW, down), up) + bias) + x_BW
        return x_BW

    @property
    def first_weight(self) -> Tensor:
        """Weights [R, W] by which the first layer reads its input before it multiplies."""
        weight: Tensor = self.V_kernels[0]
        return weight


class MixtureCross(nn.Module):
    """Low-rank cross layers, each a gated mixture of experts.

    x_{l+1} = sum_k softmax(G(x_l))_k x_0 * (U_k g(C_k g(V_k^T x_l)) + b) + x_l, with g = tanh.

    All experts of a layer run as one product. Gates are shared by the layers, as in TorchRec's and DeepCTR's versions.

    Source: Wang et al. 2021 (DCN V2), equations 3 and 4.

    Args:
        width: columns W.
        num_layers: cross layers.
        rank: of the experts' matrices.
        num_experts: K.
    """

    def __init__(self, width: int, num_layers: int, *, rank: int, num_experts: int) -> None:
        super().__init__()
        shapes = {"down": (width, rank), "middle": (rank, rank), "up": (rank, width)}
        self.down, self.middle, self.up = (
            nn.ParameterList(_stack_xavier(num_experts, *shape) for _ in range(num_layers)) for shape in shapes.values()
        )
        self.biases = nn.ParameterList(torch.zeros(width) for _ in range(num_layers))
        self.gate = make_linear(width, num_experts, bias=False)

    def forward(self, x0_BW: Tensor) -> Tensor:
        """Cross: [B, W] to [B, W]."""
        x_BW = x0_BW
        for down, middle, up, bias in zip(self.down, self.middle, self.up, self.biases, strict=True):
            low_KBR = torch.matmul(x_BW, down).tanh()
            low_KBR = torch.bmm(low_KBR, middle).tanh()
            gates_KB1 = self.gate(x_BW).softmax(dim=1).T.unsqueeze(2)
            # The gates sum to one, so they may weight the low-rank side, and the bias stays whole.
            mixed_BC = (low_KBR * gates_KB1).transpose(0, 1).flatten(1)
            x_BW = torch.addcmul(x_BW, x0_BW, torch.addmm(bias, mixed_BC, up.flatten(0, 1)).to(x_BW.dtype))
        return x_BW

    @property
    def first_weight(self) -> Tensor:
        """Weights [K R, W] by which the first layer's experts read its input."""
        weight: Tensor = self.down[0].transpose(1, 2).flatten(0, 1)
        return weight


def _stack_xavier(num: int, rows: int, columns: int) -> nn.Parameter:
    stack = torch.empty(num, rows, columns)
    for matrix in stack:
        nn.init.xavier_normal_(matrix)
    return nn.Parameter(stack)
