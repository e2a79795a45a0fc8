"""The `state_dict` of a collection: rows and their optimizer's state under the names of tables, whatever holds them.

    _extra_state                          what the rows belong to (`identity`), JSON as bytes
    embedding_bags.<table>.weight         rows of a plain table, as in TorchRec's `EmbeddingBagCollection`
    embeddings.<table>.weight             the same in a `SequenceCollection`, as in TorchRec's `EmbeddingCollection`
    rows.<physical table>.weight          rows of all others
    row_optimizer.<physical table>.<kind> state of the rows' optimizer
    row_optimizer.num_updates             updates so far
    methods.<table>.<parameter>           what a method holds besides rows

A `state_dict` without any state of the rows' optimizer, such as TorchRec's, is taken as it is: rows change, their
optimizer's state stays.

Rows are views: nothing is copied when a `state_dict` is made, and its values change with the tables.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from embank.tables.collections.held_rows import writing
from embank.tables.collections.identity import (
    as_tensor,
    identity_of,
    of_tensor,
    refuse_other_optimizer,
    refuse_other_tables,
)
from embank.tables.collections.named import state_name
from embank.tables.collections.sharded_state import copy_parts, lacks_values, sharded_weights
from embank.tables.errors import CheckpointError, ConfigError, EmbankError
from embank.tables.rows.store_spec import ROW_DTYPES
from embank.tables.wording import nearest_or_all

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables

NUM_UPDATES = "row_optimizer.num_updates"


FORM = "embank's tables"

WIDER_ROWS = "hold rows in fp32, RowTier(dtype='fp32')"
"""What helps where numbers are too large for rows of fewer bits."""


def identity_tensor(tables: "Tables") -> Tensor:
    """`identity_of` as a tensor."""
    return as_tensor(identity_of(tables), form=FORM)


def parse_identity(value: Any) -> dict[str, Any]:
    """The inverse of `identity_tensor`; CheckpointError if it is something else."""
    return of_tensor(value, form=FORM)


def is_identity(value: Any) -> bool:
    """Whether `parse_identity` takes a value."""
    try:
        return bool(parse_identity(value))
    except CheckpointError:
        return False


def row_names(tables: "Tables") -> dict[str, str]:
    """The name of each physical table's rows in a `state_dict`."""
    names = {t.name: f"rows.{state_name(t.name)}.weight" for m in tables.built_methods() for t in m.physical}
    plain = [method.spec.name for method in tables.built_methods() if method.traits.is_plain]
    return names | {name: f"{tables.plain_prefix}.{state_name(name)}.weight" for name in plain}


def row_state(tables: "Tables") -> dict[str, Tensor]:
    """Everything that row stores hold, by name: views.

    Raises:
        ConfigError: rows are sharded, so that this process has a part of them. Collections with TorchRec's names then
            have theirs as TorchRec does.
    """
    names = row_names(tables)
    if tables.sharding is not None and tables.rows_are_parameters:
        return {names[table]: rows_RD for table, rows_RD in sharded_weights(tables).items()}
    refuse_parts(tables)
    state = {names[table]: rows_RD for table, rows_RD in tables.weights().items()}
    for table, kinds in tables.optimizer_state().items():
        state |= {f"row_optimizer.{state_name(table)}.{kind}": view for kind, view in kinds.items()}
    state[NUM_UPDATES] = torch.tensor(num_updates(tables))
    return state


def refuse_parts(tables: "Tables") -> None:
    """Raises ConfigError if rows are sharded, so that this process has a part of them."""
    if tables.sharding is not None:
        raise ConfigError(
            f"the rows of these tables are spread over {tables.processes.count} processes, and a state_dict here would "
            "hold those of one. Use save_checkpoint and load_checkpoint of embank.tables.storage.checkpoint, which all "
            "processes call together; `tables.methods.state_dict()` has what the methods hold besides rows"
        )


def is_plain(tables: "Tables") -> bool:
    """Whether the rows are what they seem by their names: each table a matrix with a row for each id."""
    return all(method.traits.is_plain for method in tables.built_methods())


def num_updates(tables: "Tables") -> int:
    """Updates of the rows so far, on which Adam's bias correction and rounding at random depend."""
    for rows in tables.row_stores():
        rows.finish()
    return max((rows.num_updates for rows in tables.row_stores()), default=0)


def load_num_updates(tables: "Tables", count: int) -> None:
    """The inverse."""
    for rows in tables.row_stores():
        rows.load_step(count)


@torch.no_grad()
def load_row_state(tables: "Tables", state: Mapping[str, Any], *, prefix: str, missing: list[str]) -> set[str]:
    """Copies rows and their optimizer's state into place, after all of it was checked.

    Args:
        tables: whose rows are overwritten.
        state: a `state_dict`, perhaps that of a larger module.
        prefix: of the tables' names in it.
        missing: gets the names that it lacks.

    Returns:
        The names that were used.

    Raises:
        CheckpointError: the rows are of other tables, of the other kind of collection or of another shape, or too large
            for the type of those here.
    """
    _refuse_foreign(tables, state, prefix=prefix)
    _refuse_other_kind(tables, state, prefix=prefix)
    views = row_state(tables)
    found = {name: state[prefix + name] for name in views if prefix + name in state}
    has_optimizer = any(name.startswith("row_optimizer.") for name in found)
    missing += [
        prefix + name
        for name in views
        if name not in found and (has_optimizer or not name.startswith("row_optimizer."))
    ]
    for name, value in found.items():
        if not isinstance(value, Tensor) or lacks_values(value):
            kind = "tensor without values" if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(
                f"the state_dict's '{prefix}{name}' is a {kind}; it must be a tensor. Nothing of it was loaded here"
            )
    wrong = [
        f"'{prefix}{name}' has shape {tuple(value.size())} there and {tuple(views[name].size())} here"
        for name, value in found.items()
        if value.size() != views[name].size()
    ]
    if wrong:
        raise CheckpointError(
            f"the state_dict is of other tables: {'; '.join(wrong[:3])}. Nothing of it was loaded here"
        )
    for name, value in found.items():
        if name != NUM_UPDATES:
            parts = [s.tensor for s in value.local_shards()] if isinstance(value, ShardedTensor) else [value]
            for part in parts:
                refuse_beyond(
                    part,
                    views[name].dtype,
                    what=f"numbers of the state_dict's '{prefix}{name}'",
                    cure=WIDER_ROWS,
                    more=". Nothing of it was loaded here",
                    error=CheckpointError,
                )
    with writing(tables):
        for name, value in found.items():
            if name == NUM_UPDATES:
                load_num_updates(tables, int(value))
            else:
                copy_parts(views[name], value, name=prefix + name)
    return {prefix + name for name in found}


@torch.no_grad()
def set_rows(tables: "Tables", table: str, rows_RD: Tensor) -> None:
    """See `Tables.set_rows`."""
    physical = {part.name: part for method in tables.built_methods() for part in method.physical}
    if table not in physical:
        raise ConfigError(f"there is no physical table '{table}'; {nearest_or_all(table, physical, label='there are')}")
    shape = (physical[table].num_embeddings, physical[table].embedding_dim)
    if not isinstance(rows_RD, Tensor):
        raise ConfigError(
            f"the rows for table '{table}' are a {type(rows_RD).__name__}; give a tensor of shape {shape}"
        )
    if tuple(rows_RD.shape) != shape:
        raise ConfigError(
            f"the rows for table '{table}' have shape {tuple(rows_RD.shape)}; the table has {shape}: give all of its "
            "rows"
        )
    refuse_beyond(rows_RD, tables.tier.torch_dtype, what=f"rows of table '{table}'", cure=WIDER_ROWS)
    for store in tables.row_stores():
        for shard in store.shards:
            if shard.table.name == table and shard.num_rows:
                numbers = shard.row_numbers()
                local = (numbers < shape[0]).nonzero().squeeze(1)
                columns = slice(shard.first_column, shard.first_column + shard.num_columns)
                view = store.weight(table)
                with store.writing():
                    view[local.to(view.device)] = rows_RD[numbers[local].to(rows_RD.device), columns].to(view)


def refuse_beyond(
    rows: Tensor,
    dtype: torch.dtype,
    *,
    what: str,
    cure: str,
    more: str = "",
    error: type[EmbankError] = ConfigError,
) -> None:
    """Refuses finite numbers that a type has infinities for, before they are written. Those that it rounds to 0 are
    fine, and what is not finite is not looked at.

    Args:
        rows: of any shape and type.
        dtype: that they are to be held in.
        what: they are, the beginning of the message.
        cure: where the type is one of 16 bits; fp32 has no wider one.
        more: the end of the message.
        error: what is raised.

    Example:
        >>> refuse_beyond(torch.tensor([1e6]), torch.float16, what="rows of table 'item'", cure="scale them")
        Traceback (most recent call last):
            ...
        embank.tables.errors.ConfigError: rows of table 'item' reach 1e+06, and fp16 holds numbers up to 65504; scale
        them
    """
    if rows.is_complex():
        raise error(f"{what} are {str(rows.dtype).removeprefix('torch.')}; give real numbers{more}")
    limits = torch.finfo(dtype)
    if not rows.numel() or _largest(rows.dtype) <= limits.max:
        return
    if not rows.is_floating_point() and not rows.is_signed():
        rows = rows.double()  # torch has few calls for unsigned ones
    ends = torch.stack(rows.detach().aminmax())  # no temporary as large as the rows
    if not bool(ends.isfinite().all()):
        finite = rows[rows.isfinite()]
        ends = torch.stack(finite.aminmax()) if finite.numel() else ends.new_zeros(2)
    if bool(ends.to(dtype).isfinite().all()):  # a little beyond the end they are rounded to it
        return
    kind = next((kind for kind, own in ROW_DTYPES.items() if own == dtype), str(dtype).removeprefix("torch."))
    raise error(
        f"{what} reach {float(ends.double().abs().max()):.4g}, and {kind} holds numbers up to {limits.max:.5g}; "
        f"{cure if dtype.itemsize < 4 else 'scale them down'}{more}"
    )


def _largest(dtype: torch.dtype) -> float:
    """The largest number of a type."""
    if dtype == torch.bool:
        return 1
    return torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max


def _refuse_foreign(tables: "Tables", state: Mapping[str, Any], *, prefix: str) -> None:
    """Refuses rows of other tables by what was saved beside them; without that, only rows of plain tables are what they
    seem."""
    what = "the state_dict"
    if prefix + "_extra_state" in state:
        saved = parse_identity(state[prefix + "_extra_state"])
        refuse_other_tables(saved, tables, what=what)
        if any(name.startswith(f"{prefix}row_optimizer.") and name != prefix + NUM_UPDATES for name in state):
            cure = "leave out the names that begin with 'row_optimizer.' and load with strict=False"
            refuse_other_optimizer(saved, tables, what=what, cure=cure)
        return
    for method in tables.built_methods():
        spec = method.spec
        if not method.traits.is_plain and f"{prefix}{tables.plain_prefix}.{state_name(spec.name)}.weight" in state:
            raise CheckpointError(
                f"{what} holds plain rows of table '{spec.name}', which has method '{spec.method}' here. Use method "
                "'full', or leave the table out"
            )
        named = [row_names(tables)[table.name] for table in method.physical]
        if not method.traits.is_plain and any(prefix + name in state for name in named):
            raise CheckpointError(
                f"{what} has rows of table '{spec.name}' but no '{prefix}_extra_state', which tells how they are "
                "stored. Keep all names that begin with the tables' own"
            )


def _refuse_other_kind(tables: "Tables", state: Mapping[str, Any], *, prefix: str) -> None:
    """Refuses plain rows under the names that the other kind of collection gives them, as TorchRec's do."""
    own = tables.plain_prefix
    other = next(kind for kind in _KINDS if kind != own)
    for method in tables.built_methods():
        name = f"{state_name(method.spec.name)}.weight"
        if method.traits.is_plain and f"{prefix}{other}.{name}" in state and f"{prefix}{own}.{name}" not in state:
            raise CheckpointError(
                f"the state_dict is of a {_KINDS[other]}, which has rows of table '{method.spec.name}' as "
                f"'{prefix}{other}.{name}'; here they are '{prefix}{own}.{name}'. Rename them, or use save_checkpoint "
                "and load_checkpoint of embank.tables.storage.checkpoint, which take either. Nothing of it was loaded "
                "here"
            )


_KINDS = {"embedding_bags": "TableCollection", "embeddings": "SequenceCollection"}
"""Collections by the first part of their plain rows' names."""


def without_tables(network: Mapping[str, Any], tables: "Tables") -> dict[str, Tensor]:
    """The part of a model's `state_dict` that does not belong to the tables in it.

    Raises:
        ConfigError: it holds the rows of other tables, or something that is no tensor.
    """
    names = {spec.name for spec in tables.specs}
    mine: list[str] = []
    for key, value in network.items():
        if key.endswith("_extra_state") and is_identity(value):
            found = set(parse_identity(value)["tables"])
            if found != names:
                raise ConfigError(
                    f"the network's '{key}' is of the tables {sorted(found)}, the bundle has {sorted(names)}. Give a "
                    "network without other tables, or put all tables into one collection"
                )
            mine.append(key.removesuffix("_extra_state"))
    parts = ("_extra_state", "methods.", "rows.", "row_optimizer.", f"{tables.plain_prefix}.")
    left_out = tuple(prefix + part for prefix in mine for part in parts)
    kept = {key: value for key, value in network.items() if not key.startswith(left_out)}
    for key, value in kept.items():
        if not isinstance(value, Tensor):
            raise ConfigError(f"the network's '{key}' is a {type(value).__name__}; a bundle holds tensors")
    return kept
