"""How the compiled lookup comes about: compilers, what they leave, and where there is none."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from embank.tables.method.together import Rule
from embank.tables.native import build
from embank.tables.serving.lookups import Lookups
from embank.tables.serving.native.forms import Form
from embank.tables.serving.native.kernel import SOURCE, compiled
from tests.tables.native import bundle_of, ids_of, kernel_of, looked_up, stack_of


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing that was compiled or found before is remembered, and nothing of the test afterwards."""
    kept = (compiled, build.library, build._compiler, build._own_folder)
    for own in kept:
        own.cache_clear()
    yield
    build._hung.clear()
    for own in kept:
        own.cache_clear()


def forget() -> None:
    """What this process has loaded is looked for anew."""
    compiled.cache_clear()
    build.library.cache_clear()


def script(folder: Path, code: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)
    return str(path)


ABSENT: dict[str, Callable[[pytest.MonkeyPatch, Path], object]] = {
    "no compiler": lambda patch, folder: patch.setenv("CXX", str(folder / "c++")),
    "a compiler that fails": lambda patch, folder: patch.setenv("CXX", "false"),
    "another language": lambda patch, folder: patch.setenv("CXX", "echo"),
    "no command": lambda patch, folder: patch.setenv("CXX", "g++ 'x"),
    "messages that are no text": lambda patch, folder: patch.setenv(
        "CXX", script(folder, r"printf '\\377' >&2; exit 1")
    ),
    "one that hangs": lambda patch, folder: patch.setenv("CXX", script(folder, "case $1 in -*) ;; esac; sleep 60")),
    "switched off": lambda patch, folder: patch.setenv(build.SWITCH, "0"),
}


@pytest.mark.parametrize("why", list(ABSENT))
def test_without_a_compiler_rows_are_the_same(
    why: str, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=build.__name__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_SECONDS_TO_ANSWER", 1)
    ABSENT[why](monkeypatch, tmp_path)
    packed = bundle_of(tmp_path / "b", "hash", "int4")
    ids = {f"f{k}": torch.arange(200) for k in range(3)}
    stack, lookups = stack_of(packed), Lookups(packed)
    assert stack.kernel is not None
    assert stack.kernel(ids_of(200, num_tables=3).numpy()) is None
    (found,) = lookups(ids, {}, num_rows=200)
    assert torch.equal(found[:, :16], packed.packs["t0"].lookup(ids["f0"]))
    assert not list((tmp_path / "cache").rglob("*.so"))
    assert not list((tmp_path / "cache").rglob("*.part"))
    assert "without compiled code" in caplog.text


def test_it_is_compiled_once(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    form = Form(numbers=32, width=9, stride_bits=288, group=1, scale_stride_bytes=0, row=9, dim=9)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(compiled(form))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert None not in found
    (library,) = (tmp_path / "embank").iterdir()
    assert library.suffix == ".so"
    made = library.stat().st_ino
    forget()
    assert compiled(form) is not None
    assert library.stat().st_ino == made
    assert compiled(form._replace(width=10, row=10, dim=10, stride_bits=320)) is not None
    assert len(list((tmp_path / "embank").iterdir())) == 2


def test_what_has_not_been_loaded_for_long_is_removed(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "embank"
    folder.mkdir(mode=0o700)
    old = [folder / f"lookup-{'0' * 24}{end}" for end in (".so", "-abcd_123.part")]
    others = [folder / "lookup-mine.so", folder / "notes.txt", tmp_path / old[0].name]
    for path in (*old, *others):
        path.write_text("")
        os.utime(path, (0, 0))
    used = Form(numbers=32, width=13, stride_bits=416, group=1, scale_stride_bytes=0, row=13, dim=13)
    assert compiled(used) is not None
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in others)
    (library,) = set(folder.iterdir()) - set(others)
    os.utime(library, (0, 0))
    forget()
    assert compiled(used) is not None
    assert library.stat().st_mtime > 0, "it was loaded now"


def test_a_home_that_cannot_be_written(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose file system is read-only: it is made in a folder of the process's own."""
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = kernel_of([torch.ones(4, 7)], "fp32", [Rule("own", 4)])
    assert torch.equal(looked_up(own, torch.zeros(1, 2, dtype=torch.int64)), torch.ones(2, 1, 7))
    assert build._own_folder().stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_compiler_that_hangs_is_not_waited_for_twice(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_SECONDS", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", script(tmp_path, f'[ "$1" = --version ] || {{ echo >> {tmp_path}/asked; sleep 60; }}'))
    for dim in (5, 6, 7):
        own = kernel_of([torch.ones(4, dim)], "fp32", [Rule("own", 4)])
        assert own(np.zeros((1, 2), dtype=np.int64)) is None
    assert (tmp_path / "asked").read_text() == "\n"


@pytest.mark.parametrize("damage", [b"", b"\x7fELF no library"])
def test_a_damaged_library_is_made_once_more(
    damage: bytes, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own, compiler = kernel_of([torch.ones(4, 11)], "fp32", [Rule("own", 4)]), build._compiler()
    assert compiler is not None
    library = build._library(compiler, SOURCE, own.form.macros())  # made, and not loaded by this name
    whole = library.read_bytes()
    library.unlink()
    library.write_bytes(damage)
    assert torch.equal(looked_up(own, torch.zeros(1, 2, dtype=torch.int64)), torch.ones(2, 1, 11))
    assert len(library.read_bytes()) == len(whole)


def test_a_folder_that_others_may_write_to_is_not_used(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "embank").mkdir()
    (tmp_path / "embank").chmod(0o777)
    assert kernel_of([torch.ones(4, 12)], "fp32", [Rule("own", 4)])(np.zeros((1, 2), dtype=np.int64)) is not None
    assert not list((tmp_path / "embank").iterdir())
