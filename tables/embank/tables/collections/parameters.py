"""Rows under the names that TorchRec gives them, `tables.embedding_bags["item"].weight`, and as parameters where an
optimizer outside of the tables is to update them.

Where rows are parameters, `apply_optimizer_in_backward` on them chooses the tables' own optimizer, which then updates
the rows of a batch alone. The parameters stay, as views of the rows, but have no gradients any more.
"""

from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor, nn

from embank.tables.collections.held_rows import writing
from embank.tables.collections.named import NamedModules
from embank.tables.collections.state import row_names, set_rows
from embank.tables.errors import ConfigError
from embank.tables.method.base import Method
from embank.tables.rows.optimizers import row_optimizer_of
from embank.tables.rows.parameter_rows import ParameterRows, RowsParameter
from embank.tables.rows.store_spec import RowOptimizer

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables


class TableRows(nn.Module):
    """The rows of one physical table. It has no state of its own: the collection saves and loads them.

    Args:
        tables: the collection.
        table: the physical table's name.

    Attributes:
        weight: rows [R, D]: a parameter, or a view of what this process holds.
    """

    def __init__(self, tables: "Tables", table: str) -> None:
        super().__init__()
        self.owner, self.table = ref(tables), table
        self.first: nn.Parameter | None = None  # an optimizer may have been chosen for it on the meta device

    def expose(self, parameter: nn.Parameter) -> None:
        """Makes a parameter the module's `weight`; what was chosen for the last one goes with it."""
        old = self._parameters.get("weight") if self.first is None else self.first
        if old is not None:
            for name, value in vars(old).items():
                setattr(parameter, name, value)
        self._parameters["weight"] = parameter  # `register_parameter` would find the view of that name
        object.__setattr__(self, "first", parameter)  # not as a parameter of another name

    def conceal(self) -> None:
        """Leaves the view alone: other processes hold other rows, and no parameter has all of them."""
        if self._parameters.pop("weight", None) is not None:
            object.__setattr__(self, "first", None)

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "weight" not in self._parameters:
            tables = self.owner()
            assert tables is not None
            return tables.weights()[self.table]
        return super().__getattr__(name)

    def reset_parameters(self) -> None:
        """What gives modules their values that have left the meta device one by one (`DistributedModelParallel`)."""
        from embank.tables.collections.spreading import follow_the_group

        tables = self.owner()
        if tables is not None and tables.tier.is_meta:
            device = self.weight.device
            settle_optimizer(tables, by_kernels=True)
            follow_the_group(tables)
            tables.materialise(device)

    def _apply(self, fn: Any, recurse: bool = True) -> "TableRows":
        return self  # the collection decides

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, *args: Any) -> None:
        pass


def expose_rows(tables: "Tables") -> None:
    """Sets `embedding_bags` (`embeddings`, where nothing is pooled) and `rows`: modules by table."""
    plain = [method.spec.name for method in tables.built_methods() if method.traits.is_plain]
    others = [name for name in row_names(tables) if name not in plain]
    for attribute, names in ((tables.plain_prefix, plain), ("rows", others)):
        if attribute not in tables._modules:
            setattr(tables, attribute, NamedModules({name: TableRows(tables, name) for name in names}))
    for hidden in handles(tables) if tables.sharding is not None else ():
        hidden.conceal()
    for store in tables.row_stores():
        for shard in store.shards if tables.sharding is None else ():
            name, is_external = shard.table.name, tables.optimizer.is_external
            if isinstance(store, ParameterRows):
                parameter = store.parameter(name)
                parameter.requires_grad_(is_external)
            elif tables.rows_are_parameters:
                parameter = RowsParameter(store.weight(name), requires_grad=False)
            if tables.rows_are_parameters:
                handle(tables, name).expose(parameter)


def handle(tables: "Tables", table: str) -> TableRows:
    """The module of a physical table's rows."""
    for attribute in (tables.plain_prefix, "rows"):
        modules = getattr(tables, attribute)
        if table in modules:
            found = modules[table]
            assert isinstance(found, TableRows)
            return found
    raise KeyError(table)


def handles(tables: "Tables") -> list[TableRows]:
    """The modules of all physical tables' rows."""
    return [handle(tables, name) for name in row_names(tables)]


def initialise(tables: "Tables") -> None:
    """Initial values of the tables' own `init_fn`.

    Raises:
        ConfigError: of a table whose rows are no plain matrix.
    """
    for method in tables.built_methods():
        init_fn = method.spec.init_fn
        if init_fn is None:
            continue
        refuse_init_fn(method)
        spec = method.spec
        rows_RD = torch.empty(spec.num_embeddings, spec.embedding_dim)
        with torch.no_grad():
            init_fn(rows_RD)
        set_rows(tables, spec.name, tables.processes.first(rows_RD))


def refuse_init_fn(method: Method) -> None:
    """Raises ConfigError if initial values can't be a function of the whole table."""
    spec = method.spec
    if not method.traits.is_plain:
        raise ConfigError(
            f"table '{spec.name}' has an init_fn, which writes a row for each id, but method '{spec.method}' has no "
            "such rows; leave it out (init_std sets the deviation), or use method 'full'"
        )


@torch.no_grad()
def begin_again(tables: "Tables", fresh: "Tables") -> None:
    """Takes over rows, the state of their optimizer and what methods hold from a collection that has just been made."""
    pairs = zip(tables.row_stores(), fresh.row_stores(), strict=True)
    with writing(tables):
        for mine, theirs in pairs:
            rows, states = theirs.weights(), theirs.optimizer_state()
            for name, view in mine.weights().items():
                view.copy_(rows[name])
            for name, kinds in mine.optimizer_state().items():
                for kind, view in kinds.items():
                    view.copy_(states[name][kind])
            mine.load_step(0)
    tables.methods.load_state_dict(fresh.methods.state_dict())


def settle_optimizer(tables: "Tables", *, by_kernels: bool = False) -> None:
    """Follows what a program has done to the rows' optimizer since the last pass: a rate that a scheduler has set, an
    optimizer that `apply_optimizer_in_backward` has chosen.

    Args:
        tables: whose optimizer it is.
        by_kernels: an epsilon that was not given is that of FBGEMM's kernels, as under `DistributedModelParallel`, not
            that of the optimizer's class.
    """
    if tables.chosen_optimizer is not None:
        tables.chosen_optimizer.push_lr()
    if tables.optimizer.is_external:
        chosen = chosen_in_backward(tables, by_kernels=by_kernels)
        if by_kernels:
            _refuse_others_in_backward(tables)
        if chosen is not None:
            fuse_optimizer(tables, chosen)


def chosen_in_backward(tables: "Tables", *, by_kernels: bool = False) -> RowOptimizer | None:
    """The optimizer that `apply_optimizer_in_backward` has chosen for the rows; None if it was not called. See
    `settle_optimizer`.

    Raises:
        ConfigError: for a part of the tables only, several of them, or one that rows can't have.
    """
    found = [handle.weight for handle in handles(tables)]
    eps = {"eps": RowOptimizer().eps} if by_kernels else {}
    chosen = [
        [
            row_optimizer_of(cls, {**eps, **kwargs})
            for cls, kwargs in zip(w._optimizer_classes, w._optimizer_kwargs, strict=True)
        ]
        if hasattr(w, "_in_backward_optimizers")
        else []
        for w in found
    ]
    if not any(chosen):
        return None
    names = list(row_names(tables))
    for name, optimizers in zip(names, chosen, strict=True):
        if optimizers != chosen[0] or len(optimizers) != 1:
            raise ConfigError(
                f"apply_optimizer_in_backward gave table '{name}' {_listed(optimizers)} and table '{names[0]}' "
                f"{_listed(chosen[0])}; all rows of a collection have one optimizer: make a collection for each"
            )
    return chosen[0][0]


def _refuse_others_in_backward(tables: "Tables") -> None:
    """Raises ConfigError where what methods hold besides rows was given to `apply_optimizer_in_backward`, too:
    DistributedDataParallel takes such parameters on accelerators only."""
    for name, parameter in tables.methods.named_parameters():
        if hasattr(parameter, "_in_backward_optimizers") and not torch.accelerator.is_available():
            raise ConfigError(
                f"apply_optimizer_in_backward was given 'methods.{name}', which is no row and is averaged over "
                "processes. Give it the rows alone, [p for name, p in tables.named_parameters() if 'methods.' not in "
                "name], and the others to an ordinary optimizer"
            )


def _listed(optimizers: list[RowOptimizer]) -> str:
    return " and ".join(f"{optimizer.name} with rate {optimizer.lr:g}" for optimizer in optimizers) or "none"


@torch.no_grad()
def fuse_optimizer(tables: "Tables", optimizer: RowOptimizer) -> None:
    """Gives rows that were parameters for another optimizer one of their own; their values stay.

    Raises:
        ConfigError: an optimizer that the backend does not have.
    """
    values = {name: rows.clone() for name, rows in tables.weights().items()}
    before, tables.optimizer = tables.optimizer, optimizer
    try:
        tables._make_paths()
    except ConfigError:
        tables.optimizer = before
        raise
    if tables.chosen_optimizer is not None:
        tables.chosen_optimizer.refresh()
    tables.set_lr(optimizer.lr)
    with writing(tables):
        for name, view in tables.weights().items():
            view.copy_(values[name])
    if tables.rows_are_parameters:
        for name, view in tables.weights().items():
            weight = handle(tables, name).weight  # stays, for those that hold it
            for other in getattr(weight, "_in_backward_optimizers", ()):
                other.state.clear()  # it has none to keep any more
            weight.requires_grad_(False)
            weight.grad = None
            weight.data = view


def external_error(num_processes: int) -> ConfigError:
    """For rows that are spread over processes and left to an optimizer outside."""
    return ConfigError(
        f"rows spread over {num_processes} processes need an optimizer of their own, which runs in the backward pass: "
        "optimizer=RowOptimizer(name='rowwise_adagrad', lr=0.02)"
    )


def row_parameter(tables: "Tables", table: str) -> Tensor:
    """Rows of a physical table: the parameter where there is one."""
    found: Tensor = handle(tables, table).weight
    return found
