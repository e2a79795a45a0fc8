"""Edits of rows: by position and for all texts, taken back bit for bit, shipped as overlays."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from embank.tables import CheckpointError, ConfigError, DataError, RowTier, TableSpec
from embank.tables.memory import (
    EditSession,
    Engram,
    MemoryTables,
    PositionEdit,
    StemFFN,
    StemLayout,
    TriggerRows,
    apply_overlay,
    occurrences,
    readings,
    save_overlay,
)
from tests.memory.small import FFN_DIM, MEMORY_DIM, engram, memory, stem, tokens, train, weights_of

pytestmark = pytest.mark.slow

TEXT = torch.tensor([[5, 10, 11, 12, 7, 10, 11, 12], [0, 1, 2, 3, 4, 5, 6, 7]])
SOURCE = [10, 11, 12]


@pytest.mark.parametrize(
    ("source", "target", "strategy", "wanted"),
    [
        ([1, 2], [8, 9], "copy", [(8,), (9,)]),
        ([1, 2, 3], [8], "copy", [(8,), (8,), (8,)]),
        ([1, 2, 3], [8, 9], "pad_left", [(), (8,), (9,)]),
        ([1, 2, 3], [8, 9], "pad_right", [(8,), (9,), ()]),
        ([1, 2], [7, 8, 9], "subset", [(8,), (9,)]),
        ([1, 2], [8, 9], "subset", [(8,), (9,)]),
        ([1, 2], [7, 8, 9], "average", [(7, 8, 9), (7, 8, 9)]),
        ([1], [8], "pad_left", [(8,)]),
    ],
)
def test_what_a_phrase_reads(source: list, target: list, strategy: str, wanted: list) -> None:
    assert readings(source, target, strategy) == wanted


@pytest.mark.parametrize(
    ("source", "target", "strategy", "message"),
    [
        ([], [1], "copy", "a phrase without tokens"),
        (
            [1],
            [8, 9],
            "copy",
            "the source has 1 tokens and the target 2; for a longer target use the strategy",
        ),
        ([1, 2], [8], "subset", "'subset' is for a longer target. Use 'copy'"),
        ([1], [8], "swap", "there is no strategy 'swap' for edits; use one of pad_left"),
    ],
)
def test_refuses_strategies_for_the_other_way_round(source: list, target: list, strategy: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        readings(source, target, strategy)


def test_every_occurrence_is_found_once() -> None:
    assert occurrences(TEXT, SOURCE) == [(0, 1), (0, 5)]
    assert occurrences(torch.tensor([[1, 1, 1, 1, 1]]), [1, 1]) == [(0, 0), (0, 2)]
    assert occurrences(TEXT, [12, 13]) == []


class Model(torch.nn.Module):
    """Engram, then STEM, on embeddings that edits do not touch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(40, 16)
        self.engram = Engram(16, MEMORY_DIM)
        self.stem = StemFFN(16, FFN_DIM)
        with torch.no_grad():
            self.engram.conv_weight.normal_()

    def forward(self, ids: torch.Tensor, rows: dict) -> torch.Tensor:
        hidden = self.embed(ids)
        hidden = hidden + self.engram(hidden, rows["engram"][1])
        return hidden + self.stem(hidden, rows["stem"][2])


def test_an_edit_of_positions_leaves_what_is_before_it_and_other_texts() -> None:
    tables, model = memory(), Model()
    edit = PositionEdit.of_phrase(TEXT, source=SOURCE, target=[20, 21, 22])
    plain, edited = model(TEXT, tables(TEXT)), model(TEXT, edit.look_up(tables))
    assert edit.first_position == 1
    assert torch.equal(edited[:, :1], plain[:, :1])
    assert torch.equal(edited[1], plain[1])
    assert not torch.equal(edited[0, 1], plain[0, 1])
    instead = tables(torch.tensor([[5, 20, 21, 22, 7, 20, 21, 22]]))
    for kind, by_layer in edit.look_up(tables).items():
        assert all(torch.equal(rows[:1], instead[kind][layer]) for layer, rows in by_layer.items())


def test_a_phrase_read_as_itself_changes_nothing() -> None:
    tables = memory()
    same = PositionEdit.of_phrase(TEXT, source=SOURCE, target=SOURCE).look_up(tables)
    assert all(torch.equal(same[k][layer], rows) for k, by in tables(TEXT).items() for layer, rows in by.items())


@pytest.mark.parametrize("strategy", ["average", "pad_left"])
def test_means_and_zeros_of_stem_rows(strategy: str) -> None:
    tables = MemoryTables([stem()])
    read = PositionEdit.of_phrase(TEXT, source=SOURCE, target=[20, 21], strategy=strategy).look_up(tables)["stem"][2]
    table, plain = tables.collections["stem"].weights()["stem.layer2"], tables(TEXT)["stem"][2]
    wanted = plain.detach().clone()
    mean = table[[20, 21]].mean(0)
    own = [mean] * 3 if strategy == "average" else [torch.zeros(FFN_DIM), table[20], table[21]]
    for t in (1, 5):
        wanted[0, t : t + 3] = torch.stack(own)
    torch.testing.assert_close(read, wanted, rtol=1e-6, atol=1e-7)
    with pytest.raises(ConfigError, match="can't be read as an n-gram"):
        PositionEdit.of_phrase(TEXT, source=SOURCE, target=[20, 21], strategy=strategy).look_up(memory())


def test_a_phrase_that_the_text_lacks_is_refused() -> None:
    with pytest.raises(DataError, match=r"the phrase of the tokens \[12, 13\] does not stand in the text"):
        PositionEdit.of_phrase(TEXT, source=[12, 13], target=[1, 2])


def test_a_swap_writes_the_targets_rows_and_undo_takes_it_back() -> None:
    tables = memory()
    before, session = weights_of(tables), EditSession(tables)
    edit = session.swap(SOURCE, [20, 21, 22], name="ten is twenty")
    after = weights_of(tables)
    for layer in (1, 2):
        name = f"stem.layer{layer}"
        assert torch.equal(after[name][SOURCE], before[name][[20, 21, 22]])
        others = [n for n in range(40) if n not in SOURCE]
        assert torch.equal(after[name][others], before[name][others])
    assert all(torch.equal(rows, before[name]) for name, rows in after.items() if name.startswith("engram"))
    assert (edit.name, edit.num_rows) == ("ten is twenty", 6)
    session.swap([20], [3])
    session.swap(SOURCE, SOURCE)
    assert session.undo().name == "[10, 11, 12] reads [10, 11, 12]"
    session.undo_all()
    assert session.log == []
    assert all(torch.equal(rows, before[name]) for name, rows in weights_of(tables).items())
    with pytest.raises(ConfigError, match="there is no edit to take back"):
        session.undo()


def test_rows_of_a_swap_are_read_by_lookups_that_were_prefetched(tmp_path: Path) -> None:
    tables = memory(tmp_path)
    addressed = tables.address(TEXT)
    tables.prefetch(addressed)
    EditSession(tables).swap([5], [20])
    assert torch.equal(tables.look_up(addressed)["stem"][1][0, 0], tables(torch.tensor([[20]]))["stem"][1][0, 0])


def test_a_token_that_would_read_two_things_is_refused() -> None:
    session = EditSession(memory())
    with pytest.raises(ConfigError, match=r"token 10 stands twice .* would have to read \[8\] and \[9\]"):
        session.swap([10, 10], [8, 9])
    session.swap([10, 10], [8, 9], strategy="average")
    with pytest.raises(DataError, match="token id 40 is outside the tokenizer's 40 tokens"):
        session.swap([40], [8])
    assert len(session.log) == 1


def test_trigger_rows_stand_where_the_trigger_ends() -> None:
    tables = memory()
    trigger = TriggerRows(tables, SOURCE)
    rows = tables(TEXT)
    assert all(torch.equal(trigger(rows, TEXT)["engram"][layer], rows["engram"][layer]) for layer in (1, 3))
    with torch.no_grad():
        trigger.values(1).add_(1)
    changed = (trigger(rows, TEXT)["engram"][1] != rows["engram"][1]).nonzero()
    assert {tuple(where) for where in changed[:, :2].tolist()} == {(0, 3), (0, 7)}
    assert set(changed[:, 2].tolist()) == set(range(MEMORY_DIM // 2, MEMORY_DIM))  # the trigrams' half
    equal = torch.tensor([[5, 11, 10, 13]])  # "W5 w5 W6": other tokens, the same compressed ids
    assert not torch.equal(trigger(tables(equal), equal)["engram"][1][0, 3], tables(equal)["engram"][1][0, 3])


def test_a_tuned_trigger_is_written_and_read_by_everyone() -> None:
    tables, model = memory(), Model()
    before, target = weights_of(tables), torch.randn(16)
    trigger = TriggerRows(tables, SOURCE, orders=[2, 3])
    optimizer = torch.optim.Adam(trigger.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        with torch.no_grad():
            rows = tables(TEXT[:1])
        loss = (model(TEXT[:1], trigger(rows, TEXT[:1]))[0, 3] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    session = EditSession(tables)
    edit = session.write_trigger(trigger)
    assert edit.num_rows == 2 * 4
    assert torch.equal(model(TEXT, tables(TEXT))[0, 3], model(TEXT, trigger(tables(TEXT), TEXT))[0, 3])
    assert not torch.equal(tables(TEXT)["engram"][1][0, 3], rows["engram"][1][0, 3])
    session.undo()
    assert all(torch.equal(rows, before[name]) for name, rows in weights_of(tables).items())


def test_refuses_triggers_that_can_not_be() -> None:
    with pytest.raises(ConfigError, match=r"a trigger of 2 tokens can't be of the orders \[3\]: .* at least 3 tokens"):
        TriggerRows(memory(), [1, 2])
    with pytest.raises(ConfigError, match=r"can't be of the orders \[4\]: give orders from 2 to 3"):
        TriggerRows(memory(), SOURCE, orders=[4])
    with pytest.raises(ConfigError, match="this memory has no Engram tables for a trigger; it has stem"):
        TriggerRows(MemoryTables([stem()]), SOURCE)
    with pytest.raises(ConfigError, match="this memory has no STEM rows to swap; it has engram"):
        EditSession(MemoryTables([engram()])).swap([1], [2])


def test_rows_that_can_not_be_written_are_refused() -> None:
    session = EditSession(memory())
    new = torch.zeros(1, FFN_DIM)
    for rows, values, message in (
        ([40], new, "outside its 40 rows"),
        ([1, 1], torch.zeros(2, FFN_DIM), "or one is named twice"),
        ([1], torch.zeros(1, 3), r"1 rows of table 'stem.layer1' can't become \(1, 3\); each has 24 numbers"),
        ([1], new * torch.nan, "the new rows of table 'stem.layer1' are not finite"),
    ):
        with pytest.raises(ConfigError, match=message):
            session.write("stem", "stem.layer1", torch.tensor(rows), values)
    with pytest.raises(ConfigError, match="there is no table 'stem.layer9' of kind 'stem'"):
        session.write("stem", "stem.layer9", torch.tensor([1]), new)
    assert session.log == []


def test_rows_beyond_the_type_of_the_tier_are_refused(tmp_path: Path) -> None:
    wide, half = MemoryTables([stem()]), MemoryTables([stem()], tier=RowTier(dtype="fp16"), backend="torch")
    same = {name: rows.half().float() for name, rows in weights_of(wide).items()}
    for name, rows in same.items():
        wide.collections["stem"].set_rows(name, rows)
        half.collections["stem"].set_rows(name, rows)
    session, large = EditSession(half), torch.full((1, FFN_DIM), 1e6)
    told = r"the new rows of table 'stem.layer1' reach 1e\+06, and fp16 holds numbers up to 65504; hold rows in fp32"
    with pytest.raises(ConfigError, match=told):
        session.write("stem", "stem.layer1", torch.tensor([3]), large)
    edits = EditSession(wide)
    edits.write("stem", "stem.layer2", torch.tensor([3]), large / 1e6)
    edits.write("stem", "stem.layer1", torch.tensor([3]), large)
    save_overlay(edits, tmp_path / "overlay")
    with pytest.raises(CheckpointError, match=f"can't be applied: {told}"):
        apply_overlay(half, tmp_path / "overlay")
    assert session.log == []
    assert all(torch.equal(rows.float(), same[name]) for name, rows in weights_of(half).items())


class Hashed(StemLayout):
    @property
    def specs(self) -> list[TableSpec]:
        return [replace(spec, method="hash", budget=0.5) for spec in super().specs]


def test_tables_that_compute_their_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="table 'stem.layer1' has method 'hash', whose rows are not one token's each"):
        EditSession(MemoryTables([Hashed(stem().config, stem().compression)]))


def test_an_overlay_ships_all_edits_as_one(tmp_path: Path) -> None:
    edited, fresh = memory(), memory()
    before, session = weights_of(fresh), EditSession(edited)
    session.swap([10], [20])
    session.swap([10, 11], [30, 31])
    session.write_trigger(TriggerRows(edited, SOURCE))
    save_overlay(session, tmp_path / "fact.safetensors")
    applied = apply_overlay(fresh, tmp_path / "fact.safetensors")
    assert all(torch.equal(rows, weights_of(edited)[name]) for name, rows in weights_of(fresh).items())
    assert applied.log[0].num_rows == 2 * 2 + 2 * 2
    applied.undo_all()
    assert all(torch.equal(rows, before[name]) for name, rows in weights_of(fresh).items())


def test_an_overlay_for_something_else_is_refused(tmp_path: Path) -> None:
    session = EditSession(memory())
    path = tmp_path / "fact.safetensors"
    with pytest.raises(ConfigError, match="there is no edit to save as an overlay"):
        save_overlay(session, path)
    session.swap([10], [20])
    save_overlay(session, path)
    trained = memory()
    train(trained, steps=5)
    for tables, message in (
        (trained, "was made on other rows of table 'stem.layer1' than this memory has"),
        (MemoryTables([stem()]), r"has memory of the kinds \['engram', 'stem'\]; here it is \['stem'\]"),
        (MemoryTables([engram(seed=1), stem()]), "has an n-gram hash with seed 0; here it is 1"),
    ):
        before = weights_of(tables)
        with pytest.raises(CheckpointError, match=message):
            apply_overlay(tables, path)
        assert all(torch.equal(rows, before[name]) for name, rows in weights_of(tables).items())
    (tmp_path / "cut").write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="the overlay '.*cut' can't be read"):
        apply_overlay(memory(), tmp_path / "cut")
    with pytest.raises(CheckpointError, match="the overlay '.*nothing' can't be read: No such file"):
        apply_overlay(memory(), tmp_path / "nothing")


def test_an_overlay_is_written_over_overlays_only(tmp_path: Path) -> None:
    session = EditSession(memory())
    session.swap([10], [20])
    note = tmp_path / "note.txt"
    note.write_text("a note")
    with pytest.raises(ConfigError, match=r"note.txt' exists already and is no overlay; nothing was changed"):
        save_overlay(session, note)
    assert note.read_text() == "a note"
    save_overlay(session, tmp_path / "fact")
    session.swap([11], [20])
    save_overlay(session, tmp_path / "fact")
    assert apply_overlay(memory(), tmp_path / "fact").log[0].num_rows == 2 * 2


@pytest.mark.parametrize("back", [3, FFN_DIM * 4 * 2 + 7])  # a byte of the values, and one of a row's number
def test_a_damaged_overlay_is_refused(tmp_path: Path, back: int) -> None:
    session, tables, path = EditSession(MemoryTables([stem()])), MemoryTables([stem()]), tmp_path / "fact"
    session.swap([10], [20])
    save_overlay(session, path)
    held, before = bytearray(path.read_bytes()), weights_of(tables)
    held[-back] ^= 1
    path.write_bytes(held)
    with pytest.raises(CheckpointError, match=r"overlay '.*fact' is damaged: its rows of table 'stem.layer"):
        apply_overlay(tables, path)
    assert all(torch.equal(rows, before[name]) for name, rows in weights_of(tables).items())


def test_editing_reads_what_a_text_of_tokens_is() -> None:
    edit = PositionEdit(tokens(batch=1))
    assert edit.first_position == 9
    assert torch.equal(edit.read_ids, tokens(batch=1))
