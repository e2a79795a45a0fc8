"""Rows in torch's distributed checkpoint format: written in bounded pieces by the processes that hold them, read back under any plan.

A table is saved in pieces of at most `PIECE_NBYTES`, so saving and loading take that much memory, wherever the rows are. Each
process reads the pieces that hold rows of its own and puts them where its shards want them. A piece is a range of *places*
(`TableShard`): of row numbers for most tables, of striped places for those that were row-wise when they were saved.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from embank.tables.errors import CheckpointError
from embank.tables.specs import TableShard, rows_of

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
        places = self.shard.num_places
        return torch.Size([places] if self.view.dim() == 1 else [places, self.shard.table.embedding_dim])

    def offsets(self, start: int) -> torch.Size:
        """Where local row `start` lies in the whole tensor."""
        place = self.shard.first_place + start
        return torch.Size([place] if self.view.dim() == 1 else [place, self.shard.first_column])

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Ranges of local rows, each of bounded size; an empty one where this process holds nothing."""
        row_nbytes = self.view[:1].numel() * self.view.element_size()
        step = max(1, PIECE_NBYTES // max(1, row_nbytes))
        for start in range(0, self.view.shape[0], step):
            yield start, min(self.view.shape[0], start + step)


def write_rows(folder: Path, tensors: Iterable[RowTensor], *, group: dist.ProcessGroup | None) -> None:
    """Writes rows to a folder; with a group, all its processes call this together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({}, checkpoint_id=folder, planner=_Saver(tensors), process_group=group, no_dist=group is None)


def read_rows(folder: Path, tensors: Iterable[RowTensor], *, striped: Iterable[str]) -> None:
    """Reads rows into place; each process for itself.

    Args:
        folder: what `write_rows` wrote.
        tensors: where they go.
        striped: tables that were striped when they were saved.

    Raises:
        CheckpointError: a tensor is missing, or has another shape.
    """
    loader = _Loader(tensors, frozenset(striped))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load({}, storage_reader=FileSystemReader(folder), planner=loader, no_dist=True)


def saved_names(folder: Path) -> list[str]:
    """Names of the tensors in a folder that `write_rows` wrote."""
    return sorted(FileSystemReader(folder).read_metadata().state_dict_metadata)


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


class _Loader(LoadPlanner):
    """Asks for the pieces that hold rows of this process, and puts their rows into place one piece at a time."""

    def __init__(self, tensors: Iterable[RowTensor], striped: frozenset[str]) -> None:
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self.striped = striped

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None
        self.metadata = metadata

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan([item for tensor in self.tensors.values() for item in self._items(tensor)])

    def _items(self, tensor: RowTensor) -> Iterator[ReadItem]:
        saved = self.metadata.state_dict_metadata.get(tensor.name)
        if not isinstance(saved, TensorStorageMetadata):
            raise CheckpointError(f"the checkpoint has no '{tensor.name}'")
        is_striped = tensor.shard.table.name in self.striped
        expected = replace(tensor, shard=replace(tensor.shard, is_striped=is_striped)).size
        if saved.size != expected:
            raise CheckpointError(
                f"the checkpoint holds '{tensor.name}' with shape {tuple(saved.size)}, the table here has {tuple(expected)}"
            )
        for chunk in saved.chunks:
            if self._overlaps(tensor, chunk, is_striped):
                index = MetadataIndex(tensor.name, chunk.offsets)
                nowhere = torch.Size([0] * len(chunk.offsets))
                yield ReadItem(
                    type=LoadItemType.TENSOR,
                    dest_index=index,
                    dest_offsets=nowhere,
                    storage_index=index,
                    storage_offsets=nowhere,
                    lengths=chunk.sizes,
                )

    @staticmethod
    def _overlaps(tensor: RowTensor, chunk: ChunkStorageMetadata, is_striped: bool) -> bool:
        shard = tensor.shard
        if not shard.num_rows:
            return False
        if len(chunk.offsets) > 1:
            first, width = chunk.offsets[1], chunk.sizes[1]
            if first >= shard.first_column + shard.num_columns or first + width <= shard.first_column:
                return False
        if shard.is_striped != is_striped:
            return True
        first, count = chunk.offsets[0], chunk.sizes[0]
        return first < shard.first_place + shard.num_rows and first + count > shard.first_place

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        raise CheckpointError(f"the checkpoint's '{read_item.dest_index.fqn}' is not a tensor")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        return torch.empty(read_item.lengths)

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        target = self.tensors[read_item.dest_index.fqn]
        offsets = read_item.dest_index.offset
        assert offsets is not None
        shard, view = target.shard, target.view
        if view.dim() > 1:
            first = max(offsets[1], shard.first_column)
            last = min(offsets[1] + tensor.shape[1], shard.first_column + shard.num_columns)
            view = view[:, first - shard.first_column : last - shard.first_column]
            tensor = tensor[:, first - offsets[1] : last - offsets[1]]
        is_striped = shard.table.name in self.striped
        if is_striped == shard.is_striped:
            start = max(0, offsets[0] - shard.first_place)
            stop = min(shard.num_rows, offsets[0] + tensor.shape[0] - shard.first_place)
            shift = shard.first_place - offsets[0]
            view[start:stop] = tensor[start + shift : stop + shift]
            return
        rows = torch.arange(offsets[0], offsets[0] + tensor.shape[0])
        if is_striped:
            rows = rows_of(rows, num_rows=shard.table.num_embeddings)
            real = rows < shard.table.num_embeddings
            rows, tensor = rows[real], tensor[real]
        held, local = shard.local_rows(rows)
        view[local] = tensor[held]
