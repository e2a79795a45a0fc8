"""`MemorySession`: the memory of sequences that come in pieces - chunked prefill, decoding, rejected drafts, beams."""

from collections.abc import Sequence

import torch
from torch import Tensor

from embank.tables.errors import ConfigError, DataError
from embank.tables.memory.flat_rows import FlatRows
from embank.tables.memory.history import TokenHistory
from embank.tables.memory.layouts import EngramLayout, StemLayout
from embank.tables.memory.records import NgramRecords
from embank.tables.memory.tables import LayerRows, MemoryTables

FEW = 8
"""Sequences up to which a token is addressed in Python's integers; the vectorised hash costs as much as some twenty."""


class MemoryReader:
    """Reads the rows of single positions of a memory: addressed in Python's integers, taken in one gather.

    Args:
        memory: whose rows are read; it may go on training.
        records: of the memory's n-grams, whose rows are frozen then; n-grams without one are read row by row.

    Raises:
        ConfigError: rows of other processes, or of tables that compute them.
    """

    def __init__(self, memory: MemoryTables, *, records: NgramRecords | None = None) -> None:
        self.records = records
        self.compression = memory.compression
        self.flat = {kind: FlatRows(collection) for kind, collection in memory.collections.items()}
        self.engram: EngramLayout | None = None
        self.stem: StemLayout | None = None
        for layout in memory.layouts.values():
            if isinstance(layout, EngramLayout) and type(layout).ids is EngramLayout.ids:
                self.engram = layout
                firsts = self.flat[layout.kind].first_rows
                self._offsets = [[firsts[name] for name in layout.table_names(layer)] for layer in layout.layer_ids]
            elif isinstance(layout, StemLayout) and type(layout).ids is StemLayout.ids:
                self.stem = layout
                firsts = self.flat[layout.kind].first_rows
                self._token_rows = [firsts[layout.table_name(layer)] for layer in layout.layer_ids]
            else:
                raise ConfigError(
                    f"a {type(layout).__name__} addresses rows in a way of its own, which has no read path"
                )

    def read(self, token_ids: Sequence[int], marked: Sequence[Sequence[int]]) -> LayerRows:
        """What every layer reads at one position of each of B sequences, [B, 1, row_dim].

        Args:
            token_ids: the position's tokens.
            marked: the marked compressed ids of each sequence up to the position.
        """
        num = len(token_ids)
        rows: LayerRows = {}
        if self.engram is not None:
            taken = self._recorded(marked)
            taken = self._hashed(self.engram, marked) if taken is None else taken
            rows["engram"] = {layer: taken[:, i : i + 1] for i, layer in enumerate(self.engram.layer_ids)}
        if self.stem is not None:
            stem = self.stem
            wanted = [first + token for token in token_ids for first in self._token_rows]
            taken = self.flat[stem.kind].take(wanted).view(num, len(stem.layer_ids), stem.row_dim)
            rows[stem.kind] = {layer: taken[:, i : i + 1] for i, layer in enumerate(stem.layer_ids)}
        return rows

    def _hashed(self, layout: EngramLayout, marked: Sequence[Sequence[int]]) -> Tensor:
        """What the Engram layers read, [B, layers, row_dim], row by row."""
        wanted: list[int] = []
        for one in marked:
            hashed = layout.hash.position(one)
            for layer, offsets in zip(layout.layer_ids, self._offsets, strict=True):
                wanted += map(int.__add__, hashed[layer], offsets)
        return self.flat[layout.kind].take(wanted).view(len(marked), len(layout.layer_ids), layout.row_dim)

    def _recorded(self, marked: Sequence[Sequence[int]]) -> Tensor | None:
        """The same in one read for each sequence; None where an n-gram has no record."""
        if self.records is None:
            return None
        found: list[int] = []
        for one in marked:
            record = self.records.find(one)
            if record is None:
                return None
            found.append(record)
        return self.records.take(found)


class MemorySession:
    """Rows of B sequences, piece after piece; what comes is what the whole would have given.

    Rows are read without gradients.

    Args:
        memory: whose rows are read.
        num_sequences: B.
        reader: of the memory, where several sessions share one. None makes one; a memory that has none (rows of other
            processes, tables that compute them) is read through its collections.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> words = Tokenizer(models.WordLevel({"<s>": 0, "the": 1, "The": 2, "cat": 3}, unk_token="<s>"))
        >>> compression = TokenCompression.from_tokenizer(words)
        >>> memory = MemoryTables([StemLayout(StemConfig(layer_ids=[1], ffn_dim=64), compression)])
        >>> session = MemorySession(memory, num_sequences=1)
        >>> session.extend(torch.tensor([[1, 3]]))["stem"][1].shape  # a prompt
        torch.Size([1, 2, 64])
        >>> session.next([2])["stem"][1].shape  # a token
        torch.Size([1, 1, 64])
        >>> session.crop(2)
    """

    def __init__(self, memory: MemoryTables, num_sequences: int, *, reader: MemoryReader | None = None) -> None:
        self.memory = memory
        self.reader = reader or _reader_of(memory)
        self.history = TokenHistory(num_sequences)

    @property
    def length(self) -> int:
        """Positions so far."""
        return self.history.length

    def extend(
        self, token_ids_BT: Tensor, *, dead_BT: Tensor | None = None, starts_BT: Tensor | None = None
    ) -> LayerRows:
        """Goes on by some positions.

        Args:
            token_ids_BT, dead_BT, starts_BT: as for `MemoryTables.address`.

        Returns:
            What every layer reads there.

        Raises:
            DataError: ids that the tokenizer does not have, or another number of sequences.
        """
        num = len(self.history.rows)
        if token_ids_BT.dim() != 2 or len(token_ids_BT) != num:
            raise DataError(f"token ids of shape {tuple(token_ids_BT.shape)} do not go on from {num} sequences")
        is_plain = dead_BT is None and starts_BT is None
        if self.reader is not None and token_ids_BT.shape[1] == 1 and num <= FEW and is_plain:
            return self.next(token_ids_BT.view(-1).tolist())
        before_BS = self.history.last(self.memory.lookback)
        with torch.no_grad():
            addressed = self.memory.address(token_ids_BT, dead_BT=dead_BT, starts_BT=starts_BT, before_BS=before_BS)
            rows = self.memory.look_up(addressed)
        self.history.append(addressed.marked_BT)
        return rows

    def next(self, token_ids: Sequence[int]) -> LayerRows:
        """Goes on by one position, given as Python's integers: the read path of decoding.

        Raises:
            DataError: ids that the tokenizer does not have, or another number of sequences.
        """
        marked = self.history.rows
        if len(token_ids) != len(marked):
            raise DataError(f"{len(token_ids)} tokens do not go on from {len(marked)} sequences")
        if self.reader is None:
            return self.extend(torch.tensor(token_ids, dtype=torch.int64).view(-1, 1))
        compressed = [self.reader.compression.one(token) for token in token_ids]
        for row, token in zip(marked, compressed, strict=True):
            row.append(token)
        return self.reader.read(token_ids, marked)

    def crop(self, length: int) -> None:
        """Rolls back to some length, as when a draft is rejected."""
        self.history.crop(length)

    def reorder(self, sequences: Sequence[int]) -> None:
        """Goes on from other sequences, as beam search does: b from what `sequences[b]` was."""
        self.history.reorder(sequences)


def _reader_of(memory: MemoryTables) -> MemoryReader | None:
    try:
        return MemoryReader(memory)
    except ConfigError:
        return None
