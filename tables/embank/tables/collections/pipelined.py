"""Collections under TorchRec's training pipelines, which send a batch's ids to their ranks while the batch before is
computed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.distributed.embedding_sharding import KJTListSplitsAwaitable
from torchrec.distributed.types import LazyNoWait, ShardedModule
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.streamable import Multistreamable

from embank.tables.collections.addressed import Addressed, AddressedSequence
from embank.tables.collections.fused_optimizer import RowsOptimizer
from embank.tables.collections.pooled import TableCollection
from embank.tables.collections.sequence import SequenceCollection
from embank.tables.collections.traced import OneStep


@dataclass
class LookupContext(Multistreamable):  # type: ignore[misc]
    """A batch between its two visits: when its ids set off, and when it is looked up."""

    addressed: Addressed | AddressedSequence | None = None

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that a stream uses the batch."""
        if self.addressed is not None:
            self.addressed.record_stream(stream)


class InTwoSteps:
    """What TorchRec's wrappers and pipelines call of a module that is a collection or stands for one."""

    is_pipelined = False

    @property
    def tables(self) -> Any:
        """The collection."""
        raise NotImplementedError

    def look_up_now(self, addressed: Any) -> Any:
        """What the collection returns for a batch that is addressed."""
        raise NotImplementedError

    @property
    def unsharded_module_type(self) -> type[Any]:
        """The collection's class; TorchRec asks for it."""
        return type(self.tables)

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """Parameters whose gradients DistributedDataParallel is to leave alone: of rows with an optimizer of their own.
        Others are the same on every rank."""
        tables = self.tables
        shared = {id(parameter) for parameter in tables.dense_parameters()}
        rows = [] if tables.optimizer.is_external else tables.named_parameters(prefix)
        return (name for name, parameter in rows if id(parameter) not in shared)

    def create_context(self) -> LookupContext:
        """Of one batch."""
        return LookupContext()

    def preprocess_input(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The same."""
        return args, kwargs

    def input_dist(
        self,
        ctx: LookupContext,
        features: KeyedJaggedTensor | Mapping[str, Tensor] | Addressed | AddressedSequence,
    ) -> KJTListSplitsAwaitable[LookupContext]:
        """Sends the ids of a batch on their way; there is nothing that the pipeline itself would have to wait for.

        Args:
            ctx: of the batch.
            features: ids as the collection takes them, or what its `address` made of them.
        """
        if not isinstance(features, Addressed):
            features = self.tables.address(features)
        ctx.addressed = features
        self.tables.prefetch(features)
        return KJTListSplitsAwaitable([], ctx)

    def compute(self, ctx: LookupContext, dist_input: Any) -> Any:
        """What the collection returns for the batch."""
        return self.look_up_now(ctx.addressed)

    def output_dist(self, ctx: LookupContext, output: Any) -> LazyNoWait[Any]:
        """The same: the collection has brought the rows home already."""
        return LazyNoWait(output)

    def compute_and_output_dist(self, ctx: LookupContext, dist_input: Any) -> LazyNoWait[Any]:
        """Both."""
        return self.output_dist(ctx, self.compute(ctx, dist_input))


class PipelinedTables(InTwoSteps, OneStep, ShardedModule[Any, Any, Any, LookupContext]):  # type: ignore[misc]
    """Stands for a collection in a model, and is looked up in the two steps that `TrainPipelineSparseDist` and its
    relatives run apart.

    In a model's forward pass call it once, with an attribute of the batch: the ids, or what the collection's `address`
    has made of them on the loader's thread. While batch i is computed, the pipeline has the ids of batch i + 1 sent.
    Call `step()` after each `progress`: it finishes the rows' update and lets methods follow their schedules.

    It has the collection's parameters, buffers and names in a `state_dict`, and every other member too, such as
    `embedding_bag_configs`: TorchRec's models take it in place of an `EmbeddingBagCollection`.

    Args:
        tables: the collection. The model needs no other reference to it.

    Example:
        >>> from torchrec import KeyedJaggedTensor
        >>> spec = TableSpec(name="item", num_embeddings=10, embedding_dim=2, feature_names=["item"])
        >>> tables = TableCollection([spec])
        >>> kjt = KeyedJaggedTensor(keys=["item"], values=torch.tensor([7, 8]), lengths=torch.tensor([1, 1]))
        >>> look_up = PipelinedTables(tables)
        >>> torch.equal(look_up(kjt).values(), tables(kjt).values())
        True
        >>> look_up.embedding_bag_configs()[0].name, sorted(look_up.state_dict()) == sorted(tables.state_dict())
        ('item', True)
    """

    def __init__(self, tables: TableCollection | SequenceCollection) -> None:
        super().__init__()
        self._tables = (tables,)  # no submodule: names of parameters would change
        self._modules = tables._modules
        self.training = tables.training

    @property
    def tables(self) -> TableCollection | SequenceCollection:
        """The collection."""
        return self._tables[0]

    def __getattr__(self, name: str) -> Any:
        if name == "_tables":  # not made yet
            raise AttributeError(name)
        return getattr(self.tables, name)

    @property
    def fused_optimizer(self) -> RowsOptimizer:
        """The collection's."""
        return self.tables.fused_optimizer

    def look_up_now(self, addressed: Any) -> Any:
        """What the collection returns for a batch that is addressed."""
        return self.tables(addressed)

    def forward(self, features: Any) -> Any:
        """What the collection returns, at the moment that somebody looks at it.

        Args:
            features: see `input_dist`.
        """
        step = self.step_of(features)
        return super().forward(features) if step is None else step

    def train(self, mode: bool = True) -> "PipelinedTables":
        """Of the collection, too."""
        self.tables.train(mode)
        super().train(mode)
        return self

    def get_extra_state(self) -> Tensor:
        """The collection's."""
        return self.tables.get_extra_state()

    def set_extra_state(self, state: Tensor) -> None:
        """The collection's."""
        self.tables.set_extra_state(state)

    def _apply(self, fn: Any, recurse: bool = True) -> "PipelinedTables":
        self.tables._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.tables._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.tables._load_from_state_dict(*args)


FusedOptimizerModule.register(PipelinedTables)
