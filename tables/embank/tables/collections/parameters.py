"""Rows under the names that TorchRec gives them, `tables.embedding_bags["item"].weight`, and as parameters where an
optimizer outside of the tables is to update them.

Where rows are parameters, `apply_optimizer_in_backward` on them chooses the tables' own optimizer, which then updates
the rows of a batch alone. The parameters stay, as views of the rows, but have no gradients any more.
"""

from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import nn

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
        if old is not None and old is not parameter:
            kept = {name: value for name, value in vars(old).items() if name not in ("is_fused", "is_frozen")}
            vars(parameter).update(kept)
            is_held = old.is_frozen if isinstance(old, RowsParameter) and old.is_fused else not old.requires_grad
            parameter.requires_grad_(not is_held)
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
    if tables.sharding is not None and tables.rows_are_parameters:
        _conceal_rows(tables)
    for store in tables.row_stores():
        for shard in store.shards if tables.sharding is None else ():
            name, is_external = shard.table.name, tables.optimizer.is_external
            if isinstance(store, ParameterRows):
                held = store.parameter(name)
                assert isinstance(held, RowsParameter)
                parameter = held
            elif tables.rows_are_parameters:
                parameter = RowsParameter(store.weight(name), requires_grad=True)
            if tables.rows_are_parameters:
                handle(tables, name).expose(parameter)
            if not is_external and (tables.rows_are_parameters or isinstance(store, ParameterRows)):
                parameter.fuse()


def _conceal_rows(tables: "Tables") -> None:
    """Spread rows are no parameters; a mark stands for them, by which they are held or let go."""
    for hidden in handles(tables):
        hidden.conceal()
    if tables.rows_frozen:
        tables.rows_learn, tables.rows_frozen = False, False
    tables.mark.show()


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


@torch.compiler.disable  # type: ignore[untyped-decorator]
def settle_optimizer(tables: "Tables", *, by_kernels: bool = False) -> None:
    """Follows what a program has done to the rows since the last pass: a rate that a scheduler has set, an optimizer
    that `apply_optimizer_in_backward` has chosen, weights that were replaced, rows that are not to be trained.

    Args:
        tables: whose optimizer it is.
        by_kernels: an epsilon that was not given is that of FBGEMM's kernels, as under `DistributedModelParallel`, not
            that of the optimizer's class.
    """
    if tables.chosen_optimizer is not None:
        tables.chosen_optimizer.push_lr()
    if tables.rows_are_parameters:
        follow_parameters(tables)
    if tables.optimizer.is_external:
        chosen = chosen_in_backward(tables, by_kernels=by_kernels)
        if by_kernels:
            _refuse_others_in_backward(tables)
        if chosen is not None:
            fuse_optimizer(tables, chosen)
            follow_parameters(tables)


def follow_parameters(tables: "Tables") -> None:
    """Looks up in what the modules have as their `weight`; follows the rates of the optimizers that were chosen for
    them, and whether they are to be trained.

    Raises:
        ConfigError: rows with an optimizer of their own were replaced, or a part of them is to be held or has another
            rate.
    """
    stores, is_meta = tables.row_stores(), tables.tier.is_meta
    for store in stores if tables.optimizer.is_external and not is_meta else ():
        assert isinstance(store, ParameterRows)
        for shard in store.shards:
            now = handle(tables, shard.table.name)._parameters.get("weight")
            if now is not None and now is not store.parameter(shard.table.name):
                store.use(shard.table.name, now)
    if tables.optimizer.is_external or tables.sharding is not None:
        _follow_rate(tables)
        return
    frozen = []
    for own in handles(tables):
        # `DistributedModelParallel` takes parameters off the meta device one by one, before it asks for values.
        now = own.first if is_meta else own._parameters.get("weight")
        if now is not own.first or not isinstance(now, RowsParameter):
            raise ConfigError(
                f"the weight of table '{own.table}' was replaced, but its rows have an optimizer of their own and stay "
                "where they are; write into them, tables.set_rows(...) or tables.import_rows(...)"
            )
        frozen.append(now.is_frozen)
    if any(frozen) and not all(frozen):
        names = [own.table for own in handles(tables)]
        raise ConfigError(
            f"rows of table '{names[frozen.index(True)]}' are not to be trained and those of "
            f"'{names[frozen.index(False)]}' are; rows with one optimizer are held together: make a collection for each"
        )
    tables.rows_frozen = any(frozen)
    _follow_rate(tables)


def _follow_rate(tables: "Tables") -> None:
    """A rate that was set through the optimizers that `apply_optimizer_in_backward` has made."""
    if not tables.followed or tables.optimizer.is_external:
        return
    rates = {float(group["lr"]) for group in tables.followed}
    if len(rates) > 1:
        raise ConfigError(
            f"the optimizers in the backward pass have the rates {sorted(rates)}; all rows of a collection have one"
        )
    (rate,) = rates
    if rate != tables.followed_rate:
        tables.followed_rate = rate
        tables.set_lr(rate)


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
            row_optimizer_of(cls, {**eps, **kwargs, "lr": optimizer.param_groups[0]["lr"]})
            for cls, kwargs, optimizer in zip(
                w._optimizer_classes, w._optimizer_kwargs, w._in_backward_optimizers, strict=True
            )
        ]
        if hasattr(w, "_in_backward_optimizers")
        else []
        for w in found
    ]
    if not any(chosen):
        return None
    names = list(row_names(tables))
    for name, optimizers in zip(names, chosen, strict=True):
        if len(optimizers) > 1:
            raise ConfigError(
                f"apply_optimizer_in_backward was called {len(optimizers)} times for table '{name}', with "
                f"{_listed(optimizers)}; call it once"
            )
        if optimizers != chosen[0]:
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
            own = handle(tables, name)
            weight = own.weight  # stays, for those that hold it
            for other in getattr(weight, "_in_backward_optimizers", ()):
                other.state.clear()  # it has none to keep any more
            if not isinstance(weight, RowsParameter):  # a program has put it there
                fresh = RowsParameter(view, requires_grad=weight.requires_grad)
                vars(fresh).update(vars(weight))
                own._parameters["weight"] = weight = fresh
            weight.fuse()
            weight.data = view
            object.__setattr__(own, "first", weight)
        chosen = [getattr(own.weight, "_in_backward_optimizers", ()) for own in handles(tables)]
        tables.followed = [optimizers[0].param_groups[0] for optimizers in chosen if optimizers]
        tables.followed_rate = optimizer.lr


def held_names(tables: "Tables") -> list[str]:
    """Physical tables whose parameters are not to be trained."""
    held = []
    for own in handles(tables):
        now = own._parameters.get("weight")
        if isinstance(now, RowsParameter) and now.is_fused:
            is_held = now.is_frozen
        else:
            is_held = now is not None and not now.requires_grad
        if is_held:
            held.append(own.table)
    return held


def hold_rows(tables: "Tables", names: list[str]) -> None:
    """The inverse."""
    for name in names:
        handle(tables, name).weight.requires_grad_(False)


def external_error(num_processes: int) -> ConfigError:
    """For rows that are spread over processes and left to an optimizer outside."""
    return ConfigError(
        f"rows spread over {num_processes} processes need an optimizer of their own, which runs in the backward pass: "
        "optimizer=RowOptimizer(name='rowwise_adagrad', lr=0.02)"
    )
