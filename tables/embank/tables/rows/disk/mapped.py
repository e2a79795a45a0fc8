"""Memory-mapped files: rows and row-optimizer state that may exceed memory."""

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import re
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from embank.tables.errors import ConfigError, EmbankError, WorkError
from embank.tables.storage.refusals import cause_of, is_full

BUFFER_BYTES = 8 * 2**20
"""Initial values go to the disk in pieces of this size."""

BLOCK_BYTES = 4096
"""What direct writes must be multiples of."""

_SUFFIXES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_ROW_FILE = re.compile(rf"\.\d+\.({'|'.join(_SUFFIXES.values())})$")


class MappedFile:
    """A tensor that lives in a file of its own, whose space is reserved on the disk.

    It is a working file of this process: locked, so that no other store, here or in another process, takes the same
    one; removed when the last tensor that views it is let go, and at the process's end. What a killed process leaves
    behind is taken over by the next store that asks for the name.

    Args:
        folder: where the file goes; created if need be.
        name: what the file is called after.
        numel: number of elements, at least 1.
        chunks: initial values in order, `numel` elements in all.
        dtype: of the elements, a floating-point type of 2 or 4 bytes; initial values are rounded to it.

    Attributes:
        path: the file.
        tensor: [numel]; writing to it changes the file.
        nbytes: of the tensor.

    Raises:
        ConfigError: the file can't be made: no permission, no folder.
        WorkError: no room for it.
    """

    def __init__(
        self, folder: Path, name: str, *, numel: int, chunks: Iterable[Tensor], dtype: torch.dtype = torch.float32
    ) -> None:
        self.nbytes = dtype.itemsize * numel
        self._descriptor, self.path = _claim(folder, name, suffix=_SUFFIXES[dtype])
        try:
            _fill(self.path, self._descriptor, chunks, nbytes=self.nbytes, dtype=dtype)
            self._mapping = mmap.mmap(self._descriptor, self.nbytes)
        except BaseException:
            _end(self._descriptor, self.path, os.getpid())
            raise
        weakref.finalize(self._mapping, _end, self._descriptor, self.path, os.getpid())
        # A row is read by itself: read-ahead around it costs disk time and memory, up to megabytes for each row.
        self._mapping.madvise(mmap.MADV_RANDOM)
        self.tensor = torch.frombuffer(self._mapping, dtype=dtype, count=numel)

    @property
    def address(self) -> int:
        """Where the mapping begins in memory."""
        return self.tensor.data_ptr()

    def check(self) -> None:
        """Raises WorkError if someone has cut the file: touching what is missing would end the process without a
        word."""
        size = os.fstat(self._descriptor).st_size
        if size < self.nbytes:
            raise WorkError(
                f"'{self.path}' has {size:,} bytes of the {self.nbytes:,} that the disk tier gave it; something has "
                "cut it. Keep other programs out of the disk tier's folder and resume from the last checkpoint"
            )

    def flush(self) -> None:
        """Writes dirty pages to the disk and waits for them (fsync).

        Raises:
            WorkError: the file was cut, or the disk reports an error.
        """
        self.check()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise WorkError(
                f"'{self.path}' can't be written: {error.strerror}. Resume from the last checkpoint with the disk tier "
                "in another folder"
            ) from error

    def evict(self) -> None:
        """Flushes and gives the file's memory back: the next use of a row reads it from the disk. Values stay."""
        self.flush()
        self._mapping.madvise(mmap.MADV_DONTNEED)  # pages that are mapped are never dropped
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def will_need(self, start: int, nbytes: int) -> None:
        """Has a range of the file read into memory, without waiting for it."""
        os.posix_fadvise(self._descriptor, start, nbytes, os.POSIX_FADV_WILLNEED)


def is_row_file(path: Path) -> bool:
    """Whether a file is called as `MappedFile` calls its files."""
    return _ROW_FILE.search(path.name) is not None and path.is_file()


def remove_unused(path: Path) -> None:
    """Removes a working file that no process holds; one that is held, or may not be opened, stays."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if _lock(descriptor, path):
                path.unlink()
        finally:
            os.close(descriptor)


def _claim(folder: Path, name: str, *, suffix: str) -> tuple[int, Path]:
    """Opens and locks the first file of that name, with a number, that no one else holds."""
    stem = quote(name, safe="")[-100:]  # its end says what is held; the number keeps files apart, not the stem
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            path = folder / f"{stem}.{number}.{suffix}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if _lock(descriptor, path):
                return descriptor, path
            os.close(descriptor)
    except OSError as error:
        raise _refused(error)(
            f"the disk tier can't use the folder '{folder}': {cause_of(error)}. Choose another"
        ) from error
    raise AssertionError("numbers don't end")


def _lock(descriptor: int, path: Path) -> bool:
    """Locks an open file; False if another holds it, or held it and removed it after it was opened here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _is_at(descriptor, path)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _end(descriptor: int, path: Path, owner: int) -> None:
    """Removes the file and lets go of its lock; a forked child only closes its copy."""
    if os.getpid() == owner and _is_at(descriptor, path):
        path.unlink()
    os.close(descriptor)


def _fill(path: Path, descriptor: int, chunks: Iterable[Tensor], *, nbytes: int, dtype: torch.dtype) -> None:
    """Gives a file its size, reserves its space and writes its first content, in bounded memory and at the disk's
    speed.

    The content goes past the page cache. Through the cache it would pile up as dirty pages, and Linux (6.16 and later,
    on ext4; earlier on XFS) would keep it in folios of up to 2 MiB, which are written back whole whenever a row of
    theirs changes.
    """
    try:
        if nbytes > sys.maxsize:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))  # which the calls below can't even be asked for
        os.ftruncate(descriptor, 0)
        os.posix_fallocate(descriptor, 0, nbytes)  # a sparse file would end in SIGBUS on a full disk
        with _Writer(path, dtype) as writer:
            for chunk in chunks:
                writer.write(chunk)
        os.ftruncate(descriptor, nbytes)  # the last block was filled up
    except OSError as error:
        raise _refused(error)(
            f"'{path}' needs {nbytes:,} bytes: {cause_of(error)}. Make room, or choose another folder for the disk tier"
        ) from error


def _refused(error: OSError) -> type[EmbankError]:
    """A full disk is work that failed; anything else is a folder that can't be used."""
    return WorkError if is_full(error) else ConfigError


class _Writer:
    """Writes tensors one after the other into a file, in large aligned pieces."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.buffer = mmap.mmap(-1, BUFFER_BYTES)  # aligned to a page, as direct writes need
        self.numbers = torch.frombuffer(self.buffer, dtype=dtype)
        self.num_held = self.offset = 0
        self.is_direct = True
        try:
            self.descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file system knows no direct writes
                raise
            self.is_direct = False
            self.descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None and self.num_held:
                nbytes = -(-self.numbers.element_size() * self.num_held // BLOCK_BYTES) * BLOCK_BYTES
                self._put(nbytes)
        finally:
            os.close(self.descriptor)

    def write(self, values: Tensor) -> None:
        """Appends a tensor's elements."""
        values = values.reshape(-1)
        while values.numel():
            count = min(values.numel(), self.numbers.numel() - self.num_held)
            self.numbers[self.num_held : self.num_held + count] = values[:count]
            self.num_held, values = self.num_held + count, values[count:]
            if self.num_held == self.numbers.numel():
                self._put(BUFFER_BYTES)

    def _put(self, nbytes: int) -> None:
        written = 0
        while written < nbytes:
            with memoryview(self.buffer)[written:nbytes] as part:
                written += os.pwrite(self.descriptor, part, self.offset + written)
        if not self.is_direct:
            os.fdatasync(self.descriptor)  # bounds what is dirty, and only clean pages can be dropped
            os.posix_fadvise(self.descriptor, self.offset, nbytes, os.POSIX_FADV_DONTNEED)
        self.num_held, self.offset = 0, self.offset + nbytes
