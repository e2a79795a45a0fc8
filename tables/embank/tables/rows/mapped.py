"""Memory-mapped tensors: rows and optimizer state that may exceed memory."""

import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from embank.tables.errors import ConfigError


def mapped_tensor(path: Path, *, numel: int) -> Tensor:
    """A float32 tensor of zeros that lives in a file. The file is sparse until it is written to.

    Args:
        path: created or replaced; its folder is created.
        numel: number of elements.

    Raises:
        ConfigError: the file system has less free space than the tensor needs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    nbytes = 4 * numel
    stat = os.statvfs(path.parent)
    free = stat.f_bavail * stat.f_frsize
    if nbytes > free:
        raise ConfigError(
            f"'{path}' needs {nbytes:,} bytes and its file system has {free:,} free; choose another folder for the disk tier"
        )
    with path.open("wb") as file:
        file.truncate(nbytes)
    return torch.from_file(str(path), shared=True, size=numel, dtype=torch.float32)


def sync_file(path: Path) -> None:
    """Writes a mapped file's dirty pages to the disk and waits for them (fsync)."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        if os.fstat(descriptor).st_size:
            with mmap.mmap(descriptor, 0) as view:
                view.flush()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
