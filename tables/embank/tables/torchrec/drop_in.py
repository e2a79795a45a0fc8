"""`EmbeddingBagCollection` and `EmbeddingCollection` with TorchRec's arguments, on embank's tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Dict, Self  # noqa: UP035 - TorchScript reads annotations
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torchrec import JaggedTensor, KeyedJaggedTensor, KeyedTensor
from torchrec.distributed.types import ShardedModule
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, EmbeddingBagConfig, EmbeddingConfig

from embank.tables.collections.base import Tables
from embank.tables.collections.configs import refuse_no_configs, specs_of, tier_of
from embank.tables.collections.parameters import chosen_in_backward, fuse_optimizer
from embank.tables.collections.pipelined import InTwoSteps
from embank.tables.collections.pooled import TableCollection
from embank.tables.collections.sequence import SequenceCollection
from embank.tables.collections.state import is_plain
from embank.tables.errors import ConfigError
from embank.tables.rows import RowOptimizer, RowTier
from embank.tables.rows.optimizers import row_optimizer_of
from embank.tables.rows.store_spec import Backend
from embank.tables.specs import TableSpec

if TYPE_CHECKING:
    from embank.tables.sharding.sharded_rows import Sharding


_SCRIPTED: "WeakValueDictionary[int, DropIn]" = WeakValueDictionary()


class DropIn(InTwoSteps, Tables):
    """What a collection with TorchRec's arguments does besides its own: rows are parameters where they have no
    optimizer of their own, a `state_dict` of plain tables has TorchRec's names and no others, and TorchRec's wrappers
    and pipelines take it for a sharded module: they leave it in its place and call it in two steps."""

    rows_are_parameters = True

    __jit_unused_properties__: ClassVar[list[str]]

    def __init_subclass__(cls, **how: Any) -> None:
        super().__init_subclass__(**how)
        every = [(name, value) for base in cls.__mro__ for name, value in vars(base).items()]
        cls.__jit_unused_properties__ = [name for name, value in every if isinstance(value, property)]

    @property
    def __jit_ignored_attributes__(self) -> list[str]:
        """What `torch.jit.script` of a model leaves alone here: all but `forward`, which stays a call into Python.

        It puts another module in this one's place, which gets these attributes, and calls `forward` with a third one,
        which has no more than a number by which to find this one again.
        """
        ignored = [*vars(self), *self._modules, *self.__jit_unused_properties__]
        self.__dict__.update(scripted=id(self), in_python=(self,))
        _SCRIPTED[id(self)] = self
        return [name for name in (*ignored, "in_python") if name != "scripted"]

    @property
    def tables(self) -> Self:
        """The collection."""
        return self

    def look_up_now(self, addressed: Any) -> Any:
        """What the collection returns for a batch that is addressed, also while a pipeline has replaced `forward`."""
        return type(self).forward(self, addressed)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in [key for key in destination if key.startswith(f"{prefix}row_optimizer.")]:
            del destination[name]  # it is part of `fused_optimizer.state_dict()`
        if is_plain(self):
            destination.pop(f"{prefix}_extra_state")

    @classmethod
    def of_specs(cls, specs: Sequence[TableSpec], **how: Any) -> Self:
        made = cls.__new__(cls)
        super(DropIn, made).__init__(specs, **how)
        return made


ShardedModule.register(DropIn)


def _in_python(tables: Any) -> Any:
    """The collection itself, also where a scripted module calls."""
    return tables if isinstance(tables, DropIn) else _SCRIPTED[tables.scripted]


def _chosen(optimizer: RowOptimizer | None, sharding: "Sharding | None") -> RowOptimizer:
    if optimizer is not None:
        return optimizer
    return RowOptimizer.external() if sharding is None else RowOptimizer()


def _draw_unused(config: BaseEmbeddingConfig) -> None:
    """Draws what torch's modules draw when they are made, before TorchRec gives their weights other values."""
    torch.nn.init.normal_(torch.empty(config.num_embeddings, config.embedding_dim))


def _drawn(config: BaseEmbeddingConfig) -> Callable[[Tensor], Any]:
    init_fn: Callable[[Tensor], Any] = config.init_fn
    return init_fn


def _drawn_after_unused(config: BaseEmbeddingConfig) -> Callable[[Tensor], Any]:
    def draw(rows_RD: Tensor) -> None:
        _draw_unused(config)
        _drawn(config)(rows_RD)

    return draw


class EmbeddingBagCollection(DropIn, TableCollection):
    """`torchrec.EmbeddingBagCollection` on embank's tables.

    Without `optimizer` rows are parameters with dense gradients, for an optimizer of the program. With one, or after
    `apply_optimizer_in_backward(cls, collection.parameters(), {...})`, they are updated in the backward pass.

    Args:
        tables: TorchRec's configs.
        is_weighted: whether ids have weights, by which their rows are multiplied before the sum.
        device: where the tables are; on "meta" they hold nothing yet.
        method: how tables are stored, for all or by table.
        budget: serving bytes / bytes of the plain tables, for all that have a method or by table.
        options: of the method, for all or by table.
        optimizer: of the rows, in the backward pass.
        backend: of the rows, "fbgemm" or "torch".
        seed: of initial values; None draws those of plain tables from torch's own generator, so that after
            `torch.manual_seed` they are TorchRec's to the bit.
        tier: where rows are held.
        sharding: spreads rows over processes.

    Raises:
        ConfigError: what a table, a method or a backend refuses.

    Example:
        >>> from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
        >>> config = EmbeddingBagConfig(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"])
        >>> tables = EmbeddingBagCollection(tables=[config], method="hash", budget=0.1)
        >>> kjt = KeyedJaggedTensor(keys=["item"], values=torch.tensor([7, 8]), lengths=torch.tensor([2, 0]))
        >>> tables(kjt).values().shape, [name for name, _ in tables.named_parameters()]
        (torch.Size([2, 8]), ['rows.item.weight'])
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        *,
        method: str | Mapping[str, str] = "full",
        budget: float | Mapping[str, float] | None = None,
        options: Any = None,
        optimizer: RowOptimizer | None = None,
        backend: Backend = "fbgemm",
        seed: int | None = None,
        tier: RowTier | None = None,
        sharding: "Sharding | None" = None,
    ) -> None:
        refuse_no_configs(tables)
        chosen = tier_of(tables, tier=tier, device=device)
        init_of = None if seed is not None or chosen.is_meta else _drawn
        specs = specs_of(tables, method=method, budget=budget, options=options, weighted=is_weighted, init_of=init_of)
        if init_of is not None:
            for config in tables:
                _draw_unused(config)
        TableCollection.__init__(
            self,
            specs,
            seed=seed or 0,
            backend=backend,
            optimizer=_chosen(optimizer, sharding),
            tier=chosen,
            sharding=sharding,
        )

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        return TableCollection.forward(_in_python(self), features)


class EmbeddingCollection(DropIn, SequenceCollection):
    """`torchrec.EmbeddingCollection` on embank's tables. Arguments that it shares with `EmbeddingBagCollection` are
    those of that.

    Args:
        tables: TorchRec's configs; dims may differ.
        device: where the tables are; on "meta" they hold nothing yet.
        need_indices: whether the output's weights are to be the ids.
        method, budget, options, optimizer, backend, seed, tier, sharding: see `EmbeddingBagCollection`.

    Raises:
        ConfigError: what a table, a method or a backend refuses.

    Example:
        >>> from torchrec import EmbeddingConfig, KeyedJaggedTensor
        >>> config = EmbeddingConfig(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"])
        >>> tables = EmbeddingCollection(tables=[config], need_indices=True)
        >>> kjt = KeyedJaggedTensor(keys=["item"], values=torch.tensor([7, 8]), lengths=torch.tensor([2, 0]))
        >>> rows = tables(kjt)["item"]
        >>> rows.values().shape, rows.weights().tolist()
        (torch.Size([2, 8]), [7, 8])
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingConfig],
        device: torch.device | str | None = None,
        need_indices: bool = False,
        *,
        method: str | Mapping[str, str] = "full",
        budget: float | Mapping[str, float] | None = None,
        options: Any = None,
        optimizer: RowOptimizer | None = None,
        backend: Backend = "fbgemm",
        seed: int | None = None,
        tier: RowTier | None = None,
        sharding: "Sharding | None" = None,
    ) -> None:
        refuse_no_configs(tables)
        chosen = tier_of(tables, tier=tier, device=device)
        init_of = None if seed is not None or chosen.is_meta else _drawn_after_unused
        specs = specs_of(tables, method=method, budget=budget, options=options, weighted=False, init_of=init_of)
        SequenceCollection.__init__(
            self,
            specs,
            seed=seed or 0,
            backend=backend,
            optimizer=_chosen(optimizer, sharding),
            tier=chosen,
            sharding=sharding,
            need_indices=need_indices,
        )

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def forward(self, features: KeyedJaggedTensor) -> Dict[str, JaggedTensor]:  # noqa: UP006
        rows: dict[str, JaggedTensor] = SequenceCollection.forward(_in_python(self), features)
        return rows


class FusedEmbeddingBagCollection(EmbeddingBagCollection):
    """`torchrec.modules.fused_embedding_modules.FusedEmbeddingBagCollection` on embank's tables.

    Args:
        tables: TorchRec's configs.
        optimizer_type, optimizer_kwargs: of the rows, in the backward pass.
        is_weighted, device: see `EmbeddingBagCollection`.
        how: its other arguments.

    Raises:
        ConfigError: an optimizer that rows can't have, or what `EmbeddingBagCollection` refuses.

    Example:
        >>> from torchrec import EmbeddingBagConfig
        >>> config = EmbeddingBagConfig(name="item", num_embeddings=10, embedding_dim=4, feature_names=["item"])
        >>> tables = FusedEmbeddingBagCollection([config], torch.optim.SGD, {"lr": 0.02})
        >>> tables.optimizer.name
        'sgd'
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        optimizer_type: type[torch.optim.Optimizer],
        optimizer_kwargs: Mapping[str, Any],
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        **how: Any,
    ) -> None:
        optimizer = row_optimizer_of(optimizer_type, optimizer_kwargs)
        super().__init__(tables, is_weighted, device, optimizer=optimizer, **how)


def fuse_embedding_optimizer(
    model: nn.Module,
    optimizer_type: type[torch.optim.Optimizer],
    optimizer_kwargs: Mapping[str, Any],
    device: torch.device | None = None,
) -> nn.Module:
    """Gives all tables of a model an optimizer for the backward pass, in place.

    Args:
        model: a collection, or what has some.
        optimizer_type: `torch.optim.SGD`, `torch.optim.Adagrad`, `torchrec.optim.RowWiseAdagrad`, ...
        optimizer_kwargs: its arguments.
        device: where the tables are already.

    Returns:
        The model.

    Raises:
        ConfigError: an optimizer that rows can't have; no table in the model.

    Example:
        >>> from torchrec import EmbeddingBagConfig
        >>> config = EmbeddingBagConfig(name="item", num_embeddings=10, embedding_dim=4, feature_names=["item"])
        >>> tables = EmbeddingBagCollection(tables=[config])
        >>> _ = fuse_embedding_optimizer(tables, torch.optim.SGD, {"lr": 0.02})
        >>> tables.fused_optimizer.param_groups[0]["lr"]
        0.02
    """
    optimizer = row_optimizer_of(optimizer_type, optimizer_kwargs)
    found = [module for module in model.modules() if isinstance(module, DropIn)]
    if not found:
        raise ConfigError(f"the {type(model).__name__} has no EmbeddingBagCollection or EmbeddingCollection of embank")
    for tables in found:
        if tables.optimizer.is_external and chosen_in_backward(tables) is not None:
            raise ConfigError(
                "apply_optimizer_in_backward has chosen an optimizer for these rows already; use one of the two"
            )
        if device is not None and tables.device.type != torch.device(device).type:
            raise ConfigError(
                f"the tables are on '{tables.device}', not '{device}'; make them there, device='{device}'"
            )
        fuse_optimizer(tables, optimizer)
        if type(tables) is EmbeddingBagCollection:
            tables.__class__ = FusedEmbeddingBagCollection  # what TorchRec puts in its place
    return model
