"""Which pages of mapped files a batch needs, and how they get into memory quickly.

All pages that are missing are asked for at once, which keeps the disk's queue full, and then touched, which waits for
them and maps them. Most pages of a batch are those of frequent rows, though, and asking for them would cost more than
it brings:

* Pages that an earlier batch had are passed over. Whether the system has dropped them since is checked on those that
  were seen longest ago, since the system drops those first; if one is gone, all are looked at anew.
* While batches find everything in memory, most are only sampled, and looked at in full when a sampled page is missing.
"""

import ctypes
import os
import resource
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from embank.tables.rows.disk.mapped import MappedFile

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
NUM_CHECKED = 64
"""Known pages of a batch that are checked to be in memory still."""
NUM_SAMPLED = 16
"""Rows of a batch whose pages are checked where the batch is only sampled."""
MAX_SAMPLED = 63
"""Batches in a row that may be sampled only."""

_PAGE_SHIFT = PAGE_BYTES.bit_length() - 1

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Region(NamedTuple):
    """What a lookup reads of one file: row i is at bytes start + i * stride to start + i * stride + nbytes."""

    file: int
    start: int
    stride: int
    nbytes: int

    @classmethod
    def of(cls, view: Tensor, files: Sequence[MappedFile]) -> "Region":
        """The region of a table's rows [R, D] or per-row values [R], a view into one of the files."""
        address = view.data_ptr()
        for number, file in enumerate(files):
            if file.address <= address < file.address + file.nbytes:
                width = 1 if view.dim() == 1 else view.shape[1]
                size = view.element_size()
                return cls(number, address - file.address, view.stride(0) * size, width * size)
        raise AssertionError("the view belongs to none of the files")


_NOTHING = Region(file=0, start=0, stride=PAGE_BYTES, nbytes=1)  # of a lookup in a table of no rows here


class Pages:
    """The pages of several files, numbered through: which of them a batch needs, and how they get into memory.

    Args:
        files: the files.
        lookups: for each lookup of the store, the regions that it reads.
    """

    def __init__(self, files: Sequence[MappedFile], lookups: Sequence[Sequence[Region]]) -> None:
        self.files, self.num_lookups = tuple(files), len(lookups)
        counts = [-(-file.nbytes // PAGE_BYTES) for file in files]
        self.firsts = np.cumsum([0, *counts])
        self.origins = np.array([file.address for file in files]) - self.firsts[:-1] * PAGE_BYTES  # of page 0
        # A float of each page.
        self.samples = [file.tensor[:: PAGE_BYTES // file.tensor.element_size()] for file in files]
        depth = max(len(regions) for regions in lookups)
        self.layers = [
            _Layer([regions[r] if regions else _NOTHING for regions in lookups], self.firsts) for r in range(depth)
        ]
        self.seen = np.zeros(int(self.firsts[-1]), np.int32)  # number of the last batch with the page; 0: not known
        self.num_batches = self.num_sampled = self.patience = 0
        # mincore is so short that letting go of the interpreter lock, as CDLL does, would cost more than the call.
        self.mincore = ctypes.PyDLL(None).mincore
        self.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]

    def fetch(self, indices_N: Ints, counts_K: Ints) -> int:
        """Brings the pages of a batch's rows into memory and maps them.

        Args:
            indices_N: row ids, lookup after lookup.
            counts_K: how many of them belong to each lookup.

        Returns:
            Number of pages that were asked for.
        """
        if self.num_sampled < self.patience:
            missing = self._missing(self._sample(indices_N, counts_K))
            if not missing.size:
                self.num_sampled += 1
                return 0
            if self.seen[missing].any():
                self.seen[:] = 0
        before = _blocks_read()
        wanted = self._unknown(np.concatenate([layer.pages(indices_N, counts_K) for layer in self.layers]))
        if wanted.size:
            self._read(wanted)
        self.num_sampled = 0
        self.patience = 0 if _blocks_read() > before else min(MAX_SAMPLED, 2 * self.patience + 1)
        return int(wanted.size)

    def _sample(self, indices_N: Ints, counts_K: Ints) -> Ints:
        """Pages of some of a batch's rows, other ones in each batch."""
        step = max(1, len(indices_N) // NUM_SAMPLED)
        places = np.arange(self.num_sampled % step, len(indices_N), step)
        ends = np.searchsorted(places, np.cumsum(counts_K))
        return np.unique(
            np.concatenate([layer.pages(indices_N[places], np.diff(ends, prepend=0)) for layer in self.layers])
        )

    def _unknown(self, pages_M: Ints) -> Ints:
        """Those pages, sorted and distinct, that may not be in memory. From now on they are known."""
        self.num_batches += 1
        seen_M = self.seen[pages_M]
        known = np.flatnonzero(seen_M)
        if known.size > NUM_CHECKED:
            known = known[np.argpartition(seen_M[known], NUM_CHECKED)[:NUM_CHECKED]]
        if self._missing(np.unique(pages_M[known])).size:
            self.seen[:] = 0
            wanted = np.unique(pages_M)
        else:
            wanted = np.unique(pages_M[seen_M == 0])
        self.seen[pages_M] = self.num_batches
        return wanted

    def _missing(self, pages_U: Ints) -> Ints:
        """Those of some pages that are not in memory."""
        files_U = np.searchsorted(self.firsts, pages_U, side="right") - 1
        is_in = ctypes.create_string_buffer(1)
        found = []
        for address in (self.origins[files_U] + pages_U * PAGE_BYTES).tolist():
            failed = self.mincore(address, PAGE_BYTES, is_in)
            found.append(bool(failed) or is_in.raw[0] & 1 == 1)
        missing: Ints = pages_U[~np.array(found, bool)]
        return missing

    def _read(self, pages_U: Ints) -> None:
        """Asks for pages, sorted and distinct, all at once, and waits until they are mapped."""
        bounds = np.searchsorted(pages_U, self.firsts)
        parts = [pages_U[low:high] - first for low, high, first in zip(bounds, bounds[1:], self.firsts, strict=False)]
        for file, part in zip(self.files, parts, strict=True):
            if part.size:
                self._ask(file, part)
        for sample, part in zip(self.samples, parts, strict=True):
            if part.size:
                sample[torch.from_numpy(part)]  # torch lets go of the interpreter lock, numpy keeps it for short ones

    def _ask(self, file: MappedFile, pages_U: Ints) -> None:
        """Starts reading pages of a file."""
        breaks = np.flatnonzero(np.diff(pages_U) != 1) + 1  # neighbours go together
        starts = pages_U[np.concatenate(([0], breaks))] * PAGE_BYTES
        ends = (pages_U[np.concatenate((breaks - 1, [-1]))] + 1) * PAGE_BYTES
        for start, nbytes in zip(starts.tolist(), (ends - starts).tolist(), strict=True):
            file.will_need(start, nbytes)


def _blocks_read() -> int:
    """Blocks that the system has read from disks for this thread."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


class _Layer:
    """One region of each lookup: from row ids to pages."""

    def __init__(self, regions: Sequence[Region], firsts: Ints) -> None:
        self.starts = np.array([int(firsts[r.file]) * PAGE_BYTES + r.start for r in regions], np.int64)
        self.strides = np.array([r.stride for r in regions], np.int64)
        self.last_bytes = np.array([r.nbytes - 1 for r in regions], np.int64)
        aligned = all(PAGE_BYTES % r.stride == 0 and r.start % r.stride == 0 for r in regions)
        most = max(r.nbytes for r in regions)
        self.num_pages = 1 if aligned else -(-(most - 1) // PAGE_BYTES) + 1  # that a row can reach into

    def pages(self, indices_N: Ints, counts_K: Ints) -> Ints:
        """Pages that rows reach into, with repetitions."""
        at_N = indices_N * _spread(self.strides, counts_K)
        at_N += _spread(self.starts, counts_K)
        if self.num_pages == 1:
            return at_N >> _PAGE_SHIFT
        last_N = _spread(self.last_bytes, counts_K)
        steps = range(self.num_pages)
        return np.concatenate([(at_N + np.minimum(step * PAGE_BYTES, last_N)) >> _PAGE_SHIFT for step in steps])


def _spread(values_K: Ints, counts_K: Ints) -> Ints:
    """A lookup's value for each of its ids."""
    return values_K if len(values_K) == 1 else np.repeat(values_K, counts_K)
