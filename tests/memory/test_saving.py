"""A memory's kinds are saved and loaded together: what is refused names what the user gave, and changes nothing."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from embank.tables import CheckpointError, RowOptimizer, WorkError
from embank.tables.memory import MemoryTables
from embank.tables.storage import checkpoint
from tests.memory.small import engram, memory, stem, train, weights_of


def test_a_full_disk_is_told_of_the_folder_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told of a hidden one, which is gone by then."""
    write = checkpoint.write_checksums

    def full(folder: Path) -> None:
        if "stem" in str(folder):  # the Engram's rows are written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder)

    monkeypatch.setattr(checkpoint, "write_checksums", full)
    with pytest.raises(WorkError) as refused:
        memory().save(tmp_path / "new")
    told = f"the memory '{tmp_path / 'new'}' can't be written: no space left. Nothing was left behind; make room or "
    assert str(refused.value) == f"{told}choose another folder"
    assert not list(tmp_path.iterdir())


def test_no_memory_left_is_told_of_the_folder_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_arguments: object, **_how: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(checkpoint, "write_rows", exhausted)
    with pytest.raises(WorkError, match=f"out of memory.*was writing the memory '{tmp_path / 'new'}'"):
        memory().save(tmp_path / "new")


def flip_a_row(folder: Path) -> None:
    file = next(path for path in sorted((folder / "rows").iterdir()) if path.suffix == ".distcp")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_row, "has been altered: its SHA-256 differs"),
        (lambda folder: (folder / "dense.pt").unlink(), "lacks 'dense.pt'"),
    ],
)
def test_damage_in_the_second_kind_is_told_before_the_first_is_loaded(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    """The first one's rows were those of the file by then, and the second one's were not."""
    saved = memory()
    train(saved, steps=1)
    saved.save(tmp_path / "saved")
    damage(tmp_path / "saved" / "stem")
    tables = memory()
    before = weights_of(tables)
    with pytest.raises(CheckpointError, match=message):
        tables.load(tmp_path / "saved")
    for name, rows in weights_of(tables).items():
        assert rows.equal(before[name]), name
        assert not rows.equal(weights_of(saved)[name]), name


def test_another_optimizer_of_the_second_kind_is_told_before_the_first_is_loaded(tmp_path: Path) -> None:
    saved = MemoryTables([engram(), stem()])
    train(saved, steps=1)
    saved.save(tmp_path / "saved")
    tables = MemoryTables([engram(), stem()], optimizer={"stem": RowOptimizer(name="sgd", lr=0.1)})
    before = weights_of(tables)
    with pytest.raises(CheckpointError, match="optimizer=False"):
        tables.load(tmp_path / "saved")
    assert all(rows.equal(before[name]) for name, rows in weights_of(tables).items())
    tables.load(tmp_path / "saved", optimizer=False)
    assert all(rows.equal(weights_of(saved)[name]) for name, rows in weights_of(tables).items())
