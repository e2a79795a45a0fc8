"""What a step frees is there for the next step, and nothing else changes in how memory is asked for."""

import ctypes
import os
import platform
import subprocess
import sys
import threading

import pytest
import torch

from embank.pipelines.runs.memory import keep_freed_memory

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is told")
FAULTS = """
import resource
from contextlib import nullcontext
import torch
from embank.pipelines.runs.memory import keep_freed_memory

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

@keep_freed_memory()
def kept():
    return step()

print(*(sum(call() for _ in range(30)) for call in (step, kept, kept)))
"""
PAGES = 64 * 2**20 // 4096


def _faults(**own: str) -> list[int]:
    """Pages that 30 tensors of 64 MB, one after the other, ask the system for: outside, within, within again."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | own
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@GLIBC
def test_freed_memory_is_used_again_within() -> None:
    outside, _first, within = _faults()
    assert outside >= 29 * PAGES
    assert within < PAGES


@GLIBC
def test_settings_of_the_environment_stay() -> None:
    assert min(_faults(MALLOC_ARENA_MAX="2")) >= 29 * PAGES


class MallocInfo(ctypes.Structure):
    """What mallinfo2(3) returns; `hblkhd` are the bytes of all that was asked of the system on its own."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    )


def _asked_on_its_own(nbytes: int) -> bool:
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = MallocInfo
    before = mallinfo().hblkhd
    tensor = torch.empty(nbytes, dtype=torch.uint8)
    return bool(mallinfo().hblkhd - before >= tensor.nbytes)  # one that is not touched takes no memory


@GLIBC
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="from glibc 2.33 on")
def test_large_tensors_outside_are_given_back() -> None:
    assert _asked_on_its_own(2**30)
    with keep_freed_memory():
        assert not _asked_on_its_own(2**30)
    assert _asked_on_its_own(3 * 2**29)  # more than what was kept


@GLIBC
def test_nested_and_failed_ones_end() -> None:
    def fail() -> None:
        with keep_freed_memory(), keep_freed_memory():
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    threads = [threading.Thread(target=keep_freed_memory()(lambda: None)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keep_freed_memory._depth == 0
