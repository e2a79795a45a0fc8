"""Overlap of readers: known values for hand-made blocks, and the blocks of real networks."""

import math

import pytest
import torch
from torch import Tensor

from embank.compression.methods.unified import UnifiedConfig
from embank.compression.multiplexing.specs import unified_specs
from embank.ctr_models import Inputs, build_network
from embank.pipelines.diagnosis.overlap import effective_rank, overlap_of, overlaps, readers_of
from embank.tables import TableCollection, TableSpec

I4 = torch.eye(4, dtype=torch.float64)


def random(rows: int, columns: int, *, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size: int, *, seed: int) -> Tensor:
    return torch.linalg.qr(random(size, size, seed=seed)).Q


@pytest.mark.parametrize("degrees", [0, 20, 45, 90])
def test_readers_of_one_output_overlap_by_the_cosine_of_their_angle(degrees: int) -> None:
    angle = math.radians(degrees)
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[-3 * math.cos(angle), 3 * math.sin(angle)]])
    assert overlap_of(first.double(), second.double()) == pytest.approx(math.cos(angle), abs=1e-7)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (I4[:2], I4[2:], 0.0),
        (I4[:2], I4[:2], 1.0),
        (I4[:2], I4[1:3], 0.5**0.5),  # A A^T = B B^T = I of size 2, A B^T has one 1
        (I4[:1], I4, 0.5**0.5),  # one direction of four: the norms are 1, 1 and 2
        (I4, rotation(4, seed=1), 1.0),  # both use the whole width
        (I4[:3], torch.zeros(2, 4, dtype=torch.float64), 0.0),
    ],
)
def test_hand_made_blocks(first: Tensor, second: Tensor, expected: float) -> None:
    assert overlap_of(first, second) == pytest.approx(expected, abs=1e-7)
    assert overlap_of(second, first) == pytest.approx(expected, abs=1e-7)


def test_it_is_the_ratio_of_frobenius_norms_and_blind_to_scale_outputs_and_rotations() -> None:
    a, b = random(7, 5), random(3, 5, seed=1)
    ratio = (a @ b.T).norm() / ((a @ a.T).norm() * (b @ b.T).norm()).sqrt()
    assert overlap_of(a, b) == pytest.approx(float(ratio))
    turned = rotation(5, seed=2)
    mixed = rotation(7, seed=3)
    assert overlap_of(9 * mixed @ a @ turned, -0.1 * b @ turned) == pytest.approx(float(ratio))
    assert 0 < ratio < 1
    assert overlap_of(a, a) == pytest.approx(1)


def test_effective_rank() -> None:
    assert effective_rank(I4[:3]) == pytest.approx(3)
    assert effective_rank(5 * rotation(6, seed=0)) == pytest.approx(6)
    assert effective_rank(torch.ones(4, 3)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(4, 3)) == 0
    shares = (0.75, 0.25)
    entropy = -sum(share * math.log(share) for share in shares)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(entropy), rel=1e-6)


def test_a_lookups_reader_is_what_its_row_is_multiplied_by() -> None:
    """For rows r_j of the lookups, the layer's output W combine(r) is the sum of A_j r_j."""
    for lookups, dim in ((2, 8), (3, 6)):  # side by side, and through a projection
        specs = unified_specs(
            rows=30, width=4, lookups={"user": lookups}, num_embeddings={"user": 200}, embedding_dim=dim
        )
        (method,) = TableCollection(specs).built_methods()
        weight = torch.randn(5, dim, generator=torch.Generator().manual_seed(0))
        readers = readers_of(method, weight)
        assert [reader.lookup for reader in readers] == list(range(lookups))
        rows = [torch.randn(9, 4, generator=torch.Generator().manual_seed(j)) for j in range(lookups)]
        expected = method.combine(tuple(rows), None).detach() @ weight.T
        parts = [row @ reader.weight.T for row, reader in zip(rows, readers, strict=True)]
        torch.testing.assert_close(torch.stack(parts).sum(0), expected, rtol=1e-5, atol=1e-6)


def tables_of(names: tuple[str, ...], dim: int, **options: object) -> TableCollection:
    return TableCollection(
        [
            TableSpec(
                name=name,
                num_embeddings=500,
                embedding_dim=dim,
                feature_names=[name],
                method="unified",
                options=UnifiedConfig(**options),  # type: ignore[arg-type]
            )
            for name in names
        ]
    )


def test_features_of_a_shared_table_in_a_network_with_chosen_weights() -> None:
    """Columns of the deep layer are set so that 'a' and 'b' are orthogonal and 'c' reads like 'a'; numeric inputs stand
    before them."""
    names = ("a", "b", "c")
    network = build_network("dcn_v2", inputs=Inputs(names=names, dims=(4, 4, 4), num_dense=2), hidden_units=[4])
    with torch.no_grad():
        weight = network.beside.first_weight
        weight.zero_()
        weight[:2, 2:6] = torch.eye(4)[:2]
        weight[:2, 6:10] = torch.eye(4)[2:]
        weight[:2, 10:14] = 3 * torch.eye(4)[:2]
    found = {overlap.layer: overlap for overlap in overlaps(network, tables_of(names, 4, rows=50, width=4))}
    assert list(found) == ["cross", "deep"]
    deep = found["deep"]
    assert (deep.table, deep.width, list(deep.features)) == ("unified/shared/4", 4, list(names))
    expected = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(deep.matrix, expected)
    assert deep.mean == pytest.approx(1 / 3)
    assert deep.rank_sum == pytest.approx(6)
    assert found["cross"].rank_sum > 4


def test_lookups_of_a_feature_are_one_feature_with_a_rank_each() -> None:
    network = build_network("fnn", inputs=Inputs(names=("a", "b"), dims=(4, 4), num_dense=0), hidden_units=[4])
    with torch.no_grad():
        weight = network.deep.first_weight
        weight.zero_()
        weight[0, 0] = weight[1, 2] = 1  # a's two lookups read column 0 of their rows
        weight[2, 5] = weight[3, 7] = 1  # b's read column 1
    (found,) = overlaps(network, tables_of(("a", "b"), 4, rows=50, width=2))
    torch.testing.assert_close(found.matrix, torch.eye(2, dtype=torch.float64))
    assert {name: [round(rank) for rank in ranks] for name, ranks in found.ranks.items()} == {"a": [1, 1], "b": [1, 1]}


def test_tables_that_are_not_shared_are_compared_by_width() -> None:
    network = build_network("fnn", inputs=Inputs(names=("a", "b", "c"), dims=(4, 4, 3), num_dense=0))
    specs = [
        TableSpec(name=name, num_embeddings=9, embedding_dim=dim, feature_names=[name])
        for name, dim in (("a", 4), ("b", 4), ("c", 3))
    ]
    (found,) = overlaps(network, TableCollection(specs))
    assert (found.table, found.width, list(found.features)) == (None, 4, ["a", "b"])


def test_products_of_fields_have_no_readers() -> None:
    network = build_network("dlrm", inputs=Inputs(names=("a", "b"), dims=(4, 4), num_dense=1))
    assert overlaps(network, tables_of(("a", "b"), 4, rows=50, width=4)) == []
