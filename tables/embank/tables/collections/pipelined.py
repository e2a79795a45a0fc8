"""Collections under TorchRec's training pipelines, which send a batch's ids to their ranks while the batch before is
computed."""

from dataclasses import dataclass
from typing import Any

import torch
from torchrec.distributed.embedding_sharding import KJTListSplitsAwaitable
from torchrec.distributed.types import LazyNoWait, ShardedModule
from torchrec.streamable import Multistreamable

from embank.tables.collections.addressed import Addressed, AddressedSequence
from embank.tables.collections.pooled import TableCollection
from embank.tables.collections.sequence import SequenceCollection


@dataclass
class LookupContext(Multistreamable):  # type: ignore[misc]
    """A batch between its two visits: when its ids set off, and when it is looked up."""

    addressed: Addressed | AddressedSequence | None = None

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that a stream uses the batch."""
        if self.addressed is not None:
            self.addressed.record_stream(stream)


class PipelinedTables(ShardedModule[Any, Any, Any, LookupContext]):  # type: ignore[misc]
    """Looks up in a collection, in the two steps that `TrainPipelineSparseDist` and its relatives run apart.

    In a model's forward pass call it with an attribute of the batch that holds what the collection's `address` has made
    on the loader's thread: `self.lookup(batch.sparse)`. While batch i is computed, the pipeline has the ids of batch i
    + 1 sent. Call `tables.step()` after each `progress`: it finishes the rows' update and lets methods follow their
    schedules.

    Args:
        tables: the collection; keep it as a submodule of the model too. It is not one of this module: its parameters
            would be there twice, and pipelines would rewire the exchanges inside it.

    Example:
        >>> from torchrec import KeyedJaggedTensor
        >>> spec = TableSpec(name="item", num_embeddings=10, embedding_dim=2, feature_names=["item"])
        >>> tables = TableCollection([spec])
        >>> kjt = KeyedJaggedTensor(keys=["item"], values=torch.tensor([7, 8]), lengths=torch.tensor([1, 1]))
        >>> look_up = PipelinedTables(tables)
        >>> torch.equal(look_up(tables.address(kjt)).values(), tables(kjt).values())
        True
    """

    def __init__(self, tables: TableCollection | SequenceCollection) -> None:
        super().__init__()
        self._tables = (tables,)

    @property
    def tables(self) -> TableCollection | SequenceCollection:
        """The collection."""
        return self._tables[0]

    @property
    def unsharded_module_type(self) -> type[TableCollection | SequenceCollection]:
        """The collection's class; TorchRec asks for it."""
        return type(self.tables)

    def create_context(self) -> LookupContext:
        """Of one batch."""
        return LookupContext()

    def input_dist(
        self, ctx: LookupContext, addressed: Addressed | AddressedSequence
    ) -> KJTListSplitsAwaitable[LookupContext]:
        """Sends the ids of a batch on their way; there is nothing that the pipeline itself would have to wait for."""
        ctx.addressed = addressed
        self.tables.prefetch(addressed)  # type: ignore[arg-type]
        return KJTListSplitsAwaitable([], ctx)

    def compute(self, ctx: LookupContext, dist_input: Any) -> Any:
        """What the collection returns for the batch."""
        return self.tables(ctx.addressed)

    def output_dist(self, ctx: LookupContext, output: Any) -> LazyNoWait[Any]:
        """The same: the collection has brought the rows home already."""
        return LazyNoWait(output)
