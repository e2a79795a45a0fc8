"""Records: one for each distinct n-gram of some texts, with everything that all layers and heads read there.

A position of an Engram memory reads a row of each head of each layer, sixteen and more, each from another place. Once
rows are frozen, what an n-gram reads is frozen too: a record holds it in one piece, so that a position costs one read
of a disk or of a network. N-grams without a record are read row by row as before.

    records.safetensors   "records" [U, width]: layers in order, each as its position reads it
    index.safetensors     "keys" [U] ascending, "windows" [U, N]: which n-gram a record is of
    checksums.json
"""

import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embank.tables.collections.state import refuse_beyond
from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.memory.layouts import EngramLayout
from embank.tables.memory.tables import MemoryTables
from embank.tables.memory.tensor_files import reading_tensors, refuse_non_finite, write_tensors
from embank.tables.storage.checksums import verify_checksums, write_checksums
from embank.tables.storage.new_folder import new_folder, refuse_taken
from embank.tables.storage.tensor_layout import header_bytes, make_header

FORMAT_VERSION = 1
RECORDS, INDEX = "records.safetensors", "index.safetensors"
_AT_ONCE = 4096
_TYPES = {"fp32": (torch.float32, "F32"), "bf16": (torch.bfloat16, "BF16")}
_CURE, _KIND = "Write the records again", "folder of records"


def write_records(memory: MemoryTables, texts: Iterable[Tensor], folder: str | Path, *, codec: str = "fp32") -> int:
    """Writes a record for each distinct n-gram of some texts.

    Args:
        memory: with Engram tables, whose rows must not change as long as the records are in use.
        texts: marked compressed ids [B, T] (`MemoryTables.address(...).marked_BT`), such as those of a training corpus.
        folder: must not exist yet.
        codec: "fp32" or "bf16".

    Returns:
        The number of records.

    Raises:
        ConfigError: no Engram memory, no text, another codec, or rows that are not finite or that it can't hold.
        CheckpointError: the folder exists.
        WorkError: it can't be written.
    """
    folder, layout = Path(folder), _engram_of(memory)
    if codec not in _TYPES:
        raise ConfigError(f"records can't be written as '{codec}'; use {' or '.join(_TYPES)}")
    refuse_taken(folder, kind=_KIND)
    windows_UN = _distinct(layout, texts)
    keys_U = _keys(layout, windows_UN)
    order = np.argsort(keys_U, kind="stable")
    windows_UN, keys_U = windows_UN[order], keys_U[order]
    with new_folder(folder, kind=_KIND) as temporary:
        _write_rows(memory, layout, windows_UN, temporary / RECORDS, codec=codec)
        index = {"keys": torch.from_numpy(keys_U), "windows": torch.from_numpy(windows_UN)}
        facts = {"records_version": FORMAT_VERSION, "codec": codec, "memory": layout.manifest()}
        write_tensors(temporary / INDEX, index, facts=facts, what="the records' index")
        write_checksums(temporary)
    return len(keys_U)


class NgramRecords:
    """Records on a disk, mapped into memory.

    Args:
        folder: what `write_records` wrote.
        memory: whose rows they hold; some of them are compared.
        verify: False skips the SHA-256 of the files, which reads all of them.

    Raises:
        CheckpointError: damaged, of another memory, or of rows that have changed since.
    """

    def __init__(self, folder: str | Path, memory: MemoryTables, *, verify: bool = True) -> None:
        folder = Path(folder)
        verify_checksums(folder, kind="folder of records", cure=_CURE, read=lambda name: verify)
        self.layout = _engram_of(memory)
        with reading_tensors(folder / INDEX, what="the records' index") as (facts, get):
            if facts.get("records_version") != FORMAT_VERSION or facts.get("codec") not in _TYPES:
                raise CheckpointError(f"the records '{folder}' are of another version than {FORMAT_VERSION}. {_CURE}")
            self.layout.refuse_other(facts["memory"], what=f"the folder of records '{folder}'")
            self._keys, self._windows = get("keys").numpy(), get("windows").numpy()
        self.dtype = _TYPES[facts["codec"]][0]
        self.width = len(self.layout.layer_ids) * self.layout.row_dim
        self._records_UW = _mapped(folder / RECORDS, len(self._keys), self.width, self.dtype)
        self._refuse_changed_rows(memory, folder)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, marked: Sequence[int]) -> int | None:
        """The record of the n-gram at the last of some marked compressed ids; None if it has none."""
        window = self.layout.hash.window(marked)
        key = 0
        for word, multiplier in zip(window, self._multipliers, strict=True):
            key ^= word * multiplier
        at = int(self._keys.searchsorted(key))
        while at < len(self._keys) and self._keys[at] == key:  # different n-grams may share a key
            if self._windows[at].tolist() == window:
                return at
            at += 1
        return None

    def take(self, records: Sequence[int]) -> Tensor:
        """Records [B, layers, row_dim] by their numbers, as fp32."""
        taken_BW = self._records_UW.index_select(0, torch.tensor(records, dtype=torch.int64))
        return taken_BW.float().view(len(records), len(self.layout.layer_ids), self.layout.row_dim)

    @property
    def _multipliers(self) -> tuple[int, ...]:
        return self.layout.hash.multipliers[self.layout.layer_ids[0]]

    def _refuse_changed_rows(self, memory: MemoryTables, folder: Path) -> None:
        chosen = np.unique(np.linspace(0, max(0, len(self) - 1), num=64, dtype=np.int64))[: len(self)]
        for some, rows_UW in _rows_of(memory, self.layout, self._windows[chosen]):
            held = self._records_UW[torch.from_numpy(chosen[some])]
            if not torch.equal(held, rows_UW.to(self.dtype)):
                raise CheckpointError(
                    f"the records '{folder}' hold other values than the memory's rows, which have changed since. "
                    f"{_CURE}"
                )


def _engram_of(memory: MemoryTables) -> EngramLayout:
    layout = memory.layouts.get("engram")
    if not isinstance(layout, EngramLayout):
        raise ConfigError(
            f"there are no n-grams to record: this memory has no Engram tables; it has {list(memory.layouts)}"
        )
    return layout


def _distinct(layout: EngramLayout, texts: Iterable[Tensor]) -> NDArray[np.int64]:
    """Distinct n-grams [U, N] of some texts, what look-backs may not see replaced by the pad id."""
    found = np.empty((0, layout.hash.max_ngram), dtype=np.int64)
    for marked_BT in texts:
        windows = torch.stack(layout.hash.windows(marked_BT), dim=-1).view(-1, layout.hash.max_ngram).numpy()
        found = np.unique(np.concatenate([found, windows]), axis=0)
    if not len(found):
        raise ConfigError("there are no n-grams to write records of; give texts with tokens")
    return found


def _keys(layout: EngramLayout, windows_UN: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first layer's mix of the longest n-gram: below 2 ** 63, and nearly never the same for two."""
    multipliers = np.array(layout.hash.multipliers[layout.layer_ids[0]], dtype=np.int64)
    keys: NDArray[np.int64] = np.bitwise_xor.reduce(windows_UN * multipliers, axis=1)
    return keys


def _rows_of(
    memory: MemoryTables, layout: EngramLayout, windows_UN: NDArray[np.int64]
) -> Iterator[tuple[slice, Tensor]]:
    """What all layers read at each n-gram, [u, width], some at a time."""
    collection = memory.collections[layout.kind]
    for first in range(0, len(windows_UN), _AT_ONCE):
        some = slice(first, min(len(windows_UN), first + _AT_ONCE))
        windows = torch.from_numpy(windows_UN[some]).unbind(1)
        hashed = layout.hash.rows_of([window[None] for window in windows])
        with torch.no_grad():
            rows = collection({layout.group(layer): ids for layer, ids in hashed.items()})
            by_layer = layout.by_layer(rows)
        yield some, torch.cat([by_layer[layer][0] for layer in layout.layer_ids], dim=-1).cpu()


def _write_rows(
    memory: MemoryTables, layout: EngramLayout, windows_UN: NDArray[np.int64], path: Path, *, codec: str
) -> None:
    """A safetensors file of one tensor, written piece by piece: records may exceed memory."""
    dtype, name = _TYPES[codec]
    width = len(layout.layer_ids) * layout.row_dim
    tables = [name for layer in layout.layer_ids for name in layout.table_names(layer)]  # in the order of columns
    with path.open("wb") as file:
        file.write(header_bytes(make_header([("records", name, (len(windows_UN), width))])))
        for _, rows_UW in _rows_of(memory, layout, windows_UN):
            for table, rows_UD in zip(tables, torch.split(rows_UW, layout.head_dim, dim=1), strict=True):
                refuse_non_finite(rows_UD, table=table)
                refuse_beyond(rows_UD, dtype, what=f"rows of table '{table}'", cure="write records in 'fp32'")
            file.write(rows_UW.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())


def _mapped(path: Path, num: int, width: int, dtype: torch.dtype) -> Tensor:
    """The records of a file, read page by page when they are asked for."""
    with path.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
        nbytes = num * width * dtype.itemsize
        if path.stat().st_size != header + nbytes:
            raise CheckpointError(f"'{path}' does not hold {num:,} records of {width} numbers. {_CURE}")
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    mapping.madvise(mmap.MADV_RANDOM)  # a record is read by itself
    return torch.frombuffer(mapping, dtype=dtype, offset=header, count=num * width).view(num, width)
