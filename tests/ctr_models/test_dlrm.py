"""DLRM against TorchRec's, and its interaction against the obvious one."""

import pytest
import torch
from torch import Tensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models import dlrm as torchrec_dlrm

from embank.ctr_models import Inputs, build_model, build_network
from embank.ctr_models.layers.pairs import PairProducts
from embank.tables.errors import ConfigError

NAMES = ("a", "b", "c", "d")


def copy_linears(source: torch.nn.Module, target: torch.nn.Module) -> list[tuple[torch.nn.Linear, torch.nn.Linear]]:
    pairs = [[module for module in root.modules() if isinstance(module, torch.nn.Linear)] for root in (source, target)]
    linears = list(zip(*pairs, strict=True))
    for ours, theirs in linears:
        theirs.load_state_dict(ours.state_dict())
    return linears


# A top network of 8 + 10 columns runs as it is; one of 8 + 66 goes through the padded product.
@pytest.mark.parametrize("num_fields", [4, 11])
def test_values_and_gradients_equal_torchrec(num_fields: int) -> None:
    names = tuple(f"c{i}" for i in range(num_fields))
    torch.manual_seed(0)
    tables, tables_again = (
        EmbeddingBagCollection(
            tables=[EmbeddingBagConfig(name=n, num_embeddings=9, embedding_dim=8, feature_names=[n]) for n in names]
        )
        for _ in range(2)
    )
    tables_again.load_state_dict(tables.state_dict())
    inputs = Inputs(names=names, dims=(8,) * num_fields, num_dense=5)
    ours = build_model("dlrm", tables=tables, inputs=inputs, bottom=[16, 12], top=[20, 10])
    theirs = torchrec_dlrm.DLRM(tables_again, 5, dense_arch_layer_sizes=[16, 12, 8], over_arch_layer_sizes=[20, 10, 1])
    linears = copy_linears(ours.network, theirs)
    dense = torch.randn(32, 5)
    lengths = torch.ones(num_fields * 32, dtype=torch.int32)
    sparse = KeyedJaggedTensor(keys=list(names), values=torch.randint(0, 9, (num_fields * 32,)), lengths=lengths)
    expected = theirs(dense, sparse).squeeze(1)
    logits = ours(dense, sparse)
    torch.testing.assert_close(logits, expected)
    weights = torch.randn(32)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in linears:
        torch.testing.assert_close(mine.weight.grad, other.weight.grad)
        torch.testing.assert_close(mine.bias.grad, other.bias.grad)
    for mine, other in zip(tables.parameters(), tables_again.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def obvious_pairs(fields_BFD: Tensor) -> Tensor:
    num_fields = fields_BFD.shape[1]
    products = [
        (fields_BFD[:, i] * fields_BFD[:, j]).sum(1) for i in range(num_fields) for j in range(i + 1, num_fields)
    ]
    return torch.stack(products, 1) if products else fields_BFD.new_zeros(fields_BFD.shape[0], 0)


@pytest.mark.parametrize("num_fields", [1, 2, 3, 27])
@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_pairs_equal_the_obvious_loop(num_fields: int, num_rows: int) -> None:
    fields_BFD = torch.randn(num_rows, num_fields, 4, requires_grad=True)
    again = fields_BFD.detach().clone().requires_grad_()
    pairs = PairProducts(num_fields)
    products, expected = pairs(fields_BFD), obvious_pairs(again)
    assert products.shape == (num_rows, pairs.num_pairs)
    torch.testing.assert_close(products, expected)
    weights = torch.randn_like(products)
    (products * weights).sum().backward()
    if pairs.num_pairs:
        (expected * weights).sum().backward()
        torch.testing.assert_close(fields_BFD.grad, again.grad)


def test_pairs_pass_gradcheck() -> None:
    fields_BFD = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PairProducts(5), (fields_BFD,))


def test_without_numeric_inputs_only_the_embeddings_interact() -> None:
    inputs = Inputs(names=NAMES, dims=(8,) * 4, num_dense=0)
    network = build_network("dlrm", inputs=inputs, top=[7])
    embeddings = torch.randn(6, 32)
    expected = network.top(obvious_pairs(embeddings.view(6, 4, 8))).squeeze(1)
    torch.testing.assert_close(network(torch.empty(6, 0), embeddings, torch.empty(6, 0)), expected)


def test_cat_interaction_puts_the_fields_side_by_side() -> None:
    inputs = Inputs(names=NAMES, dims=(8,) * 4, num_dense=3)
    network = build_network("dlrm", inputs=inputs, interaction="cat")
    dense, embeddings = torch.randn(6, 3), torch.randn(6, 32)
    expected = network.top(torch.cat([network.bottom(dense), embeddings], 1)).squeeze(1)
    torch.testing.assert_close(network(dense, embeddings, torch.empty(6, 0)), expected)


def test_a_single_input_has_no_pair() -> None:
    inputs = Inputs(names=("a",), dims=(8,), num_dense=0)
    with pytest.raises(ConfigError, match=r"'a' is the only input\. Add a feature or set model\.interaction to cat"):
        build_network("dlrm", inputs=inputs)


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = build_network("dlrm", inputs=Inputs(names=NAMES, dims=(8,) * 4, num_dense=3), bottom=[16], top=[16])
    batch = torch.randn(16, 3), torch.randn(16, 32), torch.empty(16, 0)
    expected = network(*batch)
    expected.sum().backward()
    grads = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    compiled = torch.compile(network, fullgraph=True, dynamic=False)(*batch)
    torch.testing.assert_close(compiled, expected)
    compiled.sum().backward()
    for parameter, grad in zip(network.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
