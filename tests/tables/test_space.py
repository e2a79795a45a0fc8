"""Memory of row stores."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embank.tables import RowTier
from embank.tables.rows.space import RowSpace

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


FLAGS = """
from pathlib import Path
from embank.tables import RowTier
from embank.tables.rows.space import RowSpace

def flags_of(address):
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        low, dash, high = first.partition("-")
        if dash and not first.endswith(":"):
            inside = int(low, 16) <= address < int(high, 16)
        elif inside and first == "VmFlags:":
            return rest.split()

space = RowSpace(RowTier())
large, small = space.hold("large", numel=10_000_000), space.hold("small", numel=1000)
print("hg" in flags_of(large.data_ptr() + 2**22), "hg" in flags_of(small.data_ptr()))
"""
"""Prints whether the kernel's flags of two tensors ask for huge pages. In a process of its own: memory of another
library's may lie next to ours and be asked for alike."""


@pytest.mark.slow
@pytest.mark.skipif(not PAGES.is_file(), reason="the system has no transparent huge pages")
def test_large_tables_ask_for_huge_pages() -> None:
    done = subprocess.run([sys.executable, "-c", FLAGS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("numel", [1000, 10_000_000])
def test_memory_is_zero_or_what_is_given_and_is_written_to(numel: int) -> None:
    space = RowSpace(RowTier())
    held = space.hold("zeros", numel=numel)
    assert held.dtype == torch.float32
    assert not held.any()
    held.add_(1)
    assert held.sum() == numel
    values = torch.arange(numel, dtype=torch.float32)
    assert torch.equal(space.hold("values", numel=numel, chunks=values.split(999)), values)
