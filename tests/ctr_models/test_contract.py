"""What every registered model must do; a new model enters by its registration."""

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from embank.ctr_models import MODELS, Inputs, Network, build_config, build_model, build_network
from embank.tables.errors import ConfigError

INPUTS = Inputs(names=("user", "item", "genres", "hour"), dims=(8, 8, 8, 8), num_dense=3)
MIXED = Inputs(names=("user", "item", "genres", "hour"), dims=(8, 4, 8, 3), num_dense=3)
PADDED = Inputs(names=("user", "item", "genres", "hour"), dims=(6, 4, 6, 3), num_dense=3, padded_dim=8)
NO_DENSE = Inputs(names=("user", "item", "genres", "hour"), dims=(8, 8, 8, 8), num_dense=0)
ONE_FIELD = Inputs(names=("user",), dims=(8,), num_dense=0)
ONE_FIELD_AND_DENSE = Inputs(names=("user",), dims=(8,), num_dense=2)
ONLY_DENSE = Inputs(names=(), dims=(), num_dense=3)

Batch = tuple[Tensor, Tensor, Tensor]
every_model = pytest.mark.parametrize("name", list(MODELS))


def make_batch(inputs: Inputs, num_rows: int, *, first_order: bool = True) -> Batch:
    """Random dense, embedding and first-order columns that want gradients."""
    widths = (inputs.num_dense, inputs.width, inputs.num_fields if first_order else 0)
    dense, embeddings, weights = (torch.randn(num_rows, width).requires_grad_() for width in widths)
    return dense, embeddings, weights


def make_network(name: str, inputs: Inputs, **hyper: object) -> Network:
    torch.manual_seed(0)
    return build_network(name, inputs=inputs, **hyper)


def models_with(*keys: str) -> pytest.MarkDecorator:
    """Parametrise over the models that have one of these hyper-parameters."""
    names = [name for name, network in MODELS.items() if {f.name for f in fields(network.Config)} & set(keys)]
    return pytest.mark.parametrize("name", names)


def hyper_where_known(name: str, **values: object) -> dict[str, object]:
    """Those of the hyper-parameters that the model has."""
    known = {field.name for field in fields(MODELS[name].Config)}
    return {key: value for key, value in values.items() if key in known}


@every_model
@pytest.mark.parametrize("inputs", [INPUTS, MIXED, PADDED, NO_DENSE, ONE_FIELD_AND_DENSE])
@pytest.mark.parametrize("num_rows", [0, 1, 33])
def test_one_finite_logit_per_row(name: str, inputs: Inputs, num_rows: int) -> None:
    network = make_network(name, inputs)
    logits = network(*make_batch(inputs, num_rows))
    assert logits.shape == (num_rows,)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    logits.sum().backward()


@every_model
@pytest.mark.parametrize("inputs", [INPUTS, MIXED, PADDED, NO_DENSE])
def test_gradient_reaches_every_parameter_and_input(name: str, inputs: Inputs) -> None:
    network = make_network(name, inputs)
    dense, embeddings, weights = make_batch(inputs, 64)
    (network(dense, embeddings, weights) * torch.randn(64)).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name}: no gradient for {key}"
        assert parameter.grad.any(), f"{name}: the gradient of {key} is zero"
    read = {"dense": (dense, inputs.num_dense > 0), "embeddings": (embeddings, network.embeddings)}
    read["first_order"] = (weights, network.first_order)
    for key, (tensor, expected) in read.items():
        assert (tensor.grad is not None and bool(tensor.grad.any())) == expected, f"{name}: gradient for {key}"


@every_model
def test_rows_are_independent(name: str) -> None:
    network = make_network(name, MIXED).eval()
    batch = make_batch(MIXED, 16)
    order = torch.randperm(16)
    whole = network(*batch)
    torch.testing.assert_close(network(*(t[order] for t in batch)), whole[order])
    torch.testing.assert_close(torch.cat([network(*(t[i : i + 1] for t in batch)) for i in range(16)]), whole)


@every_model
@pytest.mark.parametrize("inputs", [ONE_FIELD, ONLY_DENSE])
def test_scarce_inputs_work_or_are_refused_with_a_cure(name: str, inputs: Inputs) -> None:
    try:
        network = make_network(name, inputs)
    except ConfigError as error:
        message = str(error)
    else:
        message = None
    if message is not None:
        assert f"model '{name}'" in message
        assert "Add a" in message
        return
    logits = network(*make_batch(inputs, 5))
    assert logits.shape == (5,)
    assert logits.unique().numel() == 5, "the logits do not depend on the only input"


@every_model
def test_works_without_first_order_columns(name: str) -> None:
    batch = make_batch(INPUTS, 7, first_order=False)
    assert make_network(name, INPUTS)(*batch).isfinite().all()


@every_model
def test_same_seed_same_network(name: str) -> None:
    first, second = make_network(name, MIXED), make_network(name, MIXED)
    for key, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[key], rtol=0, atol=0)


@models_with("dropout", "dropout_1")
def test_dropout_acts_in_training_only(name: str) -> None:
    hyper = hyper_where_known(name, dropout=0.5, dropout_1=0.5, hidden_units=[32, 16])
    network, batch = make_network(name, INPUTS, **hyper), make_batch(INPUTS, 32)
    assert not torch.equal(network(*batch), network(*batch))
    network.eval()
    assert torch.equal(network(*batch), network(*batch))


@models_with("batch_norm")
@pytest.mark.parametrize("num_rows", [1, 32])
def test_batch_norm_trains_on_a_batch_of_any_size(name: str, num_rows: int) -> None:
    hyper = hyper_where_known(name, batch_norm=True, hidden_units=[32, 16])
    network = make_network(name, INPUTS, **hyper)
    assert any(isinstance(module, torch.nn.BatchNorm1d) for module in network.modules())
    logits = network(*make_batch(INPUTS, num_rows))
    assert logits.isfinite().all()


@models_with("embed_numeric")
def test_numeric_inputs_can_be_embedded(name: str) -> None:
    network = make_network(name, INPUTS, embed_numeric=True)
    assert network.flat.width == 8 * (4 + 3)
    assert network(*make_batch(INPUTS, 9)).shape == (9,)


@every_model
def test_bf16_autocast_is_close(name: str) -> None:
    network, batch = make_network(name, MIXED), make_batch(MIXED, 64)
    network(*batch).sum().backward()
    expected = {key: parameter.grad.clone() for key, parameter in network.named_parameters()}
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(*batch)
    torch.testing.assert_close(logits.float(), network(*batch), rtol=0.1, atol=0.1)
    logits.float().sum().backward()
    for key, parameter in network.named_parameters():
        error = (parameter.grad - expected[key]).norm() / expected[key].norm().clamp_min(1e-3)
        # A gradient through three ReLU layers may differ where bf16 turns the sign of an activation; a wrong one
        # differs by 1.
        assert error < 0.3, f"{name}: gradient of {key} is off by {error:.3f}"


@pytest.mark.slow
@every_model
def test_traces_as_one_graph_with_equal_gradients(name: str) -> None:
    torch._dynamo.reset()
    network, batch = make_network(name, MIXED), make_batch(MIXED, 16)
    expected = network(*batch)
    expected.sum().backward()
    grads = {key: parameter.grad.clone() for key, parameter in network.named_parameters()}
    network.zero_grad()
    traced = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)(*batch)
    torch.testing.assert_close(traced, expected)
    traced.sum().backward()
    for key, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[key], msg=lambda text, key=key: f"{key}: {text}")


@every_model
def test_model_over_a_collection_equals_the_network_on_its_columns(name: str) -> None:
    network_class = MODELS[name]
    dims = MIXED.dims if network_class.embeddings else ()
    rows = 11
    configs = [
        EmbeddingBagConfig(name=f"t_{key}", num_embeddings=rows, embedding_dim=dim, feature_names=[key])
        for key, dim in zip(MIXED.names, dims, strict=False)
    ]
    if network_class.first_order:
        configs += [
            EmbeddingBagConfig(name=f"w_{key}", num_embeddings=rows, embedding_dim=1, feature_names=[key])
            for key in MIXED.names
        ]
    torch.manual_seed(0)
    tables = EmbeddingBagCollection(tables=configs)
    model = build_model(name, tables=tables, inputs=MIXED)
    lengths = torch.randint(0, 3, (4 * 6,), dtype=torch.int32)
    sparse = KeyedJaggedTensor(
        keys=list(MIXED.names), values=torch.randint(0, rows, (int(lengths.sum()),)), lengths=lengths
    )
    dense = torch.randn(6, 3)
    values = tables(sparse).values()
    width = sum(dims)
    torch.testing.assert_close(model(dense, sparse), model.network(dense, values[:, :width], values[:, width:]))
    model(dense, sparse).sum().backward()
    assert all(weight.grad is not None for weight in tables.parameters())


def test_tables_of_another_width_are_refused() -> None:
    tables = EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(name="t", num_embeddings=5, embedding_dim=6, feature_names=["user"])]
    )
    model = build_model("deepfm", tables=tables, inputs=ONE_FIELD)
    sparse = KeyedJaggedTensor(keys=["user"], values=torch.tensor([1]), lengths=torch.tensor([1]))
    with pytest.raises(ConfigError, match="return 6 columns, but DeepFM reads 8 of embeddings and 1 of first-order"):
        model(torch.randn(1, 0), sparse)


@every_model
def test_defaults_are_valid_configs(name: str) -> None:
    config = build_config(name, {})
    assert config == MODELS[name].Config()
    with pytest.raises(AttributeError):
        config.anything = 1


@models_with("hidden_units", "bottom", "hidden_units_1")
def test_hidden_layers_have_the_sizes_asked_for(name: str) -> None:
    hyper = hyper_where_known(name, hidden_units=[9, 5], bottom=[9, 5], hidden_units_1=[9, 5])
    network = make_network(name, INPUTS, **hyper)
    linears = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    sizes = [(m.in_features, m.out_features) for m in linears]
    assert any(a[1] == 9 and b == (9, 5) for a, b in pairwise(sizes))
