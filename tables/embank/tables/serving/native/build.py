"""The compiled lookup: `lookup.cpp`, made by the machine's C++ compiler for one form of rows when it is first needed.

What was made is kept in a folder of the user's (`$XDG_CACHE_HOME/embank`, by default `~/.cache/embank`), named by all
that it depends on, so each form is compiled once for a machine. Without a compiler, or where it fails, there is none,
and who asks goes another way.
"""

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

SWITCH = "EMBANK_NATIVE"
"""The variable that switches it off: 0."""

_SOURCE = Path(__file__).with_name("lookup.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC")
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 120
_log = logging.getLogger(__name__)

Lookup = Callable[..., None]


class Form(NamedTuple):
    """What one compiled lookup is made for; the fields are explained in `lookup.cpp`."""

    numbers: int
    width: int
    dim: int
    stride: int
    group: int
    scale_stride: int
    widened: int


@cache
def compiled(form: Form) -> Lookup | None:
    """The function `embank_lookup` for a form of rows; None where there is no compiler, or it can't be made or loaded:
    then it says why at the level INFO of this module's logger."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        function = ctypes.CDLL(str(_library(form))).embank_lookup
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        _log.info("rows are looked up without a compiled lookup: %s", said.strip()[:500])
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes, function.restype = [pointer, number, pointer, number, number, number, pointer], None
    return function


def _library(form: Form) -> Path:
    """The compiled library of a form, made if it is not there.

    Raises:
        OSError: there is no compiler, or no place for what it makes.
        subprocess.SubprocessError: it has failed, or took too long.
    """
    compiler, source = _compiler(), _SOURCE.read_bytes()
    macros = [f"-D{name.upper()}={value}" for name, value in form._asdict().items()]
    facts = [source, _version(compiler), _machine(), " ".join([*_FLAGS, *macros]).encode()]
    name = f"lookup-{hashlib.blake2b(bytes(1).join(facts), digest_size=12).hexdigest()}"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embank"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"'{folder}' is somebody else's")
        path = folder / f"{name}.so"
        return path if path.is_file() else _made(compiler, macros, path)
    except (OSError, RuntimeError):  # no home, or one that can't be written
        return _made(compiler, macros, _own_folder() / f"{name}.so")


@cache
def _own_folder() -> Path:
    """Where this process keeps what it can't keep for others; removed when it ends."""
    folder = tempfile.mkdtemp(prefix="embank-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _made(compiler: Sequence[str], macros: Sequence[str], path: Path) -> Path:
    """Compiles the source; who makes the same at the same time makes the same file."""
    handle, part = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        command = [*compiler, *_FLAGS, *macros, "-o", part, str(_SOURCE)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        ctypes.CDLL(part)  # what can't be loaded is not kept
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
    return path


@cache
def _compiler() -> tuple[str, ...]:
    """The C++ compiler: the command in the variable CXX, or one of the usual names.

    Raises:
        FileNotFoundError: there is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [[name] for name in _COMPILERS]:
        if shutil.which(command[0]) is not None:
            return tuple(command)
    raise FileNotFoundError(f"there is no C++ compiler {' '.join(named) or ', '.join(_COMPILERS)}")


@cache
def _version(compiler: tuple[str, ...]) -> bytes:
    return subprocess.run([*compiler, "--version"], check=True, capture_output=True, timeout=_SECONDS).stdout


@cache
def _machine() -> bytes:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    except OSError:
        kinds = [platform.processor()]
    return "\n".join([platform.machine(), *kinds]).encode()
