"""Lookups of SequenceCollection against plain nn.Embedding tables, its inputs and its errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from embank.tables import (
    ConfigError,
    DataError,
    IdRangeError,
    RowOptimizer,
    SequenceCollection,
    TableCollection,
    TableSpec,
)
from tests.tables.batches import random_kjt
from tests.tables.held import constants
from tests.tables.sequences import GROUPS, Naive, mixed_specs, plain_specs, random_ids, towards_one

BACKENDS = ["fbgemm", "torch"]


@pytest.mark.parametrize("dedupe", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
class TestBothBackendsWithAndWithoutDedupe:
    def test_rows_are_those_of_plain_embeddings(self, backend: str, dedupe: bool) -> None:
        tables = SequenceCollection(plain_specs(), backend=backend, dedupe=dedupe)
        ids = random_ids(0)
        out = tables(ids)
        assert {group: tuple(rows.shape) for group, rows in out.items()} == {"first": (3, 5, 19), "second": (3, 5, 16)}
        assert tables.dims == {"first": 19, "second": 16}
        for group, rows in Naive(tables)(ids).items():
            assert torch.equal(out[group], rows)

    def test_rows_equal_those_of_a_pooled_collection_for_every_kind_of_method(self, backend: str, dedupe: bool) -> None:
        tables = SequenceCollection(mixed_specs(), seed=3, backend=backend, dedupe=dedupe)
        ids = random_ids(1)
        for group, names in {"first": ["both", "a", "b"], "second": ["both", "c"]}.items():
            columns = []
            for h, name in enumerate(names):
                spec = next(spec for spec in mixed_specs() if spec.name == name)
                pooled = TableCollection([spec], seed=3, backend=backend)
                flat = ids[group][:, :, h].reshape(-1)
                ones = torch.ones(flat.numel() * len(spec.feature_names), dtype=torch.int32)
                kjt = KeyedJaggedTensor(
                    keys=list(spec.feature_names), values=flat.repeat(len(spec.feature_names)), lengths=ones
                )
                columns.append(pooled(kjt).values()[:, : spec.embedding_dim].view(3, 5, -1))
            torch.testing.assert_close(tables(ids)[group], torch.cat(columns, dim=2), rtol=1e-6, atol=1e-6)

    def test_address_early_equals_address_late(self, backend: str, dedupe: bool) -> None:
        tables = SequenceCollection(mixed_specs(), backend=backend, dedupe=dedupe)
        ids = random_ids(2)
        addressed = tables.address(ids).to(torch.device("cpu"))
        tables.prefetch(addressed)
        late, early = tables(ids), tables(addressed)
        assert all(torch.equal(late[group], early[group]) for group in GROUPS)

    @pytest.mark.parametrize(("batch_size", "num_tokens"), [(0, 5), (3, 0), (0, 0)])
    def test_empty_batches(self, backend: str, dedupe: bool, batch_size: int, num_tokens: int) -> None:
        for specs in (plain_specs(), mixed_specs()):
            tables = SequenceCollection(specs, backend=backend, dedupe=dedupe)
            before = {n: w.clone() for n, w in tables.weights().items()}
            out = tables(random_ids(0, batch_size=batch_size, num_tokens=num_tokens))
            width = 19 if specs[0].method == "full" else 8 + 8 + 3
            assert out["first"].shape == (batch_size, num_tokens, width)
            towards_one(out).backward()
            tables.update_rows()
            assert all(torch.equal(w, before[n]) for n, w in tables.weights().items())

    def test_layout_and_type_of_ids_do_not_matter(self, backend: str, dedupe: bool) -> None:
        tables = SequenceCollection(mixed_specs(), backend=backend, dedupe=dedupe)
        ids = random_ids(5)
        expected = tables(ids)
        head_major = {group: t.permute(2, 0, 1).contiguous().permute(1, 2, 0) for group, t in ids.items()}
        padded = {group: torch.cat([t, t.new_full((3, 2, t.shape[2]), -1)], dim=1)[:, :5] for group, t in ids.items()}
        narrow = {group: t.int() for group, t in ids.items()}
        for other in (head_major, padded, narrow):
            out = tables(other)
            assert all(torch.equal(out[group], expected[group]) for group in GROUPS)


def test_dedupe_asks_for_each_row_once() -> None:
    tables = SequenceCollection(plain_specs(), dedupe=True)
    ids = {"first": torch.zeros(4, 5, 3, dtype=torch.int64), "second": torch.ones(4, 5, 2, dtype=torch.int64)}
    addressed = tables.address(ids)
    lengths = addressed.paths["rows"].offsets.diff().view(4, 2)
    assert addressed.paths["rows"].row_ids.tolist() == [0, 1, 0, 0, 1]
    assert lengths.tolist() == [[1, 1], [1, 0], [1, 0], [1, 0]]
    assert SequenceCollection(plain_specs()).address(ids).paths["rows"].row_ids.numel() == 4 * 5 * 5


def test_jagged_ids_as_in_embedding_collection() -> None:
    """Same keys, values and lengths as TorchRec's own module."""
    specs = [
        TableSpec(name="A", num_embeddings=50, embedding_dim=8, feature_names=["user", "item"]),
        TableSpec(name="B", num_embeddings=30, embedding_dim=8, feature_names=["item"]),
    ]
    theirs = EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=s.name, num_embeddings=s.num_embeddings, embedding_dim=8, feature_names=[*s.feature_names]
            )
            for s in specs
        ]
    )
    kjt = random_kjt({"user": 50, "item": 30}, batch_size=7, seed=3)
    for dedupe in (False, True):
        ours = SequenceCollection(specs, dedupe=dedupe)
        theirs.load_state_dict({f"embeddings.{n}.weight": w for n, w in ours.weights().items()})
        out, expected = ours(kjt), theirs(kjt)
        assert out.keys() == expected.keys() == {"user", "item@A", "item@B"}
        for key, jagged in expected.items():
            assert torch.equal(out[key].values(), jagged.values())
            assert torch.equal(out[key].lengths(), jagged.lengths())
        empty = KeyedJaggedTensor(
            keys=["user", "item"], values=torch.empty(0, dtype=torch.int64), lengths=torch.zeros(4, dtype=torch.int32)
        )
        assert ours(empty)["user"].values().shape == (0, 8)
        assert ours(empty)["user"].lengths().tolist() == [0, 0]


def test_jagged_ids_of_every_kind_of_method() -> None:
    """Each id's row is the pooled collection's for a bag of that id alone."""
    specs = [replace(spec, feature_names=[spec.name]) for spec in mixed_specs()]
    kjt = random_kjt({spec.name: spec.num_embeddings for spec in specs}, batch_size=6, seed=1)
    out, pooled = SequenceCollection(specs)(kjt), TableCollection(specs)
    for spec in specs:
        ids = kjt[spec.name].values()
        single = KeyedJaggedTensor(
            keys=[s.name for s in specs],
            values=torch.cat([ids if s is spec else torch.zeros_like(ids) for s in specs]),
            lengths=torch.ones(len(specs) * len(ids), dtype=torch.int32),
        )
        torch.testing.assert_close(out[spec.name].values(), pooled(single)[spec.name])


def test_only_dense_tables() -> None:
    """A collection without a row store still answers, and has nothing to save or to update."""
    tables = SequenceCollection(
        [TableSpec(name="s", num_embeddings=9, embedding_dim=4, feature_names=["g"], method="test_signs")]
    )
    ids = torch.arange(6).view(2, 3, 1)
    assert torch.equal(tables({"g": ids})["g"], (1.0 - 2 * (ids % 2)).expand(2, 3, 4))
    assert (tables.row_stores(), tables.weights()) == ([], {})
    tables.update_rows()
    tables.prefetch(tables.address({"g": ids}))


@pytest.mark.parametrize("wrong", [11, -1])
def test_ids_out_of_range_name_table_group_and_id(wrong: int) -> None:
    ids = random_ids(0)
    ids["first"][1, 2, 1] = wrong
    message = rf"group 'first' has id {wrong}, outside table 'a' of 11 ids \(0 .. 10\)"
    with pytest.raises(IdRangeError, match=message):
        SequenceCollection(plain_specs()).address(ids)
    with pytest.raises(IndexError, match="feature 'user' has id 50, outside table 'A' of 50 ids"):
        SequenceCollection([TableSpec(name="A", num_embeddings=50, embedding_dim=8, feature_names=["user"])])(
            KeyedJaggedTensor(keys=["user"], values=torch.tensor([50]), lengths=torch.ones(1, dtype=torch.int32))
        )


def test_bad_input_is_refused() -> None:
    tables = SequenceCollection(plain_specs())
    ids = random_ids(0)
    with pytest.raises(
        DataError, match="table 'both' looks up feature 'first', which the batch lacks; did you mean 'frst'"
    ):
        tables({"frst": ids["first"], "second": ids["second"]})
    with pytest.raises(DataError, match=r"group 'first' have shape \(3, 5, 2\); give \[B, T, 3\]"):
        tables({**ids, "first": ids["second"]})
    with pytest.raises(DataError, match=r"group 'second' have shape \(3, 2\); give \[B, T, 2\]"):
        tables({**ids, "second": ids["second"][:, 0]})
    for given in ([[[1]]], np.array([[[1]]]), None):
        with pytest.raises(DataError, match=r"ids of group 'first' are a (list|ndarray|NoneType); give a tensor of"):
            tables({**ids, "first": given})  # type: ignore[dict-item]
        with pytest.raises(
            DataError, match=r"the input is a (list|ndarray|NoneType); give tensors .* \{'first': ids\}"
        ):
            tables(given)
    with pytest.raises(DataError, match="the input is a Tensor; give tensors of ids"):
        tables(ids["first"])
    with pytest.raises(DataError, match="ids of group 'first' are torch.bool; they must be integers"):
        tables({**ids, "first": ids["first"] > 0})
    with pytest.raises(DataError, match="ids of group 'first' are torch.float32; they must be integers"):
        tables({**ids, "first": ids["first"].float()})


def test_bad_collections() -> None:
    spec = plain_specs()[0]
    with pytest.raises(ConfigError, match="table 'both' has pooling 'mean'; a SequenceCollection does not pool"):
        SequenceCollection([replace(spec, pooling="mean")])
    with pytest.raises(ConfigError, match="a SequenceCollection needs at least one TableSpec"):
        SequenceCollection([])
    with pytest.raises(ConfigError, match="has no 'adam' for rows"):
        SequenceCollection([spec], optimizer=RowOptimizer(name="adam"))


def test_bytes_are_those_of_the_held_tensors() -> None:
    specs = [replace(plain_specs()[3], method="hash", budget=0.5)]
    tables = SequenceCollection(specs)
    rows = (4 * 8 * 40 // 2 - 8) // 32
    assert tables.nbytes("serving") == rows * 32 + 8
    assert tables.nbytes("training") == rows * 32 + rows * 4 + 8 + constants(tables)  # the salt is held too
    assert tables.plain_nbytes == 4 * 8 * 40
