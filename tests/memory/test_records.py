"""Records of n-grams: what the rows give, in one read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from embank.tables import CheckpointError, ConfigError
from embank.tables.memory import EditSession, MemoryReader, MemorySession, MemoryTables, NgramRecords, write_records
from tests.memory.small import MEMORY_DIM, engram, memory, stem, tokens, train


def texts(tables: MemoryTables) -> list[torch.Tensor]:
    starts = torch.zeros(3, 9, dtype=torch.bool)
    starts[1, 4] = True
    return [tables.address(tokens(seed=0), starts_BT=starts).marked_BT, tables.address(tokens(seed=1)).marked_BT]


@pytest.mark.parametrize("codec", ["fp32", "bf16"])
def test_records_give_the_rows_of_each_position(tmp_path: Path, codec: str) -> None:
    tables = memory()
    train(tables, steps=2)
    num = write_records(tables, texts(tables), tmp_path / "records", codec=codec)
    records = NgramRecords(tmp_path / "records", tables)
    hash = tables.layouts["engram"].hash
    windows = {tuple(hash.window(row[: t + 1])) for text in texts(tables) for row in text.tolist() for t in range(9)}
    assert len(records) == num == len(windows)
    dtype = torch.float32 if codec == "fp32" else torch.bfloat16
    ids = tokens(seed=1)
    wanted = tables(ids)["engram"]
    for b, row in enumerate(texts(tables)[1].tolist()):
        for t in range(9):
            found = records.find(row[: t + 1])
            assert found is not None
            for place, layer in enumerate((1, 3)):
                assert torch.equal(records.take([found])[0, place], wanted[layer][b, t].to(dtype).float())


def test_a_file_of_records_is_a_safetensors_file(tmp_path: Path) -> None:
    tables = memory()
    num = write_records(tables, texts(tables), tmp_path / "records", codec="bf16")
    records = load_file(tmp_path / "records" / "records.safetensors")["records"]
    assert records.shape == (num, 2 * MEMORY_DIM)
    assert records.dtype == torch.bfloat16


def test_a_session_reads_records_where_there_are_and_rows_elsewhere(tmp_path: Path) -> None:
    tables = memory()
    write_records(tables, texts(tables), tmp_path / "records")
    records = NgramRecords(tmp_path / "records", tables, verify=False)
    reader = MemoryReader(tables, records=records)
    known = [records.find(row[: t + 1]) for row in texts(tables)[1].tolist() for t in range(9)]
    assert None not in known
    for seed in (1, 2):  # a text with records, and one without
        ids, session = tokens(seed=seed), MemorySession(tables, 3, reader=reader)
        wanted = tables(ids)
        for t in range(9):
            rows = session.next(ids[:, t].tolist())
            for kind in wanted:
                for layer, own in wanted[kind].items():
                    assert torch.equal(rows[kind][layer][:, 0], own[:, t])
    windows = {
        tuple(tables.layouts["engram"].hash.window(r[: t + 1]))
        for x in texts(tables)
        for r in x.tolist()
        for t in range(9)
    }
    unknown = next(triple for n in range(20) if (triple := (n, 7, 3))[::-1] not in windows)
    assert records.find(unknown) is None


def test_records_of_rows_that_have_changed_are_refused(tmp_path: Path) -> None:
    tables = MemoryTables([engram()])
    write_records(tables, texts(tables), tmp_path / "records")
    NgramRecords(tmp_path / "records", tables)
    table = "engram.layer1.order2.head0"
    rows = tables.collections["engram"].weights()[table]
    EditSession(tables).write("engram", table, torch.arange(len(rows)), rows + 1)
    with pytest.raises(CheckpointError, match="hold other values than the memory's rows, which have changed since"):
        NgramRecords(tmp_path / "records", tables)
    with pytest.raises(CheckpointError, match="has an n-gram hash with seed 0; here it is 1"):
        NgramRecords(tmp_path / "records", MemoryTables([engram(seed=1)]))


def test_damaged_records_are_refused(tmp_path: Path) -> None:
    tables = memory()
    write_records(tables, texts(tables), tmp_path / "records")
    file = tmp_path / "records" / "records.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4] + bytes(4))
    with pytest.raises(CheckpointError, match="has been altered: its SHA-256 differs"):
        NgramRecords(tmp_path / "records", tables)
    file.write_bytes(content[:-4])
    with pytest.raises(CheckpointError, match="it is truncated or altered. Write the records again"):
        NgramRecords(tmp_path / "records", tables, verify=False)


@pytest.mark.parametrize(
    ("codec", "number", "told"),
    [
        ("bf16", 3.4e38, r"reach 3.4e\+38, and bf16 holds numbers up to 3.3895e\+38; write records in 'fp32'"),
        ("bf16", torch.nan, "are not finite; train with a lower rate"),
        ("fp32", torch.nan, "are not finite; train with a lower rate"),
        ("fp32", 3.4e38, None),
    ],
)
def test_records_of_numbers_that_they_can_not_hold_are_refused(
    tmp_path: Path, codec: str, number: float, told: str | None
) -> None:
    tables, table = memory(), "engram.layer3.order3.head1"
    with tables.collections["engram"].writing(), torch.no_grad():
        tables.collections["engram"].weights()[table].fill_(number)
    if told is None:
        assert write_records(tables, texts(tables), tmp_path / "records", codec=codec)
        return
    with pytest.raises(ConfigError, match=f"rows of table '{table}' {told}"):
        write_records(tables, texts(tables), tmp_path / "records", codec=codec)
    assert list(tmp_path.iterdir()) == []


def test_records_that_can_not_be_are_refused(tmp_path: Path) -> None:
    tables = memory()
    with pytest.raises(ConfigError, match=r"this memory has no Engram tables; it has \['stem'\]"):
        write_records(MemoryTables([stem()]), [], tmp_path / "records")
    with pytest.raises(ConfigError, match="there are no n-grams to write records of"):
        write_records(tables, [], tmp_path / "records")
    with pytest.raises(ConfigError, match="records can't be written as 'int8'; use fp32 or bf16"):
        write_records(tables, texts(tables), tmp_path / "records", codec="int8")
    tmp_path.joinpath("records").mkdir()
    with pytest.raises(CheckpointError, match="exists already, and a folder of records is never written over"):
        write_records(tables, texts(tables), tmp_path / "records")
