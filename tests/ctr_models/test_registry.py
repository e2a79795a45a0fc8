"""Names, hyper-parameters and inputs that are wrong: the message says what and how to mend it."""

import re
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from embank.ctr_models import MODELS, Inputs, build_config, build_network
from embank.ctr_models.layers.fields import FieldAlignment
from embank.tables.errors import ConfigError

INPUTS = Inputs(names=("user", "item"), dims=(4, 4), num_dense=1)
CONTRACT = {"lr", "fm", "wdl", "fnn", "ipnn", "deepfm", "dcn", "dcn_v2", "dlrm", "xdeepfm", "autoint", "finalmlp"}


def test_the_contract_names_are_there() -> None:
    assert set(MODELS) >= CONTRACT


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("deepfn", {}, "model.name 'deepfn' is unknown. Did you mean 'deepfm'?"),
        ("zzz", {}, "model.name 'zzz' is unknown. There are: lr, fm,"),
        (
            "deepfm",
            {"hiden_units": [4]},
            "model.hiden_units is not a hyper-parameter of 'deepfm'. Did you mean 'hidden_units'?",
        ),
        ("lr", {"dropout": 0.1}, "model.dropout is not a hyper-parameter of 'lr'. It has none."),
        ("deepfm", {"hidden_units": ["x"]}, "model.hidden_units.0 is 'x':"),
        ("deepfm", {"hidden_units": [4, 0]}, "model.hidden_units holds 0. Use values of at least 1."),
        ("deepfm", {"dropout": 1.0}, "model.dropout is 1.0. Use a rate of at least 0 and below 1."),
        ("deepfm", {"activation": "rleu"}, "model.activation is 'rleu':"),
        ("dcn_v2", {"structure": "paralel"}, "model.structure is 'paralel':"),
        ("dcn_v2", {"num_experts": 2}, "model.num_experts is 2, but experts are low-rank. Set model.low_rank"),
        ("dcn_v2", {"hidden_units": []}, "model.hidden_units is empty. Name layers or use structure cross_only."),
        ("autoint", {"attention_dim": 7}, "model.attention_dim is 7, which 2 heads do not divide. Use 8."),
        (
            "finalmlp",
            {"num_heads": 3},
            "model.hidden_units_1 ends with 400, which model.num_heads 3 does not divide. Use 399.",
        ),
        ("finalmlp", {"gate_context_1": ["usr"]}, "and 'usr' is none. Did you mean 'user'?"),
        ("xdeepfm", {"cin_units": []}, "model.cin_units is empty."),
    ],
)
def test_wrong_configs_are_refused(name: str, hyper: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_network(name, inputs=INPUTS, **hyper)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"names": ("a", "b"), "dims": (4,), "num_dense": 0}, "2 fields but 1 dims"),
        ({"names": ("a", "a"), "dims": (4, 4), "num_dense": 0}, "field 'a' appears twice"),
        ({"names": ("a",), "dims": (0,), "num_dense": 0}, "field 'a' has dim 0"),
        ({"names": ("a",), "dims": (4,), "num_dense": -1}, "num_dense is -1"),
        ({"names": (), "dims": (), "num_dense": 0}, "there is no input"),
    ],
)
def test_wrong_inputs_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Inputs(**values)


@pytest.mark.parametrize("name", list(MODELS))
def test_a_config_validates_from_plain_values(name: str) -> None:
    config = build_config(name, {})
    assert config == MODELS[name].Config()
    with pytest.raises(AttributeError):
        config.anything = 1
    with pytest.raises(ValidationError, match="extra_unknown"):
        TypeAdapter(MODELS[name].Config).validate_python({"extra_unknown": 1})


def test_lists_become_tuples() -> None:
    assert build_config("dlrm", {"bottom": [8, 4]}).bottom == (8, 4)


def test_alignment_projects_narrow_fields_and_keeps_wide_ones() -> None:
    torch.manual_seed(0)
    alignment = FieldAlignment((2, 4, 3, 2))
    embeddings = torch.randn(5, 11)
    fields = alignment(embeddings)
    narrow = alignment.weights["2"]
    torch.testing.assert_close(fields[:, 0], embeddings[:, 0:2] @ narrow[0])
    torch.testing.assert_close(fields[:, 1], embeddings[:, 2:6], rtol=0, atol=0)
    torch.testing.assert_close(fields[:, 2], embeddings[:, 6:9] @ alignment.weights["3"][0])
    torch.testing.assert_close(fields[:, 3], embeddings[:, 9:11] @ narrow[1])


def test_alignment_pads_narrow_fields_and_adds_no_parameter() -> None:
    alignment = FieldAlignment((2, 3, 1), padded_dim=4)
    embeddings = torch.randn(5, 6)
    fields = alignment(embeddings)
    assert fields.shape == (5, 3, 4)
    assert not list(alignment.parameters())
    expected = [torch.nn.functional.pad(part, (0, 4 - part.shape[1])) for part in embeddings.split([2, 3, 1], dim=1)]
    torch.testing.assert_close(fields, torch.stack(expected, dim=1), rtol=0, atol=0)
    assert alignment.flat(fields, embeddings) is embeddings


def test_padding_below_the_widest_field_is_refused() -> None:
    with pytest.raises(ConfigError, match="padded_dim is 3, but a field has dim 4"):
        Inputs(names=("a", "b"), dims=(4, 2), num_dense=0, padded_dim=3)


def test_alignment_of_equal_dims_is_a_view() -> None:
    alignment = FieldAlignment((4, 4))
    embeddings = torch.randn(5, 8)
    assert not list(alignment.parameters())
    assert alignment(embeddings).data_ptr() == embeddings.data_ptr()
