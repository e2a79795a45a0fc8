"""What the system refused is found behind libraries' errors, and is all that a message says of it."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from embank.tables import TableCollection, TableSpec
from embank.tables.errors import CheckpointError, ConfigError, EmbankError, WorkError
from embank.tables.storage import refusals
from embank.tables.storage.checkpoint import save_checkpoint
from embank.tables.storage.checksums import CHECKSUMS, verify_checksums, write_checksums
from embank.tables.storage.refusals import cause_of, fitting, is_full, refused, writing

FULL = OSError(errno.ENOSPC, "No space left on device")


def chained(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        chained(RuntimeError("[enforce fail at inline_container.cc:862] . unexpected pos 64 vs 0"), FULL),
        CheckpointException("CheckpointException ranks:dict_keys([0])", {0: (chained(RuntimeError("x"), FULL), None)}),  # type: ignore[dict-item]
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'"), ("c", "d", "[Errno 13] no")]),
        OSError("No space left on device (os error 28)"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["system", "torch", "checkpoint", "shutil", "polars", "safetensors"],
)
def test_a_full_disk_is_called_so(error: BaseException) -> None:
    assert cause_of(error) == "no space left"
    assert is_full(error)


def test_other_refusals(tmp_path: Path) -> None:
    assert cause_of(PermissionError(errno.EACCES, "Permission denied")) == "Permission denied"
    assert cause_of(ValueError("first\n\nlast\n")) == "last"
    assert not is_full(ValueError("a"))


def test_words_that_a_library_has_lost_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RuntimeError("[enforce fail at inline_container.cc:862] . unexpected pos 64 vs 0")
    assert "unexpected pos" in cause_of(lost, folder=tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(refusals.os, "fsync", full)
    assert cause_of(lost, folder=tmp_path) == "no space left"
    assert list(tmp_path.iterdir()) == []


def test_writing_names_the_file() -> None:
    with (
        pytest.raises(WorkError, match=r"^'a' can't be written: no space left\. Make room$"),
        writing("'a'", cure="Make room"),
    ):
        raise FULL


@pytest.mark.parametrize(
    ("number", "cls", "cure"),
    [
        (errno.ENOSPC, WorkError, "Make room and resume"),
        (errno.EDQUOT, WorkError, "Make room and resume"),
        (errno.EIO, WorkError, "Mend that and resume"),
        (errno.EACCES, ConfigError, "Make it writable and resume"),
        (errno.EROFS, ConfigError, "Mount its file system for writing and resume"),
        (errno.ENOENT, ConfigError, "Make the folder around it and resume"),
        (errno.EISDIR, ConfigError, "Mend that and resume"),
    ],
)
def test_the_cure_and_the_exit_code_are_of_what_was_refused(number: int, cls: type[EmbankError], cure: str) -> None:
    with pytest.raises(cls, match=rf"can't be written: .*\. {cure}$"), writing("'a'", cure="Make room and resume"):
        raise OSError(number, os.strerror(number))


def test_a_checkpoint_in_a_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = TableCollection([TableSpec(name="a", num_embeddings=4, embedding_dim=2, feature_names=["a"])])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match="Permission denied. Earlier checkpoints are untouched; make it writable and"):
        save_checkpoint(tmp_path / "ck", tables=tables, dense={}, meta={})


def test_checksums_of_some_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    (tmp_path / "b").write_text("c")
    assert set(verify_checksums(tmp_path, kind="folder", cure="", only=lambda name: name == "a")) == {"a", "b"}
    with pytest.raises(CheckpointError, match="b' has been altered"):
        verify_checksums(tmp_path, kind="folder", cure="")
    (tmp_path / "a").unlink()
    with pytest.raises(CheckpointError, match="lacks 'a'"):
        verify_checksums(tmp_path, kind="folder", cure="")
    assert (tmp_path / CHECKSUMS).is_file()


def test_a_full_disk_that_a_library_keeps_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found out by trying, and neither a class nor a cure of another refusal is chosen for it."""
    lost = RuntimeError("[enforce fail at inline_container.cc:862] . unexpected pos 64 vs 0")
    assert refused(lost) is WorkError
    assert fitting("make room and resume", lost) == "make room and resume"
    monkeypatch.setattr(refusals, "_refusal_in", lambda _: PermissionError(errno.EACCES, "Permission denied"))
    assert fitting("make room and resume", lost, folder=tmp_path) == "make it writable and resume"
    assert refused(chained(PermissionError(errno.EACCES, "no"), FULL)) is WorkError
