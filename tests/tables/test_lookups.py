"""Tables over plain tensors: what `PackedCollection` gives, in fewer calls."""

import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.tables import (
    ConfigError,
    DataError,
    IdRangeError,
    PackedCollection,
    PackedTable,
    TableCollection,
    TableSpec,
    encode,
    load_bundle,
    pack_collection,
    save_bundle,
)
from embank.tables.collections.bags import Bags
from embank.tables.serving.lookups import Lookups
from embank.tables.serving.stacks import Stack
from tests.tables.batches import random_kjt

SPECS = [
    TableSpec(name="b", num_embeddings=30, embedding_dim=8, feature_names=["b"]),
    TableSpec(name="a", num_embeddings=50, embedding_dim=8, feature_names=["a", "again"]),
    TableSpec(name="c", num_embeddings=700, embedding_dim=8, feature_names=["c"], method="hash", budget=0.5),
    TableSpec(name="d", num_embeddings=31, embedding_dim=4, feature_names=["d"]),
    TableSpec(name="e", num_embeddings=40, embedding_dim=8, feature_names=["e"], method="compositional", budget=0.5),
    TableSpec(name="f", num_embeddings=60, embedding_dim=8, feature_names=["f"], pooling="mean"),
    TableSpec(name="a1", num_embeddings=50, embedding_dim=1, feature_names=["a"]),
    TableSpec(name="b1", num_embeddings=29, embedding_dim=1, feature_names=["b"]),
]
SIZES = {"a": 50, "again": 50, "b": 29, "c": 700, "d": 31, "e": 40, "f": 60}


def plain(kjt: KeyedJaggedTensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return {key: kjt[key].values() for key in kjt.keys()}, {key: kjt[key].lengths() for key in kjt.keys()}  # noqa: SIM118


@pytest.mark.parametrize("bags", [[], ["f"], ["a", "c", "e", "f"], list(SIZES)])
def test_as_a_packed_collection(bags: list[str], tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", TableCollection(SPECS))
    packed = load_bundle(tmp_path / "b")
    kinds = [({name: SIZES[name] for name in SIZES if (name in bags) is many}, many) for many in (False, True)]
    kjts = [random_kjt(own, batch_size=40, seed=1, single=not many) for own, many in kinds if own]
    kjt = KeyedJaggedTensor.concat(kjts)
    ids, lengths = plain(kjt)
    expected = packed._one_by_one(Bags(kjt))
    for same in (packed, pickle.loads(pickle.dumps(packed)), deepcopy(packed)):
        for _ in range(2):
            assert torch.equal(same(kjt).values(), expected)
    lookups = Lookups(packed, bags=bags, parts=[7, 2])
    embeddings, weights = lookups(ids, lengths, num_rows=40)
    assert torch.equal(torch.cat([embeddings, weights], dim=1), expected)
    padded = torch.cat(lookups(ids, lengths, num_rows=40, padded=48), dim=1)
    assert torch.equal(padded[:40], expected)
    blocks = [torch.cat(parts, dim=1) for parts in lookups.blocks(ids, lengths, num_rows=40, block_rows=16)]
    assert [len(block) for block in blocks] == [16, 16, 8]
    assert torch.equal(torch.cat(blocks), expected)


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
def test_a_model_that_is_cast_leaves_served_rows_alone(codec: str, cast: str) -> None:
    spec = TableSpec(name="a", num_embeddings=20, embedding_dim=8, feature_names=["a"])
    kjt = KeyedJaggedTensor(keys=["a"], values=torch.tensor([3, 4]), lengths=torch.tensor([1, 1]))
    model = torch.nn.ModuleDict({"tables": pack_collection(TableCollection([spec]), codec=codec)})
    expected, nbytes = model["tables"](kjt).values(), model["tables"].nbytes()
    getattr(model, cast)()
    assert torch.equal(model["tables"](kjt).values(), expected)
    assert model["tables"].nbytes() == nbytes


def test_a_collection_whose_tensors_were_replaced() -> None:
    """What was looked up before is not kept."""
    packed = pack_collection(TableCollection(SPECS))
    kjt = random_kjt(SIZES, batch_size=8, seed=1)
    before = packed(kjt).values()
    state = {k: v if k.endswith("_extra_state") else v * 0 for k, v in packed.state_dict().items()}
    packed.load_state_dict(state, assign=True)
    assert not packed(kjt).values().any()
    model = torch.nn.ModuleDict({"tables": pack_collection(TableCollection(SPECS))})
    assert torch.equal(model["tables"](kjt).values(), before)
    model.load_state_dict({f"tables.{k}": v for k, v in state.items()}, assign=True)  # of what holds the tables
    assert not model["tables"](kjt).values().any()
    packed = pack_collection(TableCollection(SPECS))
    assert torch.equal(packed(kjt).values(), before)
    packed._apply(lambda tensor: tensor * 0)
    assert not packed(kjt).values().any()


def _loaded(one: PackedCollection, other: PackedCollection) -> None:
    for own, its in zip(one.packs, other.packs, strict=True):
        own.load_state_dict(its.state_dict(), assign=True)


def _set(one: PackedCollection, other: PackedCollection) -> None:
    for own, its in zip(one.packs.modules(), other.packs.modules(), strict=True):
        for name, tensor in its._buffers.items():
            setattr(own, name, tensor)


def _set_data(one: PackedCollection, other: PackedCollection) -> None:
    for own, its in zip(one.buffers(), other.buffers(), strict=True):
        own.data = its.data


def _copied(one: PackedCollection, other: PackedCollection) -> None:
    for own, its in zip(one.packs, other.packs, strict=True):
        own.load_state_dict(its.state_dict())


def _put_in(one: PackedCollection, other: PackedCollection) -> None:
    for name, pack in other.packs._modules.items():
        setattr(one.packs, name, pack)


@pytest.mark.parametrize("codec", ["fp32", "int4"])
@pytest.mark.parametrize("change", [_loaded, _set, _set_data, _copied, _put_in])
def test_tables_whose_tensors_were_replaced_one_by_one(change: Callable[..., None], codec: str) -> None:
    """The collection is not told; what it serves are the new rows."""
    one, other = (pack_collection(TableCollection(SPECS, seed=seed), codec=codec) for seed in (1, 2))
    other.packs["c"].spine.salt.add_(12345)
    kjt = random_kjt(SIZES, batch_size=8, seed=1)
    before, expected = one(kjt).values(), other(kjt).values()
    assert torch.equal(one(kjt).values(), before)
    assert not torch.equal(before, expected)
    change(one, other)
    assert torch.equal(one(kjt).values(), expected)


def test_tensors_that_are_others_for_one_call() -> None:
    one, other = (pack_collection(TableCollection(SPECS, seed=seed)) for seed in (1, 2))
    kjt = random_kjt(SIZES, batch_size=8, seed=1)
    tensors, expected = dict(other.named_buffers()), other(kjt).values()
    assert torch.equal(torch.func.functional_call(one, tensors, (kjt,)).values(), expected)
    before = one(kjt).values()
    assert torch.equal(before, one._one_by_one(Bags(kjt)))
    assert torch.equal(torch.func.functional_call(one, tensors, (kjt,)).values(), expected)
    assert torch.equal(one(kjt).values(), before)


def test_parts_of_a_packed_table_are_not_replaced() -> None:
    """Its lookups hold them: neither would the new ones be read, nor the old ones be saved."""
    one, other = (pack_collection(TableCollection(SPECS, seed=seed)).packs["c"] for seed in (1, 2))
    with pytest.raises(ConfigError, match=r"matrix 0 of a packed table can't be replaced.*PackedTable\(spine"):
        one.matrices[0] = other.matrices[0]
    with pytest.raises(ConfigError, match="'spine' of a packed table can't be replaced"):
        one.spine = other.spine
    for same in (deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(same.lookup(torch.arange(9)), one.lookup(torch.arange(9)))
        with pytest.raises(ConfigError, match="matrix 0"):
            same.matrices[0] = other.matrices[0]
    rows = one.lookup(torch.arange(9))
    assert torch.equal(one.half().lookup(torch.arange(9)), rows), "a cast leaves served rows alone, as of a collection"


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("dim", [1, 3])
def test_rows_that_are_padded_in_memory_are_taken_from_where_they_are(dim: int, codec: str) -> None:
    """FBGEMM's rows have a multiple of four numbers; a table of fewer is a view of some of their columns."""
    sizes = {"a": 40, "b": 9, "c": 1, "d": 70}
    specs = [TableSpec(name=n, num_embeddings=s, embedding_dim=dim, feature_names=[n]) for n, s in sizes.items()]
    tables = TableCollection(specs, seed=2)
    assert not tables.weights()["a"].is_contiguous()
    ids = torch.tensor([[39, 0, 7], [8, 1, 8], [0, 0, 0], [69, 3, 69]])
    kjt = KeyedJaggedTensor(keys=list(sizes), values=ids.flatten(), lengths=torch.ones(12, dtype=torch.int32))
    packed = pack_collection(tables, codec=codec)
    expected = torch.cat([pack.lookup(ids[i]) for i, (_, pack) in enumerate(packed.packed_tables())], dim=1)
    assert torch.equal(packed(kjt).values(), expected)
    if codec == "fp32":
        assert torch.equal(expected, tables(kjt).values())


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16", "int8"])
def test_rows_that_lie_column_by_column_are_not_taken_for_others(codec: str) -> None:
    specs = [TableSpec(name=n, num_embeddings=9, embedding_dim=8, feature_names=[n]) for n in "ab"]
    rows = [torch.randn(8, 9, generator=torch.Generator().manual_seed(seed)).t() for seed in (0, 1)]
    packs = [
        PackedTable(pack.spine, [encode(own, codec=codec)], [0])
        for own, (_, pack) in zip(rows, pack_collection(TableCollection(specs)).packed_tables(), strict=True)
    ]
    ids = torch.tensor([8, 0, 3, 5])
    kjt = KeyedJaggedTensor(keys=["a", "b"], values=ids, lengths=torch.ones(4, dtype=torch.int64))
    taken = torch.cat([own[ids[2 * i : 2 * i + 2]] for i, own in enumerate(rows)], dim=1)
    torch.testing.assert_close(PackedCollection(specs, packs)(kjt).values(), taken, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int3"])
def test_a_batch_of_no_rows(codec: str) -> None:
    """Comes out as [0, sum D], whether features have one id in each row of other batches or bags."""
    packed = pack_collection(TableCollection(SPECS), codec=codec)
    none = torch.empty(0, dtype=torch.int64)
    kjt = KeyedJaggedTensor(keys=list(SIZES), values=none, lengths=none)
    assert packed(kjt).values().shape == (0, sum(packed.dims))
    parts = Lookups(packed, parts=[7, 2], bags=["f"])(dict.fromkeys(SIZES, none), {"f": none}, num_rows=0)
    assert [tuple(part.shape) for part in parts] == [(0, 52), (0, 2)]


def test_plain_tables_next_to_each_other_are_one_matrix(tmp_path: Path) -> None:
    """Plain and hashed rows of one width are taken at once, in whatever order they lie in the file; others alone."""
    narrow = {"d": "x", "a1": "y", "b1": "z"}  # in a file, tensors lie by name
    specs = [replace(spec, name=narrow.get(spec.name, spec.name)) for spec in SPECS]
    save_bundle(tmp_path / "b", TableCollection(specs))
    lookups = Lookups(load_bundle(tmp_path / "b"), bags=["f"], parts=[7, 2])
    found = [[len(s.columns) if isinstance(s, Stack) else s.use.spec.name for s in part] for part in lookups.parts]
    assert found == [[4, 1, "e", "f"], [2]]
    assert lookups.features == ["b", "a", "again", "c", "d", "e", "f"]


CODECS = ["fp32", "fp16", "bf16", "int8", "int6", "int4", "int3", "int2"]


@pytest.mark.parametrize("codec", CODECS)
def test_coded_tables_are_taken_at_once(codec: str, tmp_path: Path) -> None:
    """The rows that each table's own `take` has, plain, hashed and cut ones side by side, to the bit."""
    methods = {3: "hash", 4: "frequency_cut", 5: "hash", 8: "frequency_cut"}
    wide = [
        TableSpec(
            name=f"t{k}",
            num_embeddings=100 + 13 * k,
            embedding_dim=16,
            feature_names=[f"f{k}"],
            method=methods.get(k, "full"),
            budget=0.4 if k in methods else None,
        )
        for k in range(10)
    ]
    narrow = [
        replace(s, name=f"w{k}", embedding_dim=1, method="full", budget=None) for k, s in enumerate(wide) if k < 4
    ]
    save_bundle(tmp_path / "b", TableCollection([*wide, *narrow]), codec=codec)
    packed = load_bundle(tmp_path / "b")
    lookups = Lookups(packed, parts=[10, 4])
    sizes = [len(step.columns) if isinstance(step, Stack) else 0 for part in lookups.parts for step in part]
    assert sizes == [10, 4]
    for batch_size in (1, 37, 1000):
        kjt = random_kjt(
            {f"f{k}": 100 + 13 * k for k in range(10)}, batch_size=batch_size, seed=batch_size, single=True
        )
        ids, _ = plain(kjt)
        found = torch.cat(lookups(ids, {}, num_rows=batch_size), dim=1)
        assert torch.equal(found, packed._one_by_one(Bags(kjt)))


@pytest.mark.parametrize("method", ["dpq", "mgqe"])
def test_product_codes_are_taken_at_once(method: str, tmp_path: Path) -> None:
    tables = [
        TableSpec(
            name=f"t{k}",
            num_embeddings=300 + 17 * k,
            embedding_dim=8,
            feature_names=[f"f{k}"],
            method=method,
            budget=0.5,
            counts=torch.arange(300 + 17 * k, 0, -1),
        )
        for k in range(5)
    ]
    save_bundle(tmp_path / "b", TableCollection(tables))
    packed = load_bundle(tmp_path / "b")
    lookups = Lookups(packed)
    assert [isinstance(step, Stack) for part in lookups.parts for step in part] == [True]
    for batch_size in (1, 37, 1000):
        sizes_of = {f"f{k}": 300 + 17 * k for k in range(5)}
        kjt = random_kjt(sizes_of, batch_size=batch_size, seed=batch_size, single=True)
        (found,) = lookups(plain(kjt)[0], {}, num_rows=batch_size)
        assert torch.equal(found, packed._one_by_one(Bags(kjt)))


def test_ids_fit_the_smallest_table_of_a_feature(tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", TableCollection(SPECS))
    lookups = Lookups(load_bundle(tmp_path / "b"))
    ids = {name: torch.tensor([0, size - 1]) for name, size in SIZES.items()}
    lookups(ids, {}, num_rows=2)
    for name, size in SIZES.items():
        for wrong in (size, -1, 2**40, -(2**63)):
            with pytest.raises(IdRangeError, match=f"feature '{name}' has id {wrong}, outside table '{name[0]}"):
                lookups(ids | {name: torch.tensor([0, wrong])}, {}, num_rows=2)
            among = torch.cat([torch.zeros(300, dtype=torch.int64), torch.tensor([wrong])])  # many are compared by one
            many = {other: torch.full((301,), size - 1) for other, size in SIZES.items()} | {name: among}
            with pytest.raises(IdRangeError, match=f"feature '{name}' has id {wrong}, outside table '{name[0]}"):
                lookups(many, {}, num_rows=301)
    with pytest.raises(DataError, match=r"feature 'b' has ids of shape \[2\] for 3 rows"):
        lookups(ids, {}, num_rows=3)


def test_ids_that_are_no_tensors() -> None:
    specs = [TableSpec(name=n, num_embeddings=9, embedding_dim=2, feature_names=[n]) for n in ("a", "b")]
    packed = pack_collection(TableCollection(specs))
    single, bagged = Lookups(packed), Lookups(packed, bags=["b"])
    one, numbers = torch.tensor([1]), np.array([1])
    for ids in (None, 3, [1, 2], np.array([[1], [2]]), [one, one]):
        with pytest.raises(DataError, match=f"the ids are a {type(ids).__name__}; give a dict of tensors"):
            single(ids, {}, num_rows=1)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=f"the lengths are a {type(ids).__name__}; give a dict of tensors"):
            bagged({"a": one, "b": one}, ids, num_rows=1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the ids of feature 'b' are a ndarray; give a tensor"):
        single({"a": one, "b": numbers}, {}, num_rows=1)  # type: ignore[dict-item]
    with pytest.raises(DataError, match="feature 'b' needs ids and lengths of its bags as tensors"):
        bagged({"a": one, "b": numbers}, {"b": one}, num_rows=1)  # type: ignore[dict-item]
    for block_rows in (0, -1):
        with pytest.raises(ConfigError, match=f"block_rows is {block_rows}; give 1 or more"):
            next(single.blocks({"a": one, "b": one}, {}, num_rows=1, block_rows=block_rows))


@pytest.mark.parametrize("lengths", [[2**62] * 4 + [5], [2**63 - 1, 2**63 - 1, 7, 0, 0], [6, -1, 0, 0, 0]])
def test_lengths_that_sum_up_to_the_ids_only_past_int64(lengths: list[int]) -> None:
    spec = TableSpec(name="b", num_embeddings=20, embedding_dim=4, feature_names=["b"])
    tables = TableCollection([spec])
    packed = pack_collection(tables)
    lookups = Lookups(packed, bags=["b"])
    kjt = KeyedJaggedTensor(keys=["b"], values=torch.arange(5), lengths=torch.tensor(lengths))
    for collection in (tables, packed):
        with pytest.raises(DataError, match="lengths of feature 'b' sum to|a length is the number of ids in a bag"):
            collection(kjt)
    assert int(torch.tensor(lengths).sum()) == 5
    with pytest.raises(DataError, match="give the length of a bag for each row, 0 or more, that sum up to the ids"):
        lookups({"b": torch.arange(5)}, {"b": torch.tensor(lengths)}, num_rows=5)


def test_features_of_a_keyed_jagged_tensor_in_any_order() -> None:
    """Those that no table uses are left out."""
    specs = [TableSpec(name=f"t{k}", num_embeddings=9, embedding_dim=2, feature_names=[f"f{k}"]) for k in range(3)]
    packed = pack_collection(TableCollection(specs))
    ids = {key: torch.randint(9, (5,), generator=torch.Generator().manual_seed(n)) for n, key in enumerate("abcd")}
    names = {"f2": "a", "other": "b", "f0": "c", "f1": "d"}

    def kjt_of(names: dict[str, str]) -> KeyedJaggedTensor:
        values = torch.cat([ids[name] for name in names.values()])
        return KeyedJaggedTensor(keys=list(names), values=values, lengths=torch.ones(5 * len(names), dtype=torch.int32))

    expected = torch.cat([packed.packs[f"t{k}"].lookup(ids[names[f"f{k}"]]) for k in range(3)], dim=1)
    assert torch.equal(packed(kjt_of(names)).values(), expected)
    with pytest.raises(DataError, match="feature 'f1'"):
        packed(kjt_of({key: name for key, name in names.items() if key != "f1"}))
