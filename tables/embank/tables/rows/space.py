"""Room for a store's tensors: memory, or mapped files."""

import contextlib
import mmap
import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from embank.tables.rows.disk.mapped import MappedFile
from embank.tables.rows.store_spec import RowTier
from embank.tables.storage.resources import refuse_exhausted

_ZEROS = 2**20
_LARGE = 32 * 2**20
"""Bytes from which on memory is asked for in huge pages: rows of a batch lie all over a large table, and with small
pages nearly each of them would cost a walk through the page table besides."""


class RowSpace:
    """Gives one store its tensors and, on the disk tier, keeps their files.

    Args:
        tier: where tensors are held.

    Attributes:
        files: what is held on the disk tier, in the order of `hold`.
    """

    def __init__(self, tier: RowTier) -> None:
        self.tier = tier
        self.files: list[MappedFile] = []

    def hold(
        self, name: str, *, numel: int, chunks: Iterable[Tensor] | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Memory for numbers.

        Args:
            name: of its file, if it gets one.
            numel: number of elements.
            chunks: initial values in order, `numel` elements in all; None means zeros.
            dtype: of the numbers; what is given is rounded to it.

        Returns:
            [numel], on the tier's device if the tier is "device", else in the host's memory.

        Raises:
            ConfigError: the folder can't be used.
            WorkError: the disk has no room for it, or the machine no memory.
        """
        if self.tier.name == "disk" and numel:
            assert self.tier.directory is not None
            self.files.append(
                MappedFile(
                    self.tier.directory,
                    name,
                    numel=numel,
                    chunks=_zeros(numel) if chunks is None else chunks,
                    dtype=dtype,
                )
            )
            return self.files[-1].tensor
        on_host = self.tier.name != "device" or not self.tier.on_gpu
        held = _memory(name, numel, dtype) if on_host else torch.zeros(numel, dtype=dtype, device=self.tier.device)
        start = 0
        for chunk in chunks or ():
            held[start : start + chunk.numel()] = chunk.reshape(-1)
            start += chunk.numel()
        return held

    def check(self) -> None:
        """Raises WorkError if a file can no longer be used."""
        for file in self.files:
            file.check()

    def flush(self) -> None:
        """Makes what is held durable.

        Raises:
            WorkError: a file was cut, or the disk reports an error.
        """
        for file in self.files:
            file.flush()


def _memory(name: str, numel: int, dtype: torch.dtype) -> Tensor:
    """Zeros in the host's memory.

    Raises:
        WorkError: the system does not give it; says for what it was asked.
    """
    try:
        return _zeroed(numel, dtype)
    except (OSError, RuntimeError) as error:
        refuse_exhausted(error, doing=f"making room for '{name}', {dtype.itemsize * numel:,} bytes")
        raise


def _zeroed(numel: int, dtype: torch.dtype) -> Tensor:
    """Zeros, in huge pages where there are many and the system has such pages."""
    nbytes = dtype.itemsize * numel
    if nbytes < _LARGE or sys.platform != "linux":
        return torch.zeros(numel, dtype=dtype)
    region = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        region.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(region, dtype=dtype)


def _zeros(numel: int) -> Iterator[Tensor]:
    zeros = torch.zeros(min(numel, _ZEROS), dtype=torch.float32)
    for start in range(0, numel, _ZEROS):
        yield zeros[: numel - start]
