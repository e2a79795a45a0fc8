"""Rows in torch's distributed checkpoint format: written in bounded pieces by the processes that hold them, read back
under any plan.

A table is saved in pieces of at most `PIECE_NBYTES`, so saving and loading take that much memory, wherever the rows
are. Each process reads the pieces that hold rows of its own and puts them where its shards want them. A piece is a
range of *positions* (`TableShard`): of row numbers for most tables, of striped positions for those that were row-wise
when they were saved.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save

from embank.tables.errors import CheckpointError
from embank.tables.rows.shards import TableShard, rows_at
from embank.tables.rows.store_spec import ROW_DTYPES
from embank.tables.storage.row_index import Piece, read_index, read_piece

PIECE_NBYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class RowTensor:
    """A tensor with one entry per row of a physical table, as far as this process holds it.

    Args:
        name: unique in a checkpoint.
        view: [R, D] or [R], written and read in place.
        shard: which rows and columns these are.
        is_saved: False for replicas that another process saves.
    """

    name: str
    view: Tensor
    shard: TableShard
    is_saved: bool = True

    @property
    def size(self) -> torch.Size:
        """Shape of the whole tensor, over all processes."""
        positions = self.shard.num_positions
        return torch.Size([positions] if self.view.dim() == 1 else [positions, self.shard.table.embedding_dim])

    def offsets(self, start: int) -> torch.Size:
        """Where local row `start` lies in the whole tensor."""
        position = self.shard.first_position + start
        return torch.Size([position] if self.view.dim() == 1 else [position, self.shard.first_column])

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Ranges of local rows, each of bounded size; an empty one where this process holds nothing."""
        row_nbytes = self.view[:1].numel() * self.view.element_size()
        step = max(1, PIECE_NBYTES // max(1, row_nbytes))
        for start in range(0, self.view.shape[0], step):
            yield start, min(self.view.shape[0], start + step)


def write_rows(folder: Path, tensors: Iterable[RowTensor], *, group: dist.ProcessGroup | None) -> Metadata:
    """Writes rows to a folder; with a group, all its processes call this together.

    Returns:
        What `write_index` needs to make them readable.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metadata: Metadata = save(
            {}, checkpoint_id=folder, planner=_Saver(tensors), process_group=group, no_dist=group is None
        )
    return metadata


def read_rows(folder: Path, tensors: Sequence[RowTensor]) -> None:
    """Reads rows into place, one piece at a time; each process for itself.

    Args:
        folder: what `write_rows` wrote.
        tensors: where they go.

    Raises:
        CheckpointError: a tensor is missing, damaged, or has another shape; before anything was changed, unless a file
            is damaged.
    """
    index = read_index(folder)
    for tensor in tensors:
        if tensor.name not in index:
            raise CheckpointError(f"the checkpoint in '{folder}' has no '{tensor.name}'")
        saved = index[tensor.name]
        expected = replace(tensor, shard=replace(tensor.shard, is_striped=saved.is_striped)).size
        if saved.size != tuple(expected):
            raise CheckpointError(
                f"the checkpoint in '{folder}' holds '{tensor.name}' with shape {saved.size}, the table here has "
                f"{tuple(expected)}"
            )
        if ROW_DTYPES[saved.dtype] != tensor.view.dtype:
            raise CheckpointError(
                f"the checkpoint in '{folder}' holds '{tensor.name}' as {saved.dtype}, the table here has "
                f"{str(tensor.view.dtype).removeprefix('torch.')}. Load it into tables with "
                f"RowTier(dtype='{saved.dtype}') (rows.dtype in a configuration)"
            )
    for tensor in tensors:  # a second loop: what does not fit is refused before the first row is overwritten
        saved = index[tensor.name]
        for piece in saved.pieces:
            if _overlaps(tensor, piece, saved.is_striped):
                _place(tensor, piece, read_piece(folder, piece), saved.is_striped)


def _overlaps(tensor: RowTensor, piece: Piece, is_striped: bool) -> bool:
    """Whether some of a piece's rows are held here."""
    shard = tensor.shard
    if not shard.num_rows:
        return False
    if len(piece.offsets) > 1:
        first, width = piece.offsets[1], piece.sizes[1]
        if first >= shard.first_column + shard.num_columns or first + width <= shard.first_column:
            return False
    if shard.is_striped != is_striped:  # rows and positions are in another order: any piece may hold some of them
        return True
    first, count = piece.offsets[0], piece.sizes[0]
    return first < shard.first_position + shard.num_rows and first + count > shard.first_position


def _place(target: RowTensor, piece: Piece, values: Tensor, is_striped: bool) -> None:
    """Writes those rows and columns of a piece that are held here to where they are held."""
    shard, view, offsets = target.shard, target.view, piece.offsets
    if view.dim() > 1:
        first = max(offsets[1], shard.first_column)
        last = min(offsets[1] + values.shape[1], shard.first_column + shard.num_columns)
        view = view[:, first - shard.first_column : last - shard.first_column]
        values = values[:, first - offsets[1] : last - offsets[1]]
    if is_striped == shard.is_striped:  # the same order on disk and here: a plain slice
        start = max(0, offsets[0] - shard.first_position)
        stop = min(shard.num_rows, offsets[0] + values.shape[0] - shard.first_position)
        shift = shard.first_position - offsets[0]
        view[start:stop] = values[start + shift : stop + shift]
        return
    # Cut in stripes there and not here, or the other way round: row by row, by the numbers of the rows.
    rows = torch.arange(offsets[0], offsets[0] + values.shape[0])
    if is_striped:
        rows = rows_at(rows, num_rows=shard.table.num_embeddings)
        real = rows < shard.table.num_embeddings
        rows, values = rows[real], values[real]
    held, local = shard.local_rows(rows)
    view[local] = values[held].to(view.device)


class _Saver(DefaultSavePlanner):
    """Says in which pieces tensors are written, and copies one piece at a time."""

    def __init__(self, tensors: Iterable[RowTensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.pieces: dict[MetadataIndex, Tensor] = {}
        self.items = [item for tensor in tensors if tensor.is_saved for item in self._items(tensor)]

    def _items(self, tensor: RowTensor) -> Iterator[WriteItem]:
        for start, stop in tensor.pieces():
            piece = tensor.view[start:stop]
            index = MetadataIndex(tensor.name, tensor.offsets(start))
            self.pieces[index] = piece
            yield WriteItem(
                index=index,
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets=tensor.offsets(start), sizes=piece.shape),
                    properties=TensorProperties.create_from_tensor(piece),
                    size=tensor.size,
                ),
            )

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(self.items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self.pieces[write_item.index].clone()  # a view would be saved with all of its storage
