"""Dedup against brute-force comparison of all pairs of blocks."""

import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.compression.methods.dedup import (
    DedupConfig,
    blocks_within,
    merge_blocks,
    near_pairs,
    project_blocks,
    similarity,
    table_nbytes,
)
from embank.tables import BudgetError, ConfigError, TableCollection, TableSpec, build_method, pack_table
from embank.tables.collections.stages import HeldRows, advance, finished
from tests.compression.shards import Shard


def spec(num: int = 203, dim: int = 6, **fields: object) -> TableSpec:
    return TableSpec(name="t", num_embeddings=num, embedding_dim=dim, feature_names=["t"], method="dedup", **fields)


def lookup(tables: TableCollection, ids: torch.Tensor) -> torch.Tensor:
    kjt = KeyedJaggedTensor(keys=["t"], values=ids, lengths=torch.ones(len(ids), dtype=torch.int32))
    return tables(kjt).values().detach()


def trained(num: int = 203, **fields: object) -> TableCollection:
    """Blocks of 10: some alike (copies with noise, of different strength), the others unlike; the last block has 3
    rows."""
    options = fields.pop("options", DedupConfig(rows_per_block=10, max_difference=0.1, similarity=0.7))
    tables = TableCollection([spec(num, options=options, **fields)])
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(num, 6, generator=generator)
    for block, source, noise in ((3, 0, 0.01), (7, 0, 0.05), (9, 1, 0.09), (12, 1, 0.3), (15, 2, 0.02), (20, 2, 0.02)):
        part = rows[10 * block : 10 * block + 10]
        part.copy_(rows[10 * source : 10 * source + len(part)] + noise * torch.randn(part.shape, generator=generator))
    tables.weights()["t"].copy_(rows)
    return tables


def share_alike(rows: torch.Tensor, i: int, j: int, *, size: int = 10, limit: float = 0.1) -> float:
    a, b = rows[size * i : size * i + size], rows[size * j : size * j + size]
    length = min(len(a), len(b))
    return float(((a[:length] - b[:length]).abs() <= limit).float().mean())


def test_similarity_is_the_brute_force_one() -> None:
    tables = trained()
    pairs = torch.combinations(torch.arange(21))
    ours = similarity(HeldRows(tables), tables.specs[0], pairs, rows_per_block=10, max_difference=0.1)
    expected = [share_alike(tables.weights()["t"], i, j) for i, j in pairs.tolist()]
    torch.testing.assert_close(ours, torch.tensor(expected))


def test_without_a_budget_exactly_the_similar_blocks_are_merged() -> None:
    tables = trained()
    before = tables.weights()["t"].clone()
    done = advance(tables)
    (method,) = done.built_methods()
    blocks = method.blocks.tolist()
    assert blocks[3] == blocks[7] == blocks[0]
    assert blocks[9] == blocks[1]
    assert blocks[12] != blocks[1]
    assert blocks[15] == blocks[20] == blocks[2], "the short last block may be a duplicate too"
    kept = max(blocks) + 1
    assert kept + 5 == 21
    assert done.weights()["t"].shape == (10 * kept, 6)
    after = lookup(done, torch.arange(203))
    for block in range(21):
        assert share_alike(torch.cat([after[10 * block :][:10]] * 2), 0, 0) == 1
        part = slice(10 * block, 10 * block + 10)
        differing = ((after[part] - before[part]).abs() > 0.1).float().mean()
        assert differing <= 0.3
    for block in (0, 1, 2):
        assert torch.equal(after[10 * block :][:10], before[10 * block :][:10]), "the hotter block stays as it is"


def test_identical_blocks_always_merge_and_no_pair_above_the_threshold_is_left() -> None:
    tables = TableCollection([spec(400, options=DedupConfig(rows_per_block=4, max_difference=0.05, num_candidates=3))])
    rows = tables.weights()["t"]
    kinds = torch.randint(0, 12, (100,), generator=torch.Generator().manual_seed(0))
    rows.copy_(torch.randn(12, 24)[kinds].view(400, 6))
    (method,) = advance(tables).built_methods()
    for a in range(100):
        for b in range(100):
            assert (kinds[a] == kinds[b]) == (method.blocks[a] == method.blocks[b])


@pytest.mark.parametrize("budget", [0.9, 0.5, 0.2, 0.06])
def test_budget_is_used_up_by_the_most_similar_pairs(budget: float) -> None:
    tables = trained(budget=budget)
    done = advance(tables)
    (method,) = done.built_methods()
    kept = int(method.blocks.max()) + 1
    allowed = budget * tables.plain_nbytes
    assert done.nbytes("serving") <= allowed < table_nbytes(tables.specs[0], 10, kept + 1)
    if budget == 0.9:  # two merges do: those of the most similar pairs
        merged = [b for b in range(21) if (method.blocks[:b] == method.blocks[b]).any()]
        pairs = torch.combinations(torch.arange(21)).tolist()
        ranked = sorted(pairs, key=lambda p: -share_alike(tables.weights()["t"], *p))
        assert len(merged) == 21 - kept
        assert set(merged) <= {j for _, j in ranked[:3]}


def test_members_are_compared_themselves_unless_the_budget_forces_a_merge() -> None:
    shares = {(0, 1): 0.9, (1, 2): 0.95, (2, 3): 0.1, (0, 2): 0.2, (0, 3): 0.05, (1, 3): 0.04}

    def merged(**goal: object) -> list[int]:
        def candidates(kept: torch.Tensor) -> torch.Tensor:
            return torch.tensor([pair for pair in shares if set(pair) <= set(kept.tolist())])

        def compare(pairs: torch.Tensor) -> torch.Tensor:
            return torch.tensor([shares[tuple(pair)] for pair in pairs.tolist()])

        return merge_blocks(4, candidates=candidates, compare=compare, **goal).tolist()

    assert merged(similarity=0.7, max_blocks=None) == [0, 1, 1, 3]
    assert merged(similarity=0.7, max_blocks=2) == [0, 0, 0, 3]
    assert merged(similarity=0.7, max_blocks=1) == [0, 0, 0, 0]
    assert merged(similarity=1.0, max_blocks=4) == [0, 1, 2, 3]
    shares[0, 2] = 0.7
    assert merged(similarity=0.7, max_blocks=None) == [0, 0, 0, 3], "every member is alike"


@pytest.mark.parametrize("ahead", [1, 7, 1024])
@pytest.mark.parametrize("max_blocks", [None, 20, 5])
def test_pairs_compared_ahead_merge_as_one_by_one(
    ahead: int, max_blocks: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the obvious loop, which compares a pair when it is about to be merged; blocks drift along chains, so that
    many pairs are alike and their groups are not."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(120, 4, generator=generator).cumsum(0) * 0.1

    def compare(pairs: torch.Tensor) -> torch.Tensor:
        return ((rows[pairs[:, 0]] - rows[pairs[:, 1]]).abs() <= 0.25).float().mean(1)

    def candidates(kept: torch.Tensor) -> torch.Tensor:
        return kept[near_pairs(rows[kept], num_candidates=6)]

    members, goal, least, refused = {i: [i] for i in range(120)}, max_blocks or 1, 0.7, 0
    while len(members) > goal:
        pairs = candidates(torch.tensor(sorted(members)))
        shares = compare(pairs)
        before = len(members)
        for n in shares.argsort(descending=True, stable=True).tolist():
            i, j = pairs[n].tolist()
            if shares[n] < least or len(members) <= goal or i not in members or j not in members:
                continue
            if all(least == 0 or float(compare(torch.tensor([[i, other]]))) >= least for other in members[j][1:]):
                members[i] += members.pop(j)
            else:
                refused += 1
        if len(members) == before:
            if max_blocks is None:
                break
            least = 0.0
    expected = [next(kept for kept, own in members.items() if block in own) for block in range(120)]
    assert refused > 3, "the case is one in which members decide"
    monkeypatch.setattr("embank.compression.methods.dedup._PAIRS_AHEAD", ahead)
    found = merge_blocks(120, candidates=candidates, compare=compare, similarity=0.7, max_blocks=max_blocks)
    assert found.tolist() == expected


def test_projections_follow_the_seed() -> None:
    def projected(seed: int) -> torch.Tensor:
        tables = TableCollection([spec()], seed=seed)
        tables.weights()["t"].fill_(1.0)
        return project_blocks(HeldRows(tables), tables.specs[0], rows_per_block=10, num_projections=8, seed=tables.seed)

    assert torch.equal(projected(1), projected(1))
    assert not torch.equal(projected(1), projected(2))


def test_projections_keep_distances_and_shards_add_up() -> None:
    tables = trained()
    rows = tables.weights()["t"]
    whole = project_blocks(HeldRows(tables), tables.specs[0], rows_per_block=10, num_projections=512, seed=tables.seed)
    blocks = torch.nn.functional.pad(rows, (0, 0, 0, 7)).view(21, 60)
    ratio = torch.pdist(whole) / torch.pdist(blocks)
    assert ratio.min() > 0.8
    assert ratio.max() < 1.2

    parts = [
        project_blocks(Shard(rows, *cut), tables.specs[0], rows_per_block=10, num_projections=512, seed=tables.seed)
        for cut in ((0, 37), (37, 38), (38, 203))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-4, atol=1e-4)


def test_near_pairs_are_the_nearest() -> None:
    points = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    pairs = {tuple(p) for p in near_pairs(points, num_candidates=3).tolist()}
    expected = set()
    for i in range(50):
        order = sorted((float((points[i] - points[j]).norm()), j) for j in range(50) if j != i)
        expected |= {(min(i, j), max(i, j)) for _, j in order[:3]}
    assert pairs == expected


@pytest.mark.parametrize("size", [1, 4, 10])
def test_blocks_within_is_the_last_that_fits(size: int) -> None:
    table = spec(97)
    num_blocks = -(-97 // size)
    for nbytes in range(0, table.plain_nbytes + 1, 37):
        fitting = [k for k in range(1, num_blocks + 1) if table_nbytes(table, size, k) <= nbytes]
        assert blocks_within(table, size, nbytes) == (max(fitting) if fitting else 0)


def test_blocks_that_training_has_not_touched_nearly_all_merge() -> None:
    done = advance(TableCollection([spec(4000, 8)]))
    (method,) = done.built_methods()
    assert int(method.blocks.max()) < 20, "of 4,000"


def test_floor_and_bad_options() -> None:
    with pytest.raises(
        BudgetError, match="method 'dedup' needs one block and the map, 24 bytes, so its floor is budget"
    ):
        build_method(spec(budget=1e-4))
    with pytest.raises(ConfigError, match="rows_per_block is 0"):
        DedupConfig(rows_per_block=0)
    with pytest.raises(ConfigError, match="similarity is 1.5"):
        DedupConfig(similarity=1.5)


@pytest.mark.parametrize(("num", "dim"), [(1, 1), (1, 2048), (7, 3)])
def test_edge_sizes(num: int, dim: int) -> None:
    tables = finished(TableCollection([spec(num, dim)]))
    (method,) = tables.built_methods()
    ids = torch.arange(num)
    assert torch.equal(pack_table(method, tables.weights()).lookup(ids), lookup(tables, ids))


def test_addresses_beyond_31_bits() -> None:
    num = 2**31 + 1
    first = build_method(spec(num, 16))
    assert first.address(torch.tensor([2**31]))[0].item() == 2**31
    blocks = torch.arange(first.num_blocks, dtype=torch.int32)
    second = build_method(spec(num, 16, stage=1, found={"blocks": blocks}))
    assert second.address(torch.tensor([2**31, 5]))[0].tolist() == [2**31, 5]
    assert second.physical[0].num_embeddings == num
