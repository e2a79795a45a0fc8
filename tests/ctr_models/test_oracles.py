"""Every model's formula against a slow, obvious computation of it."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet, LowRankMixtureCrossNet, VectorCrossNet

from embank.ctr_models import Inputs, Network, build_network
from embank.ctr_models.layers.cin import CompressedInteraction
from embank.ctr_models.layers.cross import LowRankCross, MatrixCross, MixtureCross, VectorCross

INPUTS = Inputs(names=("user", "item", "genres"), dims=(4, 4, 4), num_dense=2)
MIXED = Inputs(names=("user", "item", "genres"), dims=(4, 2, 3), num_dense=2)


def make(name: str, inputs: Inputs = INPUTS, **hyper: object) -> tuple[Network, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    network = build_network(name, inputs=inputs, **hyper).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    widths = (inputs.num_dense, inputs.width, inputs.num_fields)
    dense, embeddings, weights = (torch.randn(5, width, dtype=torch.float64) for width in widths)
    return network, dense, embeddings, weights


def field_vectors(network: Network, dense: Tensor, embeddings: Tensor) -> list[Tensor]:
    """All fields as vectors of the common dim, one by one: projected embeddings, then x_i * v_i."""
    inputs, alignment = network.inputs, network.fields.alignment
    columns = torch.split(embeddings, list(inputs.dims), dim=1)
    seen: dict[int, int] = {}
    vectors = []
    for column, dim in zip(columns, inputs.dims, strict=True):
        if dim < inputs.common_dim:
            column = column @ alignment.weights[str(dim)][seen.setdefault(dim, 0)]
            seen[dim] += 1
        vectors.append(column)
    return vectors + [dense[:, i : i + 1] * network.fields.numeric.weight[i] for i in range(inputs.num_dense)]


def linear_part(network: Network, dense: Tensor, weights: Tensor) -> Tensor:
    return network.linear.bias + weights.sum(1) + (dense * network.linear.weight).sum(1)


def pair_sum(vectors: list[Tensor]) -> Tensor:
    num = len(vectors)
    return sum((vectors[i] * vectors[j]).sum(1) for i in range(num) for j in range(i + 1, num))


def run_mlp(mlp: torch.nn.Sequential, x: Tensor) -> Tensor:
    """Linear, ReLU, ..., Linear, written out."""
    linears = [module for module in mlp if isinstance(module, torch.nn.Linear)]
    has_output = isinstance(list(mlp)[-1], torch.nn.Linear)
    for i, linear in enumerate(linears):
        x = x @ linear.weight.T + linear.bias
        x = x if has_output and i == len(linears) - 1 else x.clamp(min=0)
    return x


def test_lr() -> None:
    network, *batch = make("lr")
    torch.testing.assert_close(network(*batch), linear_part(network, batch[0], batch[2]))


@pytest.mark.parametrize("inputs", [INPUTS, MIXED])
def test_fm_is_the_double_sum(inputs: Inputs) -> None:
    network, dense, embeddings, weights = make("fm", inputs)
    expected = linear_part(network, dense, weights) + pair_sum(field_vectors(network, dense, embeddings))
    torch.testing.assert_close(network(dense, embeddings, weights), expected)


@pytest.mark.parametrize("inputs", [INPUTS, MIXED])
def test_deepfm_is_fm_plus_deep(inputs: Inputs) -> None:
    network, dense, embeddings, weights = make("deepfm", inputs, hidden_units=[6, 5])
    vectors = field_vectors(network, dense, embeddings)
    expected = linear_part(network, dense, weights) + pair_sum(vectors)
    expected = expected + run_mlp(network.deep, torch.cat(vectors, 1)).squeeze(1)
    torch.testing.assert_close(network(dense, embeddings, weights), expected)


def test_wdl_is_linear_plus_deep() -> None:
    network, dense, embeddings, weights = make("wdl", MIXED, hidden_units=[6])
    deep = run_mlp(network.deep, torch.cat([dense, embeddings], 1)).squeeze(1)
    torch.testing.assert_close(network(dense, embeddings, weights), linear_part(network, dense, weights) + deep)


def test_fnn_is_deep() -> None:
    network, dense, embeddings, weights = make("fnn", MIXED, hidden_units=[6])
    expected = run_mlp(network.deep, torch.cat([dense, embeddings], 1)).squeeze(1)
    torch.testing.assert_close(network(dense, embeddings, weights), expected)


@pytest.mark.parametrize("inputs", [INPUTS, MIXED])
def test_ipnn_has_all_inner_products(inputs: Inputs) -> None:
    network, dense, embeddings, weights = make("ipnn", inputs, hidden_units=[6])
    vectors = field_vectors(network, dense, embeddings)
    num = len(vectors)
    products = [(vectors[i] * vectors[j]).sum(1, keepdim=True) for i in range(num) for j in range(i + 1, num)]
    expected = run_mlp(network.deep, torch.cat(vectors + products, 1)).squeeze(1)
    torch.testing.assert_close(network(dense, embeddings, weights), expected)


def cross_v1(cross: VectorCross, x0: np.ndarray) -> np.ndarray:
    x = x0.copy()
    for weight, bias in zip(cross.weights, cross.biases, strict=True):
        w, b = weight.detach().numpy()[:, 0], bias.detach().numpy()
        x = np.stack([x0[i] * float(x[i] @ w) + b + x[i] for i in range(len(x0))])
    return x


def cross_v2(cross: MatrixCross, x0: np.ndarray) -> np.ndarray:
    x = x0.copy()
    for layer in cross.layers:
        w, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        x = np.stack([x0[i] * (w @ x[i] + b) + x[i] for i in range(len(x0))])
    return x


def test_dcn_is_cross_beside_deep() -> None:
    network, dense, embeddings, weights = make("dcn", MIXED, hidden_units=[6], num_cross_layers=4)
    flat = torch.cat([dense, embeddings], 1)
    crossed = torch.from_numpy(cross_v1(network.cross, flat.numpy()))
    both = torch.cat([crossed, run_mlp(network.deep, flat)], 1)
    expected = (both @ network.out.weight.T + network.out.bias).squeeze(1)
    torch.testing.assert_close(network(dense, embeddings, weights), expected)


@pytest.mark.parametrize("structure", ["parallel", "stacked", "stacked_parallel", "cross_only"])
def test_dcn_v2_structures(structure: str) -> None:
    network, dense, embeddings, weights = make("dcn_v2", MIXED, structure=structure, hidden_units=[6])
    flat = torch.cat([dense, embeddings], 1)
    out = torch.from_numpy(cross_v2(network.cross, flat.numpy()))
    if structure.startswith("stacked"):
        out = run_mlp(network.above, out)
    if structure.endswith("parallel"):
        out = torch.cat([out, run_mlp(network.beside, flat)], 1)
    expected = (out @ network.out.weight.T + network.out.bias).squeeze(1)
    torch.testing.assert_close(network(dense, embeddings, weights), expected)


# Width 70 goes through the padded product.
@pytest.mark.parametrize("width", [5, 70])
def test_cross_layers_equal_torchrec(width: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, width) * 0.3
    vector, their_vector = VectorCross(width, 3), VectorCrossNet(width, 3)
    matrix, their_matrix = MatrixCross(width, 3), CrossNet(width, 3)
    with torch.no_grad():
        for i in range(3):
            vector.biases[i].normal_()
            their_vector.kernels[i].copy_(vector.weights[i])
            their_vector.bias[i].copy_(vector.biases[i][:, None])
            their_matrix.kernels[i].copy_(matrix.layers[i].weight)
            their_matrix.bias[i].copy_(matrix.layers[i].bias[:, None])
    torch.testing.assert_close(vector(x), their_vector(x))
    torch.testing.assert_close(matrix(x), their_matrix(x))


def test_low_rank_cross_equals_torchrec() -> None:
    """With its names of parameters and its initial values: what was saved loads, what was seeded stays."""
    torch.manual_seed(0)
    theirs = LowRankCrossNet(7, 3, low_rank=2)
    torch.manual_seed(0)
    ours = LowRankCross(7, 3, rank=2)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    torch.nn.init.normal_(ours.bias[1])
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(6, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_mixture_cross_equals_torchrec() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 7)
    ours = MixtureCross(7, 3, rank=2, num_experts=4)
    theirs = LowRankMixtureCrossNet(7, 3, num_experts=4, low_rank=2, activation=torch.tanh)
    with torch.no_grad():
        for i in range(3):
            ours.biases[i].normal_()
            theirs.bias[i].copy_(ours.biases[i][:, None])
            theirs.V_kernels[i].copy_(ours.down[i].transpose(1, 2))
            theirs.C_kernels[i].copy_(ours.middle[i].transpose(1, 2))
            theirs.U_kernels[i].copy_(ours.up[i].transpose(1, 2))
        for k in range(4):
            theirs.gates[k].weight.copy_(ours.gate.weight[k : k + 1])
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("hyper", [{"low_rank": 3}, {"low_rank": 2, "num_experts": 3}])
def test_dcn_v2_low_rank_trains(hyper: dict[str, int]) -> None:
    network, *batch = make("dcn_v2", **hyper)
    network(*batch).sum().backward()
    assert all(parameter.grad.any() for parameter in network.cross.parameters())


# Layers that shrink and layers that grow take different orders of computation.
@pytest.mark.parametrize("units", [(2, 2), (7, 3, 6)])
def test_cin_is_its_definition(units: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    cin = CompressedInteraction(5, units).double()
    base = torch.randn(3, 5, 4, dtype=torch.float64)
    maps, pooled = base, []
    for weight in cin.weights:
        layers = []
        for h in range(weight.shape[0]):
            total = torch.zeros(3, 4, dtype=torch.float64)
            for i in range(5):
                for j in range(maps.shape[1]):
                    total = total + weight[h, i, j] * base[:, i] * maps[:, j]
            layers.append(total)
        maps = torch.stack(layers, 1)
        pooled.append(maps.sum(2))
    torch.testing.assert_close(cin(base), torch.cat(pooled, 1))


def test_xdeepfm_is_linear_plus_cin_plus_deep() -> None:
    network, dense, embeddings, weights = make("xdeepfm", MIXED, cin_units=[3, 2], hidden_units=[6])
    vectors = field_vectors(network, dense, embeddings)
    cin = network.interaction(torch.stack(vectors, 1)) @ network.interaction_out.weight.T
    expected = linear_part(network, dense, weights) + cin.squeeze(1)
    expected = expected + run_mlp(network.deep, torch.cat(vectors, 1)).squeeze(1)
    torch.testing.assert_close(network(dense, embeddings, weights), expected)


@pytest.mark.parametrize("hyper", [{}, {"residual": False}, {"scale": True}, {"hidden_units": [6]}])
def test_autoint_is_attention_by_hand(hyper: dict[str, object]) -> None:
    network, dense, embeddings, weights = make("autoint", MIXED, num_layers=2, num_heads=2, attention_dim=6, **hyper)
    vectors = field_vectors(network, dense, embeddings)
    fields = torch.stack(vectors, 1)
    for layer in network.layers:
        query, key, value, *residual = (fields @ w.T for w in layer.weight.split(6))
        heads = []
        for h in (slice(0, 3), slice(3, 6)):
            scores = torch.einsum("bfe,bge->bfg", query[..., h], key[..., h]) / (3**0.5 if hyper.get("scale") else 1.0)
            heads.append(torch.einsum("bfg,bge->bfe", scores.exp() / scores.exp().sum(2, keepdim=True), value[..., h]))
        fields = (torch.cat(heads, 2) + (residual[0] if residual else 0.0)).clamp(min=0)
    expected = (fields.flatten(1) @ network.out.weight.T + network.out.bias).squeeze(1)
    if "hidden_units" in hyper:
        expected = expected + run_mlp(network.deep, torch.cat(vectors, 1)).squeeze(1)
    torch.testing.assert_close(network(dense, embeddings, weights), expected)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_finalmlp_is_gated_streams_and_a_bilinear_form(num_heads: int) -> None:
    hyper = {"hidden_units_1": [6, 4], "hidden_units_2": [8], "num_heads": num_heads, "gate_hidden_units": [3]}
    network, dense, embeddings, weights = make("finalmlp", MIXED, gate_context_1=["item", "user"], **hyper)
    flat = torch.cat([dense, embeddings], 1)
    context = torch.cat([embeddings[:, 4:6], embeddings[:, 0:4]], 1)
    gate_1, gate_2 = network.gates
    x = run_mlp(network.stream_1, flat * 2 * torch.sigmoid(run_mlp(gate_1.gate, context)))
    y = run_mlp(network.stream_2, flat * 2 * torch.sigmoid(run_mlp(gate_2.gate, gate_2.constant)))
    fusion = network.fusion
    expected = (x @ fusion.x_linear.weight.T + fusion.x_linear.bias + y @ fusion.y_linear.weight.T).squeeze(1)
    for h, (x_head, y_head) in enumerate(zip(x.chunk(num_heads, 1), y.chunk(num_heads, 1), strict=True)):
        expected = expected + torch.einsum("bx,xy,by->b", x_head, fusion.weight[h], y_head)
    torch.testing.assert_close(network(dense, embeddings, weights), expected)


def test_finalmlp_without_gating_reads_the_inputs_as_they_are() -> None:
    network, dense, embeddings, weights = make("finalmlp", feature_gating=False, hidden_units_1=[4], hidden_units_2=[4])
    flat = torch.cat([dense, embeddings], 1)
    expected = network.fusion(run_mlp(network.stream_1, flat), run_mlp(network.stream_2, flat))
    torch.testing.assert_close(network(dense, embeddings, weights), expected)
