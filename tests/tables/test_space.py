"""Memory of row stores."""

from pathlib import Path

import pytest
import torch

from embank.tables import RowTier
from embank.tables.rows.space import RowSpace

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_of(address: int) -> list[str]:
    """The kernel's flags of the region that an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        low, dash, high = first.partition("-")
        if dash and not first.endswith(":"):
            inside = int(low, 16) <= address < int(high, 16)
        elif inside and first == "VmFlags:":
            return rest.split()
    raise AssertionError("no region holds the address")


@pytest.mark.skipif(not PAGES.is_file(), reason="the system has no transparent huge pages")
def test_large_tables_ask_for_huge_pages() -> None:
    space = RowSpace(RowTier())
    large, small = space.hold("large", numel=10_000_000), space.hold("small", numel=1000)
    assert "hg" in flags_of(large.data_ptr() + 2**22)
    assert "hg" not in flags_of(small.data_ptr())


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
