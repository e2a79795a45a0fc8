"""A network for narrow fields, cut out of one for wide fields: equal wherever the columns that went are zero."""

import pytest
import torch

from embank.ctr_models import MODELS, Inputs, Network, build_network, narrowed
from embank.tables.errors import ConfigError

WIDE = Inputs(names=("user", "item", "genres"), dims=(8, 8, 8), num_dense=2)
DIMS = (4, 8, 1)
KEPT = torch.tensor([0, 1, 2, 3, *range(8, 16), 16])


def make(name: str, **hyper: object) -> Network:
    torch.manual_seed(0)
    network = build_network(name, inputs=WIDE, **hyper)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("fnn", {"batch_norm": True}),
        ("fnn", {"embed_numeric": True}),
        ("wdl", {}),
        ("fm", {}),
        ("ipnn", {}),
        ("deepfm", {"batch_norm": True}),
        ("xdeepfm", {}),
        ("autoint", {"hidden_units": [8]}),
        ("dcn_v2", {}),
        ("dcn_v2", {"structure": "stacked", "low_rank": 3}),
        ("dcn_v2", {"low_rank": 3, "num_experts": 2}),
        ("dlrm", {}),
        ("dlrm", {"interaction": "cat"}),
        ("finalmlp", {}),
    ],
)
def test_equals_the_wide_network_on_zero_columns(name: str, hyper: dict[str, object]) -> None:
    wide = make(name, **hyper)
    wide.train()
    for _ in range(3):  # running statistics of its own
        wide(torch.randn(16, 2), torch.randn(16, 24), torch.randn(16, 3))
    wide.eval()
    small = narrowed(wide, DIMS)
    dense, narrow, weights = torch.randn(20, 2), torch.randn(20, 13), torch.randn(20, 3)
    full = torch.zeros(20, 24).index_copy(1, KEPT, narrow)
    torch.testing.assert_close(small(dense, narrow, weights), wide(dense, full, weights), rtol=1e-4, atol=1e-4)
    assert not small.training
    num = [sum(p.numel() for p in network.parameters()) for network in (wide, small)]
    reads_columns = name in ("fnn", "wdl", "ipnn", "deepfm", "xdeepfm", "autoint", "dcn_v2", "finalmlp")
    assert num[1] < num[0] if reads_columns else num[1] <= num[0]


def test_every_model_is_cut_or_refused() -> None:
    refused = []
    for name, cls in MODELS.items():
        if not cls.embeddings:
            continue
        try:
            narrowed(make(name), DIMS)
        except ConfigError as error:
            assert "train it anew" in str(error)
            refused.append(name)
    assert refused == ["dcn"]  # its cross layers add a bias to every column


@pytest.mark.parametrize("dims", [(4, 8), (4, 9, 1)])
def test_wrong_dims_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="can't be cut to"):
        narrowed(make("fnn"), dims)
