"""What a step frees is there for the next step, and nothing else changes in how memory is asked for."""

import ctypes
import os
import platform
import subprocess
import sys
import threading

import pytest

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
    return [int(word) for word in _printed(FAULTS, **own)]


def _printed(script: str, **own: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | own
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@GLIBC
@pytest.mark.slow
def test_freed_memory_is_used_again_within() -> None:
    outside, _first, within = _faults()
    assert outside >= 29 * PAGES
    assert within < PAGES


@GLIBC
@pytest.mark.slow
def test_settings_of_the_environment_stay() -> None:
    assert min(_faults(MALLOC_ARENA_MAX="2")) >= 29 * PAGES


OWN = """
import ctypes
import torch
from embank.pipelines.runs.memory import keep_freed_memory

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in names]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info

def is_asked_on_its_own(nbytes):
    before = mallinfo().hblkhd
    tensor = torch.empty(nbytes, dtype=torch.uint8)  # one that is not touched takes no memory
    return mallinfo().hblkhd - before >= nbytes

first = is_asked_on_its_own(2**30)
with keep_freed_memory():
    within = is_asked_on_its_own(2**30)
after = is_asked_on_its_own(3 * 2**29)  # more than what was kept
print(first, within, after)
"""


@GLIBC
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="from glibc 2.33 on")
def test_large_tensors_outside_are_given_back() -> None:
    """In a process of its own: in one that has run for long, the heap may find its way barred."""
    assert _printed(OWN) == ["True", "False", "True"]


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
