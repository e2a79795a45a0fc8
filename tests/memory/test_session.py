"""The read path of decoding: the same rows as in one piece, by another way."""

import os
from pathlib import Path

import pytest
import torch

from embank.tables import ConfigError, DataError, RowTier, SequenceCollection, TableSpec, WorkError
from embank.tables.memory import EngramLayout, MemoryReader, MemorySession, MemoryTables, starts_of_positions
from embank.tables.memory.flat_rows import FlatRows
from tests.memory.small import NUM_TOKENS, engram, memory, stem, tokens, train

pytestmark = pytest.mark.slow


def same(mine, wanted, positions: slice) -> bool:
    return all(
        torch.equal(mine[kind][layer], wanted[kind][layer][:, positions]) for kind in wanted for layer in wanted[kind]
    )


@pytest.mark.parametrize("where", ["memory", "disk", "torch"])
def test_token_by_token_is_the_whole(where: str, tmp_path: Path) -> None:
    tables = memory(tmp_path if where == "disk" else None, backend="torch" if where == "torch" else "fbgemm")
    ids = tokens(length=12)
    wanted, session = tables(ids), MemorySession(tables, 3)
    assert session.reader.flat["engram"].is_view == (where != "torch")
    assert same(session.extend(ids[:, :5]), wanted, slice(0, 5))
    for t in range(5, 9):
        assert same(session.next(ids[:, t].tolist()), wanted, slice(t, t + 1))
    assert same(session.extend(ids[:, 9:10]), wanted, slice(9, 10))
    assert same(session.extend(ids[:, 10:]), wanted, slice(10, 12))
    assert session.length == 12


def test_a_file_that_was_cut_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    tables = memory(tmp_path)
    session = MemorySession(tables, 1)
    session.next([3])
    for file in tmp_path.rglob("*weights*"):
        os.truncate(file, 100)
    with pytest.raises(WorkError, match="has 100 bytes of the .* that the disk tier gave it; something has cut it"):
        session.next([4])


def test_many_sequences_go_the_vectorised_way() -> None:
    tables, ids = memory(), tokens(batch=20)
    wanted, session = tables(ids), MemorySession(tables, 20)
    for t in range(9):
        assert same(session.extend(ids[:, t : t + 1]), wanted, slice(t, t + 1))


def test_rows_that_training_writes_are_read() -> None:
    tables, ids = memory(), tokens()
    session = MemorySession(tables, 3)
    train(tables, steps=2)
    assert same(session.next(ids[:, 0].tolist()), tables(ids), slice(0, 1))


def test_rollback_and_beams() -> None:
    tables, ids = memory(), tokens(length=6)
    session = MemorySession(tables, 3)
    session.extend(ids[:, :4])
    session.extend(tokens(length=3, seed=7))
    session.crop(4)
    session.reorder([2, 2, 0])
    wanted = tables(ids[[2, 2, 0]])
    assert same(session.next(ids[[2, 2, 0], 4].tolist()), wanted, slice(4, 5))


def test_documents_and_padding_in_a_session() -> None:
    tables, ids = memory(), tokens(batch=2, length=8)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 0, 1, 2, 3, 4, 5]])
    starts, dead = starts_of_positions(positions), torch.zeros_like(ids, dtype=torch.bool)
    dead[1, :2] = True
    wanted, session = tables(ids, starts_BT=starts, dead_BT=dead), MemorySession(tables, 2)
    for part in (slice(0, 3), slice(3, 4), slice(4, 8)):
        rows = session.extend(ids[:, part], starts_BT=starts[:, part], dead_BT=dead[:, part])
        assert same(rows, wanted, part)


def test_sessions_may_share_a_reader() -> None:
    tables = memory()
    reader = MemoryReader(tables)
    one, two = (MemorySession(tables, 1, reader=reader) for _ in range(2))
    one.next([3])
    assert torch.equal(one.next([5])["engram"][1], tables(torch.tensor([[3, 5]]))["engram"][1][:, 1:])
    assert torch.equal(two.next([5])["engram"][1], tables(torch.tensor([[5]]))["engram"][1])


def test_refuses_other_sequences_and_tokens() -> None:
    session = MemorySession(memory(), 2)
    with pytest.raises(DataError, match="3 tokens do not go on from 2 sequences"):
        session.next([1, 2, 3])
    with pytest.raises(DataError, match=r"token ids of shape \(3, 4\) do not go on from 2 sequences"):
        session.extend(tokens(batch=3, length=4))
    with pytest.raises(DataError, match="token id 40 is outside the tokenizer's 40 tokens"):
        session.next([1, NUM_TOKENS])
    assert session.length == 0  # nothing has gone on


def test_flat_rows_of_odd_widths_skip_the_padding() -> None:
    specs = [TableSpec(name=n, num_embeddings=7, embedding_dim=6, feature_names=["g"]) for n in "ab"]
    tables = SequenceCollection(specs)
    flat = FlatRows(tables)
    wanted = torch.stack([tables.weights()["b"][3], tables.weights()["a"][6]])
    assert torch.equal(flat.take([flat.first_rows["b"] + 3, flat.first_rows["a"] + 6]), wanted)
    assert flat.take([]).shape == (0, 6)


def test_flat_rows_refuse_what_has_no_matrix() -> None:
    plain = TableSpec(name="a", num_embeddings=70, embedding_dim=8, feature_names=["g"])
    wide = TableSpec(name="b", num_embeddings=70, embedding_dim=12, feature_names=["g"])
    computed = TableSpec(name="c", num_embeddings=700, embedding_dim=8, feature_names=["g"], method="hash", budget=0.5)
    with pytest.raises(ConfigError, match=r"the tables have widths \[8, 12\]; one matrix needs one width"):
        FlatRows(SequenceCollection([plain, wide]))
    with pytest.raises(ConfigError, match="table 'c' has method 'hash', which computes its rows"):
        FlatRows(SequenceCollection([computed]))


def test_a_memory_of_one_kind() -> None:
    for layout in (engram(), stem()):
        tables = MemoryTables([layout], tier=RowTier())
        ids = tokens()
        assert same(MemorySession(tables, 3).next(ids[:, 0].tolist()), tables(ids), slice(0, 1))


class Reversed(EngramLayout):
    """Addresses rows in its own way."""

    def ids(self, token_ids_BT: torch.Tensor, marked_BT: torch.Tensor, before_BS: torch.Tensor | None) -> dict:
        return {group: ids.flip(0) for group, ids in super().ids(token_ids_BT, marked_BT, before_BS).items()}


def test_a_memory_without_a_read_path_is_read_through_its_collections() -> None:
    usual = engram()
    tables = MemoryTables([Reversed(usual.config, usual.compression, pad_token=4)])
    ids = tokens(length=6)
    with pytest.raises(ConfigError, match="a Reversed addresses rows in a way of its own, which has no read path"):
        MemoryReader(tables)
    wanted, session = tables(ids), MemorySession(tables, 3)
    assert same(session.extend(ids[:, :4]), wanted, slice(0, 4))
    assert same(session.next(ids[:, 4].tolist()), wanted, slice(4, 5))
    assert session.length == 5
