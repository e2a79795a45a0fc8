"""Compiled code: a C++ source and its headers, made into a library by the machine's compiler when that is needed.

What was made is kept in a folder of the user's (`$XDG_CACHE_HOME/embank`, by default `~/.cache/embank`), named by all
that it depends on, so each is compiled once for a machine; what no process has loaded for a quarter of a year is
removed when something new is made. Without a compiler, or where it fails, the same is done by libraries.
"""

import atexit
import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from embank.tables.errors import EmbankError
from embank.tables.storage.atomic import publish_file

SWITCH = "EMBANK_NATIVE"
"""The variable that switches it off: 0."""

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp-simd", "-shared", "-fPIC")
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS, _SECONDS_TO_ANSWER = 60, 10
_SECONDS_KEPT = 90 * 24 * 3600
_NAME = re.compile(r"(lookup|rows)-[0-9a-f]{24}(\.so|-\w{8}\.part)")
_hung: list[subprocess.TimeoutExpired] = []
"""A compiler that has not come back: who waits for a lookup does not wait for it again."""

_log = logging.getLogger(__name__)


@cache
def library(source: Path, symbols: tuple[str, ...], macros: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """What a source is compiled to; None where there is no compiler, or it can't be made or loaded: then it says why at
    the level INFO of this module's logger.

    Args:
        source: with all the headers that lie beside it.
        symbols: functions that it is to have.
        macros: what it is compiled for, as the compiler takes it.
    """
    if os.environ.get(SWITCH) == "0":
        tell(f"{SWITCH}=0 switches it off")
        return None
    if _hung:
        return None
    try:
        compiler = _compiler()
        made = None if compiler is None else _loaded(_library(compiler, source, macros))
        for symbol in symbols if made is not None else ():
            getattr(made, symbol)
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError, EmbankError) as error:
        if isinstance(error, subprocess.TimeoutExpired):
            _hung.append(error)
        tell(error)
        return None
    return made


def tell(error: Exception | str) -> None:
    """Says why there is no compiled code."""
    said = str(getattr(error, "stderr", None) or error).strip()
    _log.info("rows are looked up without compiled code: %s", said[:500])


class _Compiler(NamedTuple):
    command: tuple[str, ...]
    version: str


@cache
def _compiler() -> _Compiler | None:
    """The C++ compiler: the command in the variable CXX, or one of the usual names. None where there is none, or it
    does not answer; that is said once for the process."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
        for command in [named] if named else [[name] for name in _COMPILERS]:
            if shutil.which(command[0]) is not None:
                return _Compiler(tuple(command), _output([*command, "--version"], seconds=_SECONDS_TO_ANSWER))
        raise FileNotFoundError(f"there is no C++ compiler {' '.join(named) or ', '.join(_COMPILERS)}")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        tell(error)
        return None


def _output(command: Sequence[str], *, seconds: float) -> str:
    """What a command prints; it and all that it has started end with its time.

    Raises:
        subprocess.SubprocessError: it has failed, or took too long.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
    ) as child:
        try:
            out, err = child.communicate(timeout=seconds)
        except BaseException:  # also Ctrl-C, which does not reach it
            with contextlib.suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, out, err)
    return out


def _library(compiler: _Compiler, source: Path, macros: tuple[str, ...]) -> Path:
    """The compiled library of a source, made if it is not there, or can't be loaded.

    Raises:
        OSError: there is no place for what the compiler makes, or it can't be loaded.
        subprocess.SubprocessError: it has failed, or took too long.
    """
    sources = [path.read_text(encoding="utf-8") for path in (source, *sorted(source.parent.glob("*.h")))]
    facts = [*sources, compiler.version, _machine(), " ".join([*_FLAGS, *macros])]
    name = f"{source.stem}-{hashlib.blake2b(chr(0).join(facts).encode(), digest_size=12).hexdigest()}.so"
    try:
        path = _shared_folder() / name
        if path.is_file():
            with contextlib.suppress(OSError):  # damaged: it is made once more
                _loaded(path)
                _mark_used(path)
                return path
        made = _made(compiler, source, macros, path)
        _remove_unused(path.parent)
        return made
    except (OSError, RuntimeError):  # no home, or one that can't be written
        return _made(compiler, source, macros, _own_folder() / name)


def _mark_used(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that can only be read
        os.utime(path)


def _remove_unused(folder: Path) -> None:
    """Removes libraries of other versions and what compilers that were killed have left: files of ours that have not
    been loaded for long."""
    for path in folder.glob("*-*"):
        with contextlib.suppress(OSError):  # another process removes it, too
            if _NAME.fullmatch(path.name) and time.time() - path.stat().st_mtime > _SECONDS_KEPT:
                path.unlink()


def _shared_folder() -> Path:
    """The folder of the user's, which nobody else may write to: what lies in it is run."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embank"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.stat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise PermissionError(f"others may write to '{folder}'")
    return folder


@cache
def _own_folder() -> Path:
    """Where this process keeps what it can't keep for others; removed when it ends."""
    folder, owner = tempfile.mkdtemp(prefix="embank-"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not a fork that ends before
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)


os.register_at_fork(after_in_child=_own_folder.cache_clear)  # its parent may end before it


def _made(compiler: _Compiler, source: Path, macros: Sequence[str], path: Path) -> Path:
    """Compiles the source; who makes the same at the same time makes the same file."""
    handle, part = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        _output([*compiler.command, *_FLAGS, *macros, "-o", part, str(source)], seconds=_SECONDS)
        _loaded(Path(part))  # what can't be loaded is not kept
        publish_file(Path(part), path, overwrite=True)
    finally:
        Path(part).unlink(missing_ok=True)
    return path


def _loaded(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


@cache
def _machine() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    except OSError:
        kinds = [platform.processor()]
    return "\n".join([platform.machine(), *kinds])
