"""Dedup: blocks of rows that training has left alike become one block (Zhou et al., PVLDB 15(10), 2022)."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from embank.compression.budget.floors import floor_error
from embank.compression.fitting.blocks import MergedBlocks
from embank.compression.parts.bits import code_bits, pack_values, packed_nbytes, read_values
from embank.compression.parts.row_chunks import ENTRIES_PER_CHUNK, fetch, numbered_chunks
from embank.tables import (
    Advance,
    Carry,
    ConfigError,
    Held,
    LocalRows,
    Method,
    Schedule,
    Score,
    Served,
    Spine,
    Stage,
    TableSpec,
    Traits,
    default_init,
    option_class,
    own_table,
)
from embank.tables.ids.hashing import generator_of
from embank.tables.method.options import refuse_wrong_types

_MAX_BLOCKS = 1 << 14
_MAP_SHARE = 0.25
_SAME = 1 - 1e-12
_PAIRS_AHEAD = 1024
"""Pairs of blocks that are about to be merged whose comparisons are made at once."""


@option_class
class DedupConfig:
    """Options of the deduplicated table.

    Args:
        rows_per_block: None takes the smallest power of two that makes at most 16,384 blocks, whose map takes at most a
            quarter of the budget. Small blocks merge with less loss; the paper's are pages of a database, 10,000 rows
            in the VLDB'24 benchmark.
        similarity: share of equal entries from which two blocks are duplicates. A budget stops merging earlier or goes
            on below it.
        max_difference: up to which two entries are equal; None takes one and a half times the half width of initial
            values, at which 94% of the entries of two untrained blocks are.
        num_projections: random directions in which near blocks are looked for.
        num_candidates: nearest blocks by projection that are compared entry by entry, for each block.
    """

    rows_per_block: int | None = None
    similarity: float = field(default=0.7, metadata={"choices": (0.5, 0.7, 0.9)})
    max_difference: float | None = None
    num_projections: int = 64
    num_candidates: int = 16

    def __post_init__(self) -> None:
        refuse_wrong_types(self)
        if self.rows_per_block is not None and self.rows_per_block < 1:
            raise ConfigError(f"rows_per_block is {self.rows_per_block}; it must be at least 1")
        if not 0 < self.similarity <= 1:
            raise ConfigError(f"similarity is {self.similarity}; it is a share of a block's entries and lies in (0, 1]")
        if self.num_projections < 1 or self.num_candidates < 1:
            raise ConfigError("num_projections and num_candidates must be at least 1")


class _Merging(Schedule):
    """Blocks are merged between two trainings."""

    stages: ClassVar[tuple[Stage, ...]] = (Stage(name="full", is_search=True), Stage(name="fine-tune", epochs=0.5))

    def advance(self, methods: "Sequence[Dedup]", rows: LocalRows, *, score: Score | None, seed: int) -> list[Advance]:
        return [method.merged(rows, seed=seed) for method in methods]


class Dedup(Method):
    """A plain table is trained, similar blocks of consecutive rows are merged, and what is left is trained on.

    Ids are ranked by frequency when data is prepared, so a block holds ids that are about as hot; of two duplicates the
    hotter block stays. Merging goes from the most similar pair down and ends when the budget is met, if need be below
    `similarity`. Without a budget, every duplicate is as similar as that to the block that stands for it.

    Raises:
        BudgetError: the budget does not hold one block and the map.

    Source: section 4 of the paper. It finds candidates by hashing with p-stable projections and merges whatever
    collides in enough bands, so that the outcome may miss the budget; here the same projections rank candidates by
    distance, which gives every block some, and each merge is decided by comparing entries. The VLDB'24 benchmark of
    Zhang et al. compares to a fixed 0.01, thirty times the width of its initial values, on ids in random order.

    Example:
        >>> table = build_table(method="dedup", num_embeddings=1000, embedding_dim=8, budget=0.2)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.19925
    """

    Config = DedupConfig
    traits = Traits(whole_rows=True, schedule=_Merging(), fitting=MergedBlocks())
    held = Held(on_host=("blocks",))
    blocks: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.config: DedupConfig = self.options
        self.block_weights: Tensor | None = None  # of given rows, which merge by distance (`MergedBlocks`)
        self.rows_per_block, self.max_blocks = self._shape()
        self.num_blocks = -(-spec.num_embeddings // self.rows_per_block)
        num_rows = spec.num_embeddings
        if spec.stage == 1:
            self.register_buffer("blocks", spec.found["blocks"], persistent=False)
            num_kept = int(self.blocks.max()) + 1
            is_last_kept = int((self.blocks == self.blocks[-1]).sum()) == 1  # the last block may have fewer rows
            missing = self.num_blocks * self.rows_per_block - spec.num_embeddings
            num_rows = num_kept * self.rows_per_block - (missing if is_last_kept else 0)
        self.physical = (own_table(spec, num_rows=num_rows),)

    def _shape(self) -> tuple[int, int | None]:
        """Rows per block, and how many blocks the budget keeps (None without one)."""
        spec = self.spec
        smallest = -(-spec.num_embeddings // _MAX_BLOCKS)
        sizes = [1 << b for b in range(spec.num_embeddings.bit_length()) if 1 << b >= smallest]
        if self.config.rows_per_block is not None:
            sizes = [self.config.rows_per_block]
        if spec.budget is None:
            return sizes[0], None
        allowed = spec.budget * spec.plain_nbytes
        kept = {size: blocks_within(spec, size, allowed) for size in sizes}
        good = [s for s in sizes if kept[s] and map_nbytes(spec, s, kept[s]) <= _MAP_SHARE * allowed]
        best = good[0] if good else max(sizes, key=lambda size: size * kept[size])
        if not kept[best]:
            floor = min(table_nbytes(spec, size, 1) for size in sizes)
            raise floor_error(spec, needs="one block and the map", floor_nbytes=floor)
        return best, kept[best]

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        if self.spec.stage == 0:
            return (ids_N,)
        block_N = self.blocks[ids_N // self.rows_per_block].long()
        return (block_N * self.rows_per_block + ids_N % self.rows_per_block,)

    def merged(self, rows: LocalRows, *, seed: int) -> Advance:
        target_B = self._merge(rows, seed=seed)
        kept_K, blocks_B = torch.unique(target_B, return_inverse=True)
        rows_Kb = kept_K[:, None] * self.rows_per_block + torch.arange(self.rows_per_block)
        carried = rows_Kb[rows_Kb < self.spec.num_embeddings]
        return Advance(
            found={"blocks": blocks_B.int()},
            carries={self.spec.name: Carry(table=self.spec.name, rows=carried)},
            dense={},
        )

    def _merge(self, rows: LocalRows, *, seed: int) -> Tensor:
        """For each block the one that stands for it, int64 [B]; those stand for themselves."""
        config = self.config
        projections_BL = project_blocks(
            rows, self.spec, rows_per_block=self.rows_per_block, num_projections=config.num_projections, seed=seed
        )
        max_difference = config.max_difference
        if max_difference is None:
            init = default_init(self.spec)
            max_difference = 1.5 * init.scale * (3**0.5 if init.kind == "normal" else 1.0)

        def compare(pairs_P2: Tensor) -> Tensor:
            if self.block_weights is not None:
                return nearness(
                    rows, self.spec, pairs_P2, rows_per_block=self.rows_per_block, weights_B=self.block_weights
                )
            return similarity(
                rows, self.spec, pairs_P2, rows_per_block=self.rows_per_block, max_difference=max_difference
            )

        return merge_blocks(
            self.num_blocks,
            candidates=lambda kept_K: kept_K[near_pairs(projections_BL[kept_K], num_candidates=config.num_candidates)],
            compare=compare,
            similarity=config.similarity if self.block_weights is None else _SAME,
            max_blocks=self.max_blocks,
        )

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        values_RD = rows[self.spec.name]
        if self.spec.stage == 0 or int(self.blocks.max()) + 1 == self.num_blocks:
            return Served.of_rows(values_RD)
        return Served.of_rows(values_RD, spine=Blocks(self.blocks, rows_per_block=self.rows_per_block))


class Blocks(Spine):
    """For each block of ids the number of the block of rows that stands for it, at the bits that this takes.

    Args:
        blocks_B: int64 or int32, by block of ids.
        rows_per_block: ids per block.
    """

    held = Held(facts=("rows_per_block", "bits"), uncounted=("map",), sizes=("bits",))
    map: Tensor

    def __init__(self, blocks_B: Tensor, *, rows_per_block: int) -> None:
        super().__init__()
        self.rows_per_block = rows_per_block
        self.bits = code_bits(int(blocks_B.max()) + 1)
        self.register_buffer("map", pack_values(blocks_B, bits=self.bits))

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        block_N = read_values(self.map, ids_N // self.rows_per_block, bits=self.bits)
        return (block_N * self.rows_per_block + ids_N % self.rows_per_block,)


def map_nbytes(spec: TableSpec, rows_per_block: int, num_kept: int) -> int:
    """Bytes of the map from blocks of ids to kept blocks; none is needed if all are."""
    num_blocks = -(-spec.num_embeddings // rows_per_block)
    return 0 if num_kept == num_blocks else packed_nbytes(num_blocks, code_bits(num_kept))


def table_nbytes(spec: TableSpec, rows_per_block: int, num_kept: int) -> int:
    """The most serving bytes of a table of which some blocks are kept."""
    num_rows = min(spec.num_embeddings, rows_per_block * num_kept)
    return 4 * spec.embedding_dim * num_rows + map_nbytes(spec, rows_per_block, num_kept)


def blocks_within(spec: TableSpec, rows_per_block: int, nbytes: float) -> int:
    """The most blocks that some bytes hold; 0 if not even one."""
    num_blocks = -(-spec.num_embeddings // rows_per_block)
    if nbytes >= spec.plain_nbytes:
        return num_blocks
    return bisect_right(range(1, num_blocks), nbytes, key=partial(table_nbytes, spec, rows_per_block))


def merge_blocks(
    num_blocks: int,
    *,
    candidates: Callable[[Tensor], Tensor],
    compare: Callable[[Tensor], Tensor],
    similarity: float,
    max_blocks: int | None,
) -> Tensor:
    """Merges pairs from the most similar down.

    Args:
        num_blocks: B.
        candidates: for the blocks that are left, ascending, pairs worth comparing: int64 [P, 2], the first below the
            second, at least one pair while two blocks are left.
        compare: similarity of pairs, [P].
        similarity: down to which pairs are duplicates.
        max_blocks: stop there, but get there; None merges all duplicates and nothing else.

    Returns:
        For each block the one that stands for it, int64 [B]. Every duplicate was itself compared to it, unless the
        budget can't be met otherwise.
    """
    members: dict[int, list[int]] = {block: [block] for block in range(num_blocks)}
    goal = 1 if max_blocks is None else max_blocks
    least = similarity
    while len(members) > goal:
        pairs_P2 = candidates(torch.tensor(sorted(members)))
        shares_P = compare(pairs_P2)
        order = shares_P.argsort(descending=True, stable=True)
        before = len(members)
        duplicates = [(i, j) for i, j in pairs_P2[order][shares_P[order] >= least].tolist()]
        alike: dict[tuple[int, int], bool] = {}
        for number, (i, j) in enumerate(duplicates):
            if len(members) <= goal:
                break
            if i not in members or j not in members:
                continue
            others = [(i, block) for block in members[j][1:]] if least else []
            if any(pair not in alike for pair in others):
                soon = _to_compare(duplicates[number : number + _PAIRS_AHEAD], members, known=alike)
                alike |= zip(soon, (compare(torch.tensor(soon)) >= least).tolist(), strict=True)
            if all(alike[pair] for pair in others):
                members[i] += members.pop(j)
        if len(members) == before:
            if max_blocks is None:
                break
            assert least > 0, "the most similar pair of a forced round always merges"
            least = 0.0
    target_B = torch.empty(num_blocks, dtype=torch.int64)
    for block, own in members.items():
        target_B[own] = block
    return target_B


def _to_compare(
    duplicates: Sequence[tuple[int, int]],
    members: Mapping[int, Sequence[int]],
    *,
    known: Mapping[tuple[int, int], bool],
) -> list[tuple[int, int]]:
    """What merging each of these pairs would ask for, as blocks are merged now. A comparison costs little more for many
    pairs than for one; some of these will not be asked for."""
    asked = ((i, block) for i, j in duplicates if i in members and j in members for block in members[j][1:])
    return list(dict.fromkeys(pair for pair in asked if pair not in known))


def project_blocks(rows: LocalRows, spec: TableSpec, *, rows_per_block: int, num_projections: int, seed: int) -> Tensor:
    """Each block's entries in random directions, [B, L]: distances between them follow those between blocks."""
    dim, num_blocks = spec.embedding_dim, -(-spec.num_embeddings // rows_per_block)
    generator = generator_of(seed, "dedup", spec.name)
    directions_bDL = (
        torch.randn(rows_per_block, dim, num_projections, dtype=torch.float32, generator=generator)
        / num_projections**0.5
    )
    projections_BL = torch.zeros(num_blocks, num_projections, dtype=torch.float32)
    size = max(1, ENTRIES_PER_CHUNK // (dim * num_projections))
    for numbers_r, chunk_rD in numbered_chunks(rows, spec.name):
        for start in range(0, numbers_r.numel(), size):
            numbers_n, rows_nD = numbers_r[start : start + size], chunk_rD[start : start + size]
            projected_nL = torch.einsum("nd,ndl->nl", rows_nD, directions_bDL[numbers_n % rows_per_block])
            projections_BL.index_add_(0, numbers_n // rows_per_block, projected_nL)
    return rows.sum(projections_BL)


def near_pairs(projections_KL: Tensor, *, num_candidates: int) -> Tensor:
    """Pairs of each block and the blocks nearest to it, int64 [P, 2], the first below the second, none twice."""
    num = projections_KL.shape[0]
    count = min(num_candidates, num - 1)
    found = []
    size = max(1, ENTRIES_PER_CHUNK // num)
    for start in range(0, num, size):
        distances = torch.cdist(projections_KL[start : start + size], projections_KL)
        own = torch.arange(distances.shape[0])
        distances[own, start + own] = float("inf")
        near = distances.topk(count, dim=1, largest=False).indices
        pairs = torch.stack([(start + own)[:, None].expand_as(near), near], dim=2).view(-1, 2)
        found.append(pairs.sort(dim=1).values)
    first_P, second_P = torch.cat(found).unbind(1)
    keys_P = torch.unique(first_P * num + second_P)  # as one number each: of rows, unique takes ten times as long
    return torch.stack([keys_P // num, keys_P % num], dim=1)


def similarity(
    rows: LocalRows, spec: TableSpec, pairs_P2: Tensor, *, rows_per_block: int, max_difference: float
) -> Tensor:
    """Share of entries that differ by at most `max_difference`, [P], over the rows that both blocks have."""

    def alike(left: Tensor, right: Tensor) -> Tensor:
        return (left - right).abs() <= max_difference

    return _mean_alike(rows, spec, pairs_P2, rows_per_block=rows_per_block, alike=alike)


def nearness(rows: LocalRows, spec: TableSpec, pairs_P2: Tensor, *, rows_per_block: int, weights_B: Tensor) -> Tensor:
    """1 / (1 + x), [P], x being what merging two blocks adds to the weighted squared error when their mean stands for
    both (Ward, 1963): `w1 w2 / (w1 + w2)` times the squared difference, over the rows that both have."""

    def squares(left: Tensor, right: Tensor) -> Tensor:
        return (left - right).double().square()

    first_P, second_P = weights_B.double()[pairs_P2].unbind(1)
    square_P = _mean_alike(rows, spec, pairs_P2, rows_per_block=rows_per_block, alike=squares)
    return 1 / (1 + first_P * second_P / (first_P + second_P) * square_P)


def _mean_alike(
    rows: LocalRows,
    spec: TableSpec,
    pairs_P2: Tensor,
    *,
    rows_per_block: int,
    alike: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    shares = []
    per_chunk = max(1, ENTRIES_PER_CHUNK // (rows_per_block * spec.embedding_dim))
    for start in range(0, pairs_P2.shape[0], per_chunk):
        ids_p2b = pairs_P2[start : start + per_chunk, :, None] * rows_per_block + torch.arange(rows_per_block)
        exists_pb = (ids_p2b < spec.num_embeddings).all(1)
        values = fetch(rows, spec.name, ids_p2b.clamp(max=spec.num_embeddings - 1).reshape(-1))
        left, right = values.view(*ids_p2b.shape, spec.embedding_dim).unbind(1)
        alike_pb = alike(left, right).sum(2) * exists_pb
        shares.append(alike_pb.sum(1) / (exists_pb.sum(1) * spec.embedding_dim))
    return torch.cat(shares)
