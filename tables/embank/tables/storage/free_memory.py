"""How much memory this process may still take: what the machine has left, or less where a cgroup, as of a container,
has a limit. A process that goes beyond the limit is killed without a word, whatever the machine has left.

Source: the kernel's documentation, "Control Group v2" (memory.max, memory.current, memory.stat) and, of version 1,
"Memory Resource Controller" (memory.limit_in_bytes, memory.usage_in_bytes). A limit is on a group and all below it, so
those above a process's own count, too. Pages of files, which usage counts, are given up when memory is short.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_NAMES = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
_FILE_PAGES = ("active_file", "inactive_file")


@dataclass(frozen=True, kw_only=True)
class FreeMemory:
    """Memory that can still be taken.

    Args:
        nbytes: so much.
        owner: who has it, for messages.
    """

    nbytes: int
    owner: str


def free_memory() -> FreeMemory:
    """The smaller one of what the machine and what the process's cgroups have left.

    Example:
        >>> free_memory().nbytes > 0
        True
    """
    machine = FreeMemory(nbytes=psutil.virtual_memory().available, owner="this machine")
    groups = (
        FreeMemory(nbytes=nbytes, owner=f"the memory limit of this process's cgroup ('{folder}')")
        for folder, nbytes in _left_of_groups()
    )
    return min([machine, *groups], key=lambda free: free.nbytes)


def _left_of_groups() -> Iterator[tuple[Path, int]]:
    """Of each group that the process is in, its folder and the bytes that its limit leaves."""
    for version, folder in _folders():
        limit, usage = (_text(folder / name) for name in _NAMES[version])
        if limit.isdecimal() and usage.isdecimal():  # version 2 has "max" for none
            yield folder, max(0, int(limit) - max(0, int(usage) - _file_nbytes(folder)))


def _folders() -> Iterator[tuple[int, Path]]:
    """The version and folder of each group that limits memory, from the process's own up. In a container the path that
    the kernel tells may be that of the machine, of which only the last folder, the container's own, can be seen."""
    for line in _text(OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            version, roots = 2, [GROUPS, GROUPS / "unified"]
        elif "memory" in controllers.split(","):
            version, roots = 1, [GROUPS / "memory"]
        else:
            continue
        own = Path(path.lstrip("/"))
        yield from ((version, root / group) for root in roots for group in (own, *own.parents))


def _file_nbytes(folder: Path) -> int:
    """Bytes of a group's pages of files, with those of the groups below: version 1 has a number of its own for that."""
    found = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
    return sum(int(found.get(f"total_{name}", found.get(name, 0))) for name in _FILE_PAGES)


def _text(path: Path) -> str:
    """A file of the kernel's; "" where there is none."""
    with suppress(OSError):
        return path.read_text().strip()
    return ""
