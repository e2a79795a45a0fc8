"""DPQ and MGQE against scipy, faiss where it is installed, brute force and autograd."""

import numpy as np
import pytest
import torch
from scipy.cluster.vq import vq
from torchrec import KeyedJaggedTensor

from embank.compression import build_table
from embank.compression.codecs.codes import decode, nearest
from embank.compression.methods.dpq import DpqConfig
from embank.compression.methods.mgqe import MgqeConfig
from embank.compression.parts.quantiser import CodeShape
from embank.tables import BudgetError, ConfigError, RowOptimizer, TableCollection, TableSpec, build_method, pack_table
from embank.tables.collections.stages import after_step


def spec(method: str = "mgqe", num: int = 400, dim: int = 8, **fields: object) -> TableSpec:
    return TableSpec(name="t", num_embeddings=num, embedding_dim=dim, feature_names=["t"], method=method, **fields)


def collection(method: str = "mgqe", **fields: object) -> TableCollection:
    return TableCollection(
        [spec(method, **fields)], backend="torch", optimizer=RowOptimizer(name="sgd", lr=1.0), seed=3
    )


def lookup(tables: TableCollection, ids: torch.Tensor) -> torch.Tensor:
    return tables(KeyedJaggedTensor(keys=["t"], values=ids, lengths=torch.ones(len(ids), dtype=torch.int32))).values()


def brute_force(rows: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """All distances, as written: [N, C]."""
    parts = rows.view(len(rows), len(centroids), 1, -1).double()
    return (parts - centroids.double()).square().sum(3).argmin(2)


@pytest.mark.parametrize(("num_codebooks", "num_codes", "width"), [(1, 1, 3), (4, 7, 2), (3, 256, 1), (2, 16, 1024)])
def test_codes_are_the_nearest_centroids(num_codebooks: int, num_codes: int, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    rows = 0.01 * torch.randn(500, num_codebooks * width, generator=generator)
    centroids = 0.01 * torch.randn(num_codebooks, num_codes, width, generator=generator)
    codes = nearest(rows, centroids)
    for c in range(num_codebooks):
        part = rows[:, c * width : (c + 1) * width].double().numpy()
        np.testing.assert_array_equal(codes[:, c].numpy(), vq(part, centroids[c].double().numpy())[0])
    if width < 10:
        assert torch.equal(codes, brute_force(rows, centroids))


def test_codes_and_decoded_rows_are_those_of_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    rows = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    quantizer = faiss.ProductQuantizer(8, 4, 8)
    quantizer.train(rows.numpy())
    centroids = torch.from_numpy(faiss.vector_to_array(quantizer.centroids).reshape(4, 256, 2).copy())
    theirs = quantizer.compute_codes(rows.numpy())
    ours = nearest(rows, centroids)
    np.testing.assert_array_equal(ours.numpy(), theirs)
    np.testing.assert_array_equal(decode(centroids, ours).numpy(), quantizer.decode(theirs))


def test_tail_ids_choose_among_the_first_codes_only() -> None:
    options = MgqeConfig(num_codebooks=4, num_codes=32, num_tail_codes=4, head_share=0.25)
    tables = collection(options=options)
    (method,) = tables.built_methods()
    rows, centroids = tables.weights()["t"], method.quantiser.centroids.detach()
    ids = torch.randperm(400)
    codes = method.quantiser.encode(rows[ids], method.side(ids))
    head, tail = ids < 100, ids >= 100
    assert torch.equal(codes[head], brute_force(rows[ids[head]], centroids))
    assert torch.equal(codes[tail], brute_force(rows[ids[tail]], centroids[:, :4]))
    assert codes[head].max() > 4
    assert codes[tail].max() == 3


@pytest.mark.parametrize("method", ["dpq", "mgqe"])
def test_gradients_pass_codes_unchanged_and_leave_centroids_alone(method: str) -> None:
    tables = collection(method)
    (built,) = tables.built_methods()
    before = tables.weights()["t"].clone()
    upstream = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    loss = (lookup(tables, torch.tensor([0, 7, 399])) * upstream).sum()
    assert tables.extra_loss() is not None  # taken here, so that the backward pass leaves it out
    loss.backward()
    tables.update_rows()
    torch.testing.assert_close(before[[0, 7, 399]] - tables.weights()["t"][[0, 7, 399]], upstream)
    assert built.quantiser.centroids.grad is None


def test_codebook_loss_moves_centroids_to_the_mean_of_their_rows_and_rows_nowhere() -> None:
    tables = collection("dpq", options=DpqConfig(num_codebooks=2, num_codes=4))
    (method,) = tables.built_methods()
    rows = tables.weights()["t"].clone()
    centroids = method.quantiser.centroids
    ids = torch.arange(300)
    lookup(tables, ids)
    tables.extra_loss().backward()
    codes = method.quantiser.encode(rows[ids], None)
    for c in range(2):
        for k in range(4):
            members = rows[ids][codes[:, c] == k][:, 4 * c : 4 * c + 4]
            expected = 2 * (centroids[c, k].detach() - members.mean(0)) if len(members) else torch.zeros(4)
            torch.testing.assert_close(centroids.grad[c, k], expected)
    tables.update_rows()
    assert torch.equal(tables.weights()["t"], rows)
    assert tables.extra_loss() is None, "a loss is handed out once"


@pytest.mark.parametrize("method", ["dpq", "mgqe"])
def test_training_evaluation_and_packed_form_give_the_same_rows(method: str) -> None:
    """Also after rows and centroids have moved: no code is stale, and ids never trained have one."""
    tables = collection(method, budget=0.2)
    (built,) = tables.built_methods()
    optimizer = torch.optim.SGD(tables.dense_parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        out = lookup(tables, torch.arange(0, 300))
        ((out - 1).square().mean() + tables.extra_loss()).backward()
        tables.update_rows()
        optimizer.step()
    ids = torch.arange(400)
    training = lookup(tables, ids).detach()
    evaluation = lookup(tables.eval(), ids).detach()
    packed = pack_table(built, tables.weights())
    assert torch.equal(training, evaluation)
    assert torch.equal(packed.lookup(ids), evaluation)
    assert packed.nbytes() == built.quantiser.shape.nbytes(400, 8)


@pytest.mark.parametrize("method", ["dpq", "mgqe"])
def test_a_batch_without_ids_has_a_loss_of_0_that_reaches_the_centroids(method: str) -> None:
    """Processes whose part of a batch is empty take part in the backward pass all the same."""
    tables = collection(method)
    (built,) = tables.built_methods()
    assert lookup(tables, torch.empty(0, dtype=torch.int64)).shape == (0, 8)
    loss = tables.extra_loss()
    loss.backward()
    assert loss.item() == 0
    assert not built.quantiser.centroids.grad.any()


def test_dead_centroids_are_set_on_rows_by_the_seed() -> None:
    def restarted(seed: int) -> torch.Tensor:
        tables = TableCollection([spec("dpq", options=DpqConfig(num_codebooks=2, num_codes=4))], seed=seed)
        tables.weights()["t"].copy_(torch.arange(400.0)[:, None].expand(-1, 8))
        (built,) = tables.built_methods()
        built.quantiser.centroids.data.zero_()
        built.quantiser.usage.copy_(torch.tensor([0, 1000, 0, 0]).expand(2, 4))
        after_step(tables, step=1, num_steps=2)
        return built.quantiser.centroids.detach().clone()

    moved = restarted(1)
    assert torch.equal(moved, restarted(1))
    assert not torch.equal(moved, restarted(2))
    assert not moved[:, 1].any(), "this one is in use"


def test_bytes_are_exact_bits() -> None:
    shape = CodeShape(num_codebooks=3, num_codes=100, num_tail_codes=5, num_head=41)
    assert shape.nbytes(401, 6) == -(-41 * 3 * 7 // 8) + -(-360 * 3 * 3 // 8) + 4 * 100 * 6
    options = MgqeConfig(num_codebooks=3, num_codes=100, num_tail_codes=5, head_share=41 / 401)
    table = build_table(method="mgqe", num_embeddings=401, embedding_dim=6, options=options)
    assert table.nbytes() == shape.nbytes(401, 6)


@pytest.mark.parametrize("budget", [0.9, 0.3, 0.1, 0.05])
def test_budget_buys_the_most_code_bits(budget: float) -> None:
    method = build_method(spec("dpq", num=5000, dim=12, budget=budget))
    best = 0
    for c in (1, 2, 3, 4, 6, 12):
        for bits in range(1, 9):
            if -(-5000 * c * bits // 8) + 4 * 2**bits * 12 <= budget * 4 * 5000 * 12:
                best = max(best, c * bits)
    shape = method.quantiser.shape
    assert shape.num_codebooks * (shape.num_codes - 1).bit_length() == best


def test_centroids_start_alive() -> None:
    """Most centroids are some row's nearest, for a table whose rows start very small."""
    tables = collection("dpq", num=20_000, dim=8)
    (method,) = tables.built_methods()
    codes = method.quantiser.encode(tables.weights()["t"], None)
    used = [len(codes[:, c].unique()) for c in range(codes.shape[1])]
    assert min(used) > 0.95 * method.quantiser.shape.num_codes


def test_dead_centroids_are_set_upon_rows() -> None:
    tables = collection("dpq", options=DpqConfig(num_codebooks=2, num_codes=16))
    (method,) = tables.built_methods()
    with torch.no_grad():
        method.quantiser.centroids[:, 8:] += 100.0
    lookup(tables, torch.arange(400))
    after_step(tables, step=90, num_steps=100)
    assert (method.quantiser.centroids[:, 8:] > 99).all(), "late in training codes stay as they are"
    alive = method.quantiser.centroids[:, :8].detach().clone()
    after_step(tables, step=5, num_steps=100)
    centroids = method.quantiser.centroids.detach()
    rows = tables.weights()["t"]
    assert torch.equal(centroids[:, :8], alive)
    for c in range(2):
        for centroid in centroids[c, 8:]:
            assert (rows[:, 4 * c : 4 * c + 4] == centroid).all(1).any()
    assert not method.quantiser.usage.any()


def test_a_code_needs_a_fair_chance_before_it_is_dead() -> None:
    tables = collection("dpq", options=DpqConfig(num_codebooks=2, num_codes=16))
    (method,) = tables.built_methods()
    lookup(tables, torch.zeros(100, dtype=torch.int64))
    before = method.quantiser.centroids.detach().clone()
    after_step(tables, step=5, num_steps=100)
    assert torch.equal(before, method.quantiser.centroids)


def test_floors_and_bad_options() -> None:
    with pytest.raises(BudgetError, match="method 'dpq' needs codes and centroids, 114 bytes, so its floor is"):
        build_method(spec("dpq", budget=1e-4))
    with pytest.raises(ConfigError, match="has dim 8, which 3 codebooks do not divide"):
        build_method(spec(options=MgqeConfig(num_codebooks=3)))
    with pytest.raises(ConfigError, match="has 9 tail codes of 8; use at most"):
        build_method(spec(options=MgqeConfig(num_codes=8, num_tail_codes=9)))
    with pytest.raises(ConfigError, match="has num_codes 0; use 1 to 65,536"):
        build_method(spec("dpq", options=DpqConfig(num_codes=0)))
    with pytest.raises(ConfigError, match="head_share is 0"):
        MgqeConfig(head_share=0)


@pytest.mark.parametrize("method", ["dpq", "mgqe"])
@pytest.mark.parametrize(("num", "dim"), [(1, 1), (1, 2048), (9, 3)])
def test_edge_sizes(method: str, num: int, dim: int) -> None:
    table = build_table(method=method, num_embeddings=num, embedding_dim=dim)
    ids = torch.tensor([num - 1])
    assert torch.equal(table.pack().lookup(ids), table.lookup(ids))


def test_addresses_beyond_31_bits() -> None:
    method = build_method(spec(num=2**31 + 1, dim=16, budget=0.1))
    ids = torch.tensor([0, 2**31])
    assert method.address(ids)[0].tolist() == [0, 2**31]
    assert method.side(ids).tolist() == [True, False]
