"""What a process may still take: of the machine's memory, and of its cgroups' limits."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from embank.tables import ConfigError, TableCollection, TableSpec
from embank.tables.storage import free_memory as module
from embank.tables.storage.free_memory import free_memory

MACHINE = 10_000_000
NO_LIMIT = 9_223_372_036_854_771_712
"""What version 1 has for none."""


@pytest.fixture(autouse=True)
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cgroups."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=MACHINE))
    monkeypatch.setattr(module, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(module, "OWN_GROUPS", tmp_path / "own")
    return tmp_path / "cgroup"


def belongs(groups: Path, *lines: str) -> None:
    (groups.parent / "own").write_text("\n".join(lines) + "\n")


def limit(folder: Path, nbytes: int | str, *, usage: int, file_pages: int = 0, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, number in zip(names, (nbytes, usage), strict=True):
        (folder / name).write_text(f"{number}\n")
    own = f"anon 1\nactive_file {file_pages}\ninactive_file 7\n"
    (folder / "memory.stat").write_text(
        own if version == 2 else f"active_file 3\n{own}total_active_file {file_pages}\ntotal_inactive_file 7\n"
    )


def test_without_groups_the_machine_decides(groups: Path) -> None:
    assert (free_memory().nbytes, free_memory().owner) == (MACHINE, "this machine")
    belongs(groups, "0::/")
    assert free_memory().nbytes == MACHINE


def test_version_2_pages_of_files_are_free(groups: Path) -> None:
    belongs(groups, "0::/")
    limit(groups, 5_000_000, usage=3_000_000, file_pages=1_000_000)
    assert free_memory().nbytes == 5_000_000 - 3_000_000 + 1_000_007
    assert free_memory().owner == f"the memory limit of this process's cgroup ('{groups}')"


@pytest.mark.parametrize("root", [".", "unified"])
def test_the_least_of_all_groups_above_counts(groups: Path, root: str) -> None:
    belongs(groups, "4:cpu:/other", "0::/user/job")
    limit(groups / root / "user/job", "max", usage=500)
    limit(groups / root / "user", 2_000, usage=507)
    limit(groups / root, 9_000, usage=507)
    assert free_memory().nbytes == 1_500


def test_version_1_counts_the_groups_below(groups: Path) -> None:
    belongs(groups, "5:cpu,cpuacct:/", "4:hugetlb,memory:/job")
    limit(groups / "memory/job", 5_000_000, usage=3_000_000, file_pages=1_000_000, version=1)
    limit(groups / "memory", NO_LIMIT, usage=3_000_000, version=1)
    assert free_memory().nbytes == 5_000_000 - 3_000_000 + 1_000_007


def test_the_path_of_the_machine_is_not_seen_in_a_container(groups: Path) -> None:
    belongs(groups, "4:memory:/docker/0123")
    limit(groups / "memory", 5_000, usage=1_007, version=1)
    assert free_memory().nbytes == 4_000


def test_a_limit_that_is_used_up_leaves_nothing(groups: Path) -> None:
    belongs(groups, "0::/")
    limit(groups, 5_000, usage=6_007)
    assert free_memory().nbytes == 0


def test_rows_beyond_the_limit_of_a_container_are_refused(groups: Path) -> None:
    """The process was killed without a word."""
    belongs(groups, "0::/")
    spec = TableSpec(name="a", num_embeddings=1000, embedding_dim=8, feature_names=["a"])
    limit(groups, 49_999, usage=18_007)
    with pytest.raises(ConfigError, match=r"take 32,000 bytes .* cgroup \('.*'\) has 31,999 bytes .* of memory left"):
        TableCollection([spec])
    limit(groups, 50_000, usage=18_007)
    TableCollection([spec])
