"""Memory-mapped tensors: rows and optimizer state that may exceed memory."""

import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from embank.tables.errors import ConfigError


def mapped_tensor(path: Path, *, numel: int) -> Tensor:
    """A float32 tensor of zeros that lives in a file, whose space is reserved on the disk.

    Args:
        path: created or replaced; its folder is created.
        numel: number of elements.

    Raises:
        ConfigError: the file system has no room for the tensor.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    nbytes = 4 * numel
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(1, nbytes))  # a sparse file would end in SIGBUS on a full disk
        except OSError as error:
            path.unlink()
            raise ConfigError(
                f"'{path}' needs {nbytes:,} bytes: {error.strerror}. Choose another folder for the disk tier"
            ) from error
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
