"""Tables of a method that are looked up at once, against each table by itself: to the bit, whatever holds the rows."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from embank.compression.codecs.sparse import SparseRows
from embank.compression.methods.hash import Hash
from embank.compression.parts.bits import pack_values
from embank.tables import (
    CheckpointError,
    DataError,
    IdRangeError,
    PackedCollection,
    PackedTable,
    TableCollection,
    TableSpec,
    load_bundle,
    method_class,
    save_bundle,
)
from embank.tables.ids.hashing import hash_rows
from embank.tables.ids.mixing import hash_words
from embank.tables.serving.codecs.joined import in_blocks
from embank.tables.serving.lookups import Lookups
from embank.tables.serving.stacks import Rows, Stack, Use
from embank.tables.serving.table import looked_up
from tests.products import LAST_BITS, same

SIZES = (300, 331, 362)
FEATURES = {f"f{k}": size for k, size in enumerate(SIZES)}
BATCHES = (0, 1, 2, 9, 70, 1100)


def specs_of(method: str, *, dim: int = 16, **facts: object) -> list[TableSpec]:
    options = {
        "mgqe": method_class("mgqe").Config(num_codebooks=min(dim, 8), num_codes=50, num_tail_codes=20),
        "dpq": method_class("dpq").Config(num_codebooks=min(dim, 8), num_codes=100),
    }.get(method)
    budget = None if method == "full" or options else 0.25
    return [
        TableSpec(
            name=f"t{k}",
            num_embeddings=size,
            embedding_dim=dim,
            feature_names=[feature],
            method=method,
            budget=budget,
            options=options,
            **({"counts": torch.arange(size, 0, -1)} if method == "mgqe" else {}),
            **facts,
        )
        for k, (feature, size) in enumerate(FEATURES.items())
    ]


def ids_of(batch_size: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = {feature: torch.randint(size, (batch_size,), generator=generator) for feature, size in FEATURES.items()}
    for feature, size in FEATURES.items():
        ids[feature][:2] = torch.tensor([size - 1, 0])[:batch_size]
    return ids


def one_by_one(packed: PackedCollection, ids: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([looked_up(p, ids[s.feature_names[0]], spec=s) for s, p in packed.packed_tables()], dim=1)


def alike(found: Tensor, expected: Tensor, *, lookups: Lookups) -> bool:
    """Equal to the bit, and but for the last ones where compiled code adds up products in its own order."""
    kernels = [step.kernel for step in lookups.parts[0] if isinstance(step, Stack) and step.kernel is not None]
    if any(kernel.form.widened for kernel in kernels):
        return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=LAST_BITS)
    return same(found, expected)


def assert_together(packed: PackedCollection) -> None:
    """All tables are taken at once, those next to each other of one shape by one step, and rows are each one's own."""
    lookups = Lookups(packed)
    places = [pack.coded[0].joint_place() for _, pack in packed.packed_tables()]
    assert None not in places
    assert [isinstance(step, Stack) for step in lookups.parts[0]] == [True] * len(list(groupby(places)))
    for batch_size in BATCHES:
        ids = ids_of(batch_size, seed=batch_size)
        expected = one_by_one(packed, ids)
        (found,) = lookups(ids, {}, num_rows=batch_size)
        assert alike(found, expected, lookups=lookups)
        (again,) = lookups(torch.stack(list(ids.values())), {}, num_rows=batch_size)
        assert alike(again, expected, lookups=lookups)
        (padded,) = lookups(ids, {}, num_rows=batch_size, padded=batch_size + 3)
        more = {feature: F.pad(own, (0, 3)) for feature, own in ids.items()}
        assert alike(padded, one_by_one(packed, more), lookups=lookups)
    blocks = [own for (own,) in lookups.blocks(ids_of(70), {}, num_rows=70, block_rows=32)]
    parts = [{feature: own[at : at + 32] for feature, own in ids_of(70).items()} for at in (0, 32, 64)]
    assert alike(torch.cat(blocks), torch.cat([one_by_one(packed, part) for part in parts]), lookups=lookups)


CASES = [
    *[(m, c) for m in ("uniform_dim", "mgqe", "dpq", "deeplight") for c in ("fp32", "fp16", "int8", "int4")],
    *[(m, "int6") for m in ("full", "mgqe", "deeplight")],
    *[("mde", c) for c in ("fp32", "int4")],
    *[("mgqe", c) for c in ("bf16", "int2", "int3")],
    *[(m, "int4_rowwise") for m in ("full", "hash", "mde", "mgqe", "deeplight")],
]


@pytest.mark.parametrize(("method", "codec"), CASES)
def test_tables_of_a_method(method: str, codec: str, tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", TableCollection(specs_of(method), backend="torch"), codec=codec)
    packed = load_bundle(tmp_path / "b")
    assert_together(packed)


@pytest.mark.parametrize("dim", [3, 6])
@pytest.mark.parametrize("codec", ["fp32", "int4"])
def test_codes_whose_rows_begin_anywhere(dim: int, codec: str, tmp_path: Path) -> None:
    """Of so few columns a row's codes are no whole bytes."""
    save_bundle(tmp_path / "b", TableCollection(specs_of("mgqe", dim=dim), backend="torch"), codec=codec)
    assert_together(load_bundle(tmp_path / "b"))


@pytest.mark.parametrize("codec", ["fp32", "int8"])
@pytest.mark.parametrize(("budget", "form"), [(0.5, "bitmap"), (0.06, "list8"), (0.004, "list16"), (1.0, "dense")])
def test_sparse_tables_in_each_form(budget: float, form: str, codec: str, tmp_path: Path) -> None:
    # Their budgets are one pool: of rows of one spread each table keeps some.
    specs = [replace(spec, budget=budget, init_std=0.05) for spec in specs_of("deeplight")]
    save_bundle(tmp_path / "b", TableCollection(specs, backend="torch"), codec=codec)
    packed = load_bundle(tmp_path / "b")
    forms = {
        matrix.form for _, pack in packed.packed_tables() for matrix in pack.coded if isinstance(matrix, SparseRows)
    }
    assert forms == {form}
    assert_together(packed)


@pytest.mark.parametrize("codec", ["fp32", "int4"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.97, 1.0])
def test_rows_that_are_kept(kept: float, codec: str, tmp_path: Path) -> None:
    """Of `optembed`: which ids have a row says a bitmap."""
    generator = torch.Generator().manual_seed(3)
    specs = []
    for spec in specs_of("optembed"):
        mask = torch.rand(spec.num_embeddings, generator=generator) < kept
        found = {"kept": pack_values(mask, bits=1), "width": torch.tensor(5)}
        specs.append(replace(spec, stage=1, found=found))
    save_bundle(tmp_path / "b", TableCollection(specs, backend="torch"), codec=codec)
    assert_together(load_bundle(tmp_path / "b"))


def test_bags_beside_single_ids(tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", TableCollection(specs_of("mgqe"), backend="torch"), codec="int8")
    packed = load_bundle(tmp_path / "b")
    lookups, ids = Lookups(packed, bags=["f1"]), ids_of(4)
    (found,) = lookups(ids, {"f1": torch.tensor([2, 0, 1, 1])}, num_rows=4)
    expected = one_by_one(packed, ids)
    assert torch.equal(found[:, :16], expected[:, :16])
    assert torch.equal(found[:, 32:], expected[:, 32:])
    assert torch.equal(found[0, 16:32], expected[0, 16:32] + expected[1, 16:32])
    with pytest.raises(DataError, match="feature 'f1' has bags, and the ids are one tensor"):
        lookups(torch.zeros(2, 4, dtype=torch.int64), {"f1": torch.tensor([2, 0, 1, 1])}, num_rows=4)


def test_ids_as_one_tensor_are_checked(tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", TableCollection(specs_of("hash")))
    packed = load_bundle(tmp_path / "b")
    lookups, ids = Lookups(packed), torch.tensor([[3], [330], [361]])
    expected = lookups(dict(zip(FEATURES, ids, strict=True)), {}, num_rows=1)[0]
    assert torch.equal(lookups(ids.int(), {}, num_rows=1)[0], expected)
    assert torch.equal(lookups(ids.t().contiguous().t(), {}, num_rows=1)[0], expected)
    for wrong in (331, -1):
        with pytest.raises(IdRangeError, match=f"feature 'f1' has id {wrong}, outside table 't1' of 331 ids"):
            lookups(torch.tensor([[3], [wrong], [361]]), {}, num_rows=1)
    with pytest.raises(DataError, match=r"the ids are a tensor of shape \[2, 1\].*\[3, 1\] here"):
        lookups(ids[:2], {}, num_rows=1)
    with pytest.raises(DataError, match="must be integers"):
        lookups(ids.float(), {}, num_rows=1)


@pytest.mark.parametrize("method", ["hash", "frequency_cut"])
def test_an_address_in_another_table_is_refused(method: str, tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", TableCollection(specs_of(method)))
    packed = load_bundle(tmp_path / "b")
    packed.packs["t1"].spine.num_rows = 300  # of fewer rows: the others' lie behind them
    lookups = Lookups(packed)
    with pytest.raises(CheckpointError, match=r"ids of table 't1' can't be looked up: they have rows .* is damaged"):
        lookups({feature: torch.arange(299) for feature in FEATURES}, {}, num_rows=299)


def test_entries_beyond_the_values_are_refused(tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", TableCollection(specs_of("deeplight"), backend="torch"))
    packed = load_bundle(tmp_path / "b")
    packed.packs["t1"].coded[0].samples.add_(100_000)
    with pytest.raises(CheckpointError, match=r"tables from 't0' to 't2' can't be looked up: .*beyond its values"):
        Lookups(packed)(ids_of(3), {}, num_rows=3)


def test_kept_rows_beyond_the_table_are_refused(tmp_path: Path) -> None:
    mask = torch.arange(SIZES[0]) % 3 == 0
    found = {"kept": pack_values(mask, bits=1), "width": torch.tensor(5)}
    spec = replace(specs_of("optembed")[0], stage=1, found=found)
    save_bundle(tmp_path / "b", TableCollection([spec], backend="torch"))
    packed = load_bundle(tmp_path / "b")
    packed.packs["t0"].spine.samples.add_(1000)
    with pytest.raises(CheckpointError, match="ids of table 't0' can't be looked up: they have rows"):
        Lookups(packed)({"f0": torch.tensor([3])}, {}, num_rows=1)


def test_hashes_by_numpy_are_those_of_tensors() -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(0, 2**64, (5, 1000), dtype=np.uint64)
    salts = generator.integers(0, 2**64, (5, 1), dtype=np.uint64)
    sizes = np.array([[1], [2], [999], [2**31], [2**62]], dtype=np.uint64)
    found = hash_words(words, num_rows=sizes, salt=salts)
    ids, num_rows, salt = (torch.from_numpy(array.view(np.int64)) for array in (words, sizes, salts))
    assert torch.equal(torch.from_numpy(found.view(np.int64)), hash_rows(ids, num_rows=num_rows, salt=salt))


def test_a_method_with_steps_of_its_own_is_asked_alone() -> None:
    """What its base class knows of several tables is not what it does."""

    class Other(Hash):
        def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
            return (ids_N * 0,)

    spec = specs_of("hash")[0]
    packed = PackedTable(Other(spec), [next(iter(_pack(spec).coded))], [0])
    assert Rows.of(Use(spec, packed, "f0")) is None
    assert Rows.of(Use(spec, _pack(spec), "f0")) is not None


def _pack(spec: TableSpec) -> PackedTable:
    from embank.tables import pack_collection

    ((_, pack),) = pack_collection(TableCollection([spec])).packed_tables()
    return pack


@pytest.mark.parametrize("num_ids", [0, 1, 4, 9])
def test_in_blocks(num_ids: int) -> None:
    rows_KB = np.arange(2 * num_ids).reshape(2, num_ids)
    seen: list[int] = []

    def take(own_Kb: np.ndarray) -> Tensor:
        seen.append(own_Kb.shape[1])
        return torch.from_numpy(own_Kb.T[..., None].astype(np.float32))

    assert torch.equal(in_blocks(take, block=4)(rows_KB), torch.from_numpy(rows_KB.T[..., None].astype(np.float32)))
    assert max(seen) <= 4
