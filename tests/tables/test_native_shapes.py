"""The compiled lookup of rows that are put together: product codes, sparse rows, rows of the ids that are kept."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embank.compression.codecs.codes import CodedRows
from embank.compression.codecs.sparse import SparseRows
from embank.compression.methods.optembed import Kept
from embank.compression.parts.bits import pack_values
from embank.compression.parts.sparse import rank_octets
from embank.tables import CheckpointError, Coded, PackedCollection, PackedTable, Spine, TableSpec
from embank.tables.method.together import Rule
from embank.tables.serving.codecs.registry import encode
from embank.tables.serving.lookups import Lookups
from embank.tables.serving.native.kernel import Kernel
from tests.tables.native import CODECS, bundle_of, looked_up, stack_of

NUM_ROWS = 1500


def in_time(*codecs: str) -> list[Any]:
    """Those that the quick tests leave out."""
    return [pytest.param(codec, marks=pytest.mark.slow) for codec in codecs]


def kernel_of(matrices: list[Coded]) -> Kernel:
    rules = [Rule("own", matrix.num_joint_rows()) for matrix in matrices]
    found = Kernel.of([matrix.layout() for matrix in matrices], rules, num_ids=[rule.num_rows for rule in rules])
    assert found is not None
    return found


def assert_rows_are_those_of(matrices: list[Coded], *, num_rows: int = NUM_ROWS) -> None:
    """To the bit, of one id, of few, and of more than a block of the source."""
    ids_KB = torch.randint(num_rows, (len(matrices), 1100), generator=torch.Generator().manual_seed(0))
    ids_KB[:, 0], ids_KB[:, -1] = 0, num_rows - 1
    expected = torch.stack([matrix.take(ids_B) for matrix, ids_B in zip(matrices, ids_KB, strict=True)], dim=1)
    own = kernel_of(matrices)
    for start, stop in ((0, 1), (1099, 1100), (0, 3), (0, 1100), (5, 5)):
        assert torch.equal(looked_up(own, ids_KB[:, start:stop]), expected[start:stop])


def coded_rows(*, books: int, codes: int, width: int, num_head: int, tail_codes: int, seed: int = 0) -> CodedRows:
    generator = torch.Generator().manual_seed(seed)
    centroids = torch.randn(books, codes, width, generator=generator)
    rows = torch.randn(NUM_ROWS, books * width, generator=generator)
    return CodedRows(rows, centroids, num_head=num_head, num_tail_codes=tail_codes)


SHAPES = {
    "bytes": {"books": 4, "codes": 256, "width": 1, "num_head": NUM_ROWS, "tail_codes": 256},
    "whole bytes of seven bits": {"books": 8, "codes": 128, "width": 2, "num_head": NUM_ROWS, "tail_codes": 128},
    "rows within a byte": {"books": 3, "codes": 8, "width": 1, "num_head": 100, "tail_codes": 2},
    "a number that is no power of two": {"books": 5, "codes": 100, "width": 3, "num_head": 700, "tail_codes": 37},
    "more than a byte": {"books": 2, "codes": 300, "width": 2, "num_head": 11, "tail_codes": 40},
    "no bits": {"books": 2, "codes": 1, "width": 4, "num_head": NUM_ROWS, "tail_codes": 1},
    "no bits of the tail": {"books": 6, "codes": 16, "width": 2, "num_head": 13, "tail_codes": 1},
    "all of them tail": {"books": 6, "codes": 16, "width": 2, "num_head": 0, "tail_codes": 5},
    "one book": {"books": 1, "codes": 64, "width": 16, "num_head": NUM_ROWS, "tail_codes": 64},
    "many books": {"books": 70, "codes": 16, "width": 2, "num_head": 900, "tail_codes": 8},
}


@pytest.mark.parametrize("codec", ["fp32", "int8", *in_time("fp16", "int3", "int8_rowwise")])
@pytest.mark.parametrize("shape", SHAPES)
def test_product_codes(shape: str, codec: str) -> None:
    matrices = [coded_rows(**SHAPES[shape], seed=seed) for seed in range(2)]
    assert_rows_are_those_of([matrix if codec == "fp32" else matrix.recoded(codec) for matrix in matrices])


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_product_codes_of_every_codec(codec: str) -> None:
    matrix = coded_rows(books=8, codes=32, width=4, num_head=300, tail_codes=8)
    assert_rows_are_those_of([matrix if codec == "fp32" else matrix.recoded(codec)])


def test_the_codec_pq_is_made_of_such_codes() -> None:
    assert_rows_are_those_of([encode(torch.randn(NUM_ROWS, 16), codec="pq") for _ in range(2)])


def test_a_code_beyond_the_centroids_of_a_damaged_table_reads_the_last_one() -> None:
    matrix = coded_rows(books=2, codes=5, width=1, num_head=NUM_ROWS, tail_codes=5)
    matrix.head = pack_values(torch.full((NUM_ROWS, 2), 7), bits=3)
    found = looked_up(kernel_of([matrix]), torch.tensor([[0, NUM_ROWS - 1]]))
    assert torch.equal(found[:, 0], matrix.centroids[:, 4, 0].expand(2, 2))


def sparse_rows(dim: int, share: float, form: str, *, seed: int = 0, num_rows: int = NUM_ROWS) -> SparseRows:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, dim, generator=generator)
    rows *= torch.rand(num_rows, dim, generator=generator) < share
    rows[0, 0] = 1.0  # none at all are held in no form
    return SparseRows(rows, form=form)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.001, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("dim", [1, 3, 16, 64, 70, 300])
@pytest.mark.parametrize("form", ["dense", "bitmap", "list8", "list16"])
def test_sparse_rows(form: str, dim: int, share: float) -> None:
    assert_rows_are_those_of([sparse_rows(dim, share, form, seed=seed) for seed in range(2)])


@pytest.mark.parametrize("codec", ["fp32", "int4", *in_time(*sorted({*CODECS} - {"fp32", "int4"}))])
@pytest.mark.parametrize("form", ["dense", "bitmap", "list8", "list16"])
def test_sparse_rows_of_every_codec(form: str, codec: str) -> None:
    matrices = [sparse_rows(16, 0.3, form, seed=seed) for seed in range(2)]
    assert_rows_are_those_of([matrix if codec == "fp32" else matrix.recoded(codec) for matrix in matrices])


def test_a_row_over_several_buckets_of_a_list() -> None:
    assert_rows_are_those_of([sparse_rows(3000, 0.01, "list8", num_rows=40)], num_rows=40)
    assert_rows_are_those_of([sparse_rows(3000, 0.9, "list16", num_rows=40)], num_rows=40)


def kept_of(mask: Tensor, *, dim: int) -> Kept:
    return Kept(dim=dim, bitmap=rank_octets(pack_values(mask, bits=1)))


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "some": lambda numbers: numbers % 3 == 1,
    "few": lambda numbers: numbers % 700 == 699,
    "the first": lambda numbers: numbers < 65,
    "the last": lambda numbers: numbers >= NUM_ROWS - 2,
    "all": lambda numbers: numbers >= 0,
}


@pytest.mark.parametrize("codec", ["fp32", "int4", "int8_rowwise"])
@pytest.mark.parametrize("width", [3, 8])
@pytest.mark.parametrize("mask", MASKS)
def test_ids_that_are_kept(mask: str, width: int, codec: str) -> None:
    is_kept = MASKS[mask](torch.arange(NUM_ROWS))
    rows = encode(torch.randn(int(is_kept.sum()), width), codec=codec)
    spine = kept_of(is_kept, dim=8)
    (rule,), ids = Kept.together([spine]).rules or (), torch.arange(NUM_ROWS)
    own = Kernel.of([rows.layout()], [rule], num_ids=[NUM_ROWS], padded=8)
    assert own is not None
    expected = PackedTable(spine, [rows], [0]).lookup(ids)
    assert torch.equal(looked_up(own, ids[None])[:, 0], expected)
    assert torch.equal(looked_up(own, ids[None, 699:700])[:, 0], expected[699:700])


BUDGETS = {"pep": 0.1, "optembed": 0.4}


@pytest.mark.parametrize("codec", ["fp32", "int4", "int8_rowwise"])
@pytest.mark.parametrize("method", ["mgqe", "dpq", "deeplight", "pep", "optembed"])
def test_bundles_are_looked_up_by_it(method: str, codec: str, tmp_path: Path) -> None:
    packed = bundle_of(tmp_path / "b", method, codec, budget=BUDGETS.get(method, 0.25))
    stack, ids_KB = stack_of(packed), np.random.default_rng(0).integers(500, size=(3, 300))
    assert stack.kernel is not None
    found = stack.kernel(ids_KB)
    assert found is not None
    stack.kernel = None
    assert torch.equal(found, stack(ids_KB))


def lookups_of(matrix: Coded, spine: Spine, *, dim: int, bags: Sequence[str] = ()) -> Lookups:
    spec = TableSpec(name="t", num_embeddings=NUM_ROWS, embedding_dim=dim, feature_names=["f"])
    return Lookups(PackedCollection([spec], [PackedTable(spine, [matrix], [0])]), bags=bags)


def damaged(tensor: Tensor, *, add: int) -> Tensor:
    return tensor + torch.tensor(add, dtype=tensor.dtype)


DAMAGE: dict[str, tuple[str, Callable[[SparseRows], None]]] = {
    "more values are told of than there are": (
        "bitmap",
        lambda m: setattr(m, "samples", damaged(m.samples, add=m.values.numel())),
    ),
    "counts below 0": ("bitmap", lambda m: setattr(m, "samples", damaged(m.samples, add=-m.values.numel() - 500))),
    "values are missing": ("bitmap", lambda m: setattr(m, "values", m.values[:9].clone())),
    "a list that ends early": ("list8", lambda m: setattr(m, "lows", m.lows[:9].clone())),
    "buckets that begin behind the list": ("list16", lambda m: setattr(m, "starts", damaged(m.starts, add=10**6))),
    "buckets that begin before it": ("list16", lambda m: setattr(m, "starts", damaged(m.starts, add=-(10**6)))),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_a_damaged_sparse_table_lacks_is_not_read(what: str) -> None:
    form, damage = DAMAGE[what]
    matrix = sparse_rows(16, 0.2, form)
    damage(matrix)
    ids_1B = np.arange(NUM_ROWS - 600, NUM_ROWS)[None]
    assert kernel_of([matrix])(ids_1B) is None
    lookups = lookups_of(matrix, Spine(), dim=16)
    if what in {
        "more values are told of than there are",
        "values are missing",
        "a list that ends early",
    }:  # else clamped
        with pytest.raises(CheckpointError, match="can't be looked up"):
            lookups({"f": torch.from_numpy(ids_1B[0])}, {}, num_rows=600)


def test_rows_that_a_damaged_bitmap_of_kept_ids_tells_of_are_not_read() -> None:
    spine = kept_of(torch.arange(NUM_ROWS) % 2 == 0, dim=8)
    lookups = lookups_of(encode(torch.randn(40, 8)), spine, dim=8)
    stack = lookups._stacks[0]
    assert stack.kernel is not None
    assert stack.kernel(np.arange(80)[None]) is not None
    assert stack.kernel(np.arange(82)[None]) is None
    with pytest.raises(CheckpointError, match="can't be looked up"):
        lookups({"f": torch.arange(82)}, {}, num_rows=82)


def test_layouts_of_damaged_tables_are_not_believed() -> None:
    def is_refused(matrix: Coded) -> bool:
        return Kernel.of([matrix.layout()], [Rule("own", 100)], num_ids=[100]) is None

    for name, wrong in {
        "num_rows": [0, -1, NUM_ROWS + 5],
        "num_head": [-1, 1000],
        "head_bits": [9, -3, 60],
        "tail_bits": [7, -3, 60],
        "head": [torch.zeros(3, dtype=torch.uint8), torch.zeros(9000, dtype=torch.int8)],
        "centroids": [torch.zeros(0, 4, 1), torch.zeros(3, 0, 1)],
    }.items():
        for value in wrong:
            matrix = coded_rows(books=3, codes=8, width=1, num_head=800, tail_codes=4)
            assert not is_refused(matrix)
            setattr(matrix, name, value)
            assert is_refused(matrix), (name, value)
    for form, name, wrong in (
        ("bitmap", "dim", [0, -2]),
        ("bitmap", "words", [torch.zeros(10, dtype=torch.int64), torch.zeros(1000, dtype=torch.int32)]),
        ("bitmap", "samples", [torch.zeros(1, dtype=torch.int32), torch.zeros(1000)]),
        ("list8", "lows", [torch.zeros(10, dtype=torch.int16)]),
        ("list8", "starts", [torch.zeros(3, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)]),
    ):
        for value in wrong:
            sparse = sparse_rows(16, 0.2, form)
            assert not is_refused(sparse)
            setattr(sparse, name, value)
            assert is_refused(sparse), (form, name, value)
    kept = kept_of(torch.arange(NUM_ROWS) % 2 == 0, dim=8)
    rows, (rule,) = encode(torch.randn(750, 8)).layout(), Kept.together([kept]).rules or ()
    assert Kernel.of([rows], [rule], num_ids=[NUM_ROWS], padded=8) is not None
    assert Kernel.of([rows], [rule], num_ids=[NUM_ROWS + 100], padded=8) is None
    assert Kernel.of([rows], [rule], num_ids=[NUM_ROWS], padded=7) is None


def test_what_holds_the_values_of_a_pruned_table_is_told() -> None:
    """As listings show it."""
    assert PackedTable(Spine(), [sparse_rows(16, 0.3, "bitmap").recoded("int4")], [0]).codecs() == [
        "sparse_coded (int4)"
    ]
    assert PackedTable(Spine(), [encode(torch.randn(20, 8), codec="int4")], [0]).codecs() == ["int4"]


@pytest.mark.parametrize("form", ["dense", "bitmap", "list8"])
@pytest.mark.parametrize("codec", ["pq", "pq4"])
def test_pruned_rows_under_codecs_of_several_columns(codec: str, form: str) -> None:
    """Their values are a list of single numbers, whose layout is not that of the table."""
    matrix = sparse_rows(16, 0.3, form).recoded(codec)
    ids = torch.arange(NUM_ROWS)
    assert torch.equal(lookups_of(matrix, Spine(), dim=16)({"f": ids}, {}, num_rows=NUM_ROWS)[0], matrix.take(ids))
    bags = lookups_of(matrix, Spine(), dim=16, bags=["f"])({"f": ids}, {"f": torch.ones_like(ids)}, num_rows=NUM_ROWS)
    assert torch.equal(bags[0], matrix.take(ids))


def test_a_layout_of_another_width_than_the_table_is_not_believed() -> None:
    assert lookups_of(encode(torch.randn(NUM_ROWS, 3)), Spine(), dim=4)._stacks[0].kernel is None


@pytest.mark.parametrize("share", [0.01, 0.9])
@pytest.mark.parametrize("form", ["bitmap", "list8"])
def test_kept_ids_of_pruned_rows(form: str, share: float) -> None:
    """There are fewer values than rows, or more: whether a row is there is asked of rows."""
    is_kept = torch.arange(NUM_ROWS) % 2 == 0
    spine, matrix = kept_of(is_kept, dim=16), sparse_rows(16, share, form, num_rows=int(is_kept.sum()))
    stack, ids = lookups_of(matrix, spine, dim=16)._stacks[0], torch.arange(NUM_ROWS)
    assert stack.kernel is not None
    assert torch.equal(looked_up(stack.kernel, ids[None])[:, 0], PackedTable(spine, [matrix], [0]).lookup(ids))
    spine.samples = damaged(spine.samples, add=10**6)
    stack = lookups_of(matrix, spine, dim=16)._stacks[0]
    assert stack.kernel is not None
    assert stack.kernel(ids[None].numpy()) is None


@pytest.mark.parametrize("name", ["steps", "codes"])
def test_buffers_that_do_not_lie_in_one_piece_are_read_where_they_are(name: str) -> None:
    """A copy of them would not be what is written into later."""
    matrix = encode(torch.randn(NUM_ROWS, 16), codec="int8")
    held = getattr(matrix, name)
    setattr(matrix, name, torch.stack([held, held], dim=1)[:, 0])
    lookups, ids = lookups_of(matrix, Spine(), dim=16), torch.arange(NUM_ROWS)
    getattr(matrix, name).zero_()
    assert torch.equal(lookups({"f": ids}, {}, num_rows=NUM_ROWS)[0], matrix.take(ids))


def test_wrong_facts_of_a_damaged_bundle_are_told_as_such() -> None:
    matrix = coded_rows(books=2, codes=1, width=4, num_head=NUM_ROWS, tail_codes=1)
    for wrong in (2**70, -1):
        matrix.num_rows = wrong
        with pytest.raises(CheckpointError, match="can't be looked up.*is damaged"):
            lookups_of(matrix, Spine(), dim=8)
