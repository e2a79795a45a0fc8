"""Memory of row stores."""

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from embank.tables import ConfigError, RowOptimizer, RowTier, TableCollection, TableSpec, WorkError
from embank.tables.collections import base as base_module
from embank.tables.rows import space as space_module
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


def specs(num_embeddings: int = 1000) -> list[TableSpec]:
    return [
        TableSpec(name="a", num_embeddings=num_embeddings, embedding_dim=6, feature_names=["a"]),
        TableSpec(name="b", num_embeddings=10, embedding_dim=6, feature_names=["b"]),
    ]


@pytest.mark.parametrize(
    ("how", "nbytes"),
    [
        ({}, 1010 * 8 * 4),  # FBGEMM holds rows of 6 numbers as rows of 8
        ({"backend": "torch"}, 1010 * 6 * 4),
        ({"backend": "torch", "optimizer": RowOptimizer(name="adam")}, 1010 * 6 * 4),
        ({"backend": "torch", "tier": RowTier(name="host", dtype="bf16")}, 1010 * 6 * 2),
        ({"optimizer": RowOptimizer.external()}, 1010 * 6 * 4),
    ],
    ids=str,
)
def test_rows_beyond_the_memory_of_the_machine_are_refused(
    how: dict[str, Any], nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are filled at once; their optimizer's state takes memory as training meets them."""

    def has(available: int) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))

    has(nbytes)
    TableCollection(specs(), **how)
    has(nbytes - 1)
    words = rf"take {nbytes:,} bytes .* this machine has {nbytes - 1:,} bytes .* left.* largest table is 'a' with "
    with pytest.raises(ConfigError, match=words + rf"{nbytes * 100 // 101:,} bytes \(1,000 rows of 6 numbers\)"):
        TableCollection(specs(), **how)


def test_the_stores_of_a_collection_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was held against all of the memory."""
    two = [
        TableSpec(name="a", num_embeddings=1000, embedding_dim=8, feature_names=["a"]),
        TableSpec(name="b", num_embeddings=1000, embedding_dim=8, feature_names=["b"], fused_pooling=False),
    ]
    tables = TableCollection(two)
    assert len(tables.row_stores()) == 2
    nbytes = sum(weights.numel() * weights.element_size() for weights in tables.weights().values())
    built: list[object] = []
    monkeypatch.setattr(base_module, "build_rows", built.append)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=nbytes - 1))
    with pytest.raises(ConfigError, match=f"the rows of these tables take {nbytes:,} bytes"):
        TableCollection(two)
    assert not built


def test_rows_beyond_any_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="of memory left"):
        TableCollection(specs(10**18), backend="torch")
    disk = RowTier(name="disk", directory=tmp_path)
    with pytest.raises(WorkError, match=r"a.weights.0.f32' needs 24,000,000,000,000,000,000 bytes: File too large"):
        TableCollection(specs(10**18), backend="torch", tier=disk)
    assert not list(tmp_path.iterdir())


def test_memory_that_the_system_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(space_module, "_zeroed", refuse)
    with pytest.raises(WorkError, match=r"out of memory: .* making room for 'a.0.weights', 32,320 bytes"):
        TableCollection(specs())
