"""The layers that networks name as readers of the embeddings really read them, with the weights that they give."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from embank.ctr_models import MODELS, Inputs, build_network

MIXED = Inputs(names=("user", "item", "genres", "hour"), dims=(8, 4, 8, 3), num_dense=3)
EQUAL = Inputs(names=("user", "item", "genres", "hour"), dims=(8, 8, 8, 8), num_dense=3)

CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("lr", {}, []),
    ("fm", {}, []),
    ("dlrm", {}, []),
    ("dlrm", {"interaction": "cat"}, ["top"]),
    ("fnn", {}, ["deep"]),
    ("fnn", {"embed_numeric": True}, ["deep"]),
    ("wdl", {}, ["deep"]),
    ("deepfm", {}, ["deep"]),
    ("ipnn", {}, ["deep"]),
    ("xdeepfm", {}, ["deep"]),
    ("xdeepfm", {"hidden_units": []}, []),
    ("autoint", {"hidden_units": [8]}, ["deep"]),
    ("autoint", {"hidden_units": []}, []),
    ("dcn", {}, ["cross", "deep"]),
    ("dcn", {"hidden_units": []}, ["cross"]),
    ("dcn_v2", {}, ["cross", "deep"]),
    ("dcn_v2", {"structure": "stacked"}, ["cross"]),
    ("dcn_v2", {"low_rank": 5}, ["cross", "deep"]),
    ("dcn_v2", {"low_rank": 5, "num_experts": 2}, ["cross", "deep"]),
    ("finalmlp", {}, ["stream 1", "stream 2"]),
    ("finalmlp", {"feature_gating": False}, ["stream 1", "stream 2"]),
    ("finalmlp", {"gate_context_1": ["user"]}, ["stream 2"]),
]


class Intermediates(TorchDispatchMode):
    """Keeps a copy of every tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.kept.append(out.clone())
        return out


def as_columns(value: Tensor, num_rows: int) -> Tensor:
    """[B, O] as it is, [K, B, R] of experts as [B, K R]."""
    if value.dim() == 3 and value.shape[1] == num_rows:
        value = value.transpose(0, 1).flatten(1)
    return value


def test_every_model_is_among_the_cases() -> None:
    assert {name for name, _, _ in CASES} == set(MODELS)


@pytest.mark.parametrize("inputs", [MIXED, EQUAL], ids=["mixed", "equal"])
@pytest.mark.parametrize(("name", "hyper", "expected"), CASES)
def test_a_value_of_the_forward_pass_moves_by_the_readers_weights(
    name: str, hyper: dict[str, Any], expected: list[str], inputs: Inputs
) -> None:
    """With embeddings x + d instead of x, some value between inputs and logits changes by W d."""
    torch.manual_seed(0)
    network = build_network(name, inputs=inputs, **hyper).double().eval()
    readers = network.readers()
    assert list(readers) == expected
    if name == "ipnn":  # its deep layer reads products as well, which are not what is looked at here
        with torch.no_grad():
            network.deep.first_weight[:, 4 * 8 + 3 * 8 :] = 0
    dense, first_order = torch.randn(5, 3).double(), torch.randn(5, 4).double()
    embeddings, moved = (torch.randn(5, inputs.width).double() for _ in range(2))
    values = []
    with torch.no_grad():
        for columns in (embeddings, moved):
            with Intermediates() as run:
                network(dense, columns, first_order)
            values.append([as_columns(value, 5) for value in run.kept])
    for reader, weight_OE in readers.items():
        assert weight_OE.shape[1] == inputs.width
        change = (moved - embeddings) @ weight_OE.T
        seen = [b - a for a, b in zip(*values, strict=True) if a.shape == change.shape]
        assert any(torch.allclose(c, change, rtol=1e-6, atol=1e-9) for c in seen), f"nothing reads like '{reader}'"
