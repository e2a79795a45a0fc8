"""Rows that change hands: fresh values and empty optimizer state, wherever they are held."""

import torch
from torch import Tensor

from embank.tables.collections.base import Tables
from embank.tables.collections.ids import IdRangeError
from embank.tables.errors import ConfigError
from embank.tables.ids.hashing import seed_of
from embank.tables.method.base import Method, combination
from embank.tables.method.schedule import Schedule
from embank.tables.wording import nearest_or_all


@torch.no_grad()
def reset_rows(tables: Tables, table: str, rows_U: Tensor, *, draw: int) -> None:
    """Gives rows of a table fresh initial values and sets their row-optimizer state to zero.

    Works through the stores' views, so it is the same for every backend, row optimizer and tier. A batch that was
    prefetched before sees the new values.

    Args:
        tables: between two steps; not sharded.
        table: a logical table with one row for each id.
        rows_U: int64, distinct ids of the table.
        draw: values depend on the collection's seed, the table's name, this number and the place in `rows_U`, nothing
            else.

    Raises:
        ConfigError: there is no such table, it is sharded, or its method keeps no row that is one id's alone.
        IdRangeError: an id outside the table.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=4, embedding_dim=2, feature_names=["item"])
        >>> tables = TableCollection([spec])
        >>> tables.set_rows("item", torch.ones(4, 2))
        >>> reset_rows(tables, "item", torch.tensor([1]), draw=0)
        >>> (tables.weights()["item"] == 1).all(1)
        tensor([ True, False,  True,  True])
    """
    method = _method(tables, table)
    refuse_shared_rows(tables, method)
    if not rows_U.numel():
        return
    physical = method.physical[0]
    if int(rows_U.min()) < 0 or int(rows_U.max()) >= physical.num_embeddings:
        raise IdRangeError(
            f"rows {int(rows_U.min())} to {int(rows_U.max())} of table '{table}' are to be reset; it has 0 to "
            f"{physical.num_embeddings - 1}"
        )
    fresh_UD = torch.empty(rows_U.numel(), physical.embedding_dim, dtype=torch.float32)
    physical.init.fill(fresh_UD, seed=seed_of(tables.seed, "reset", draw), table=physical.name)
    if physical.projection is not None:
        seed = seed_of(tables.seed, "reset projection", physical.name, draw)
        fresh_UD = physical.projection(fresh_UD, rows_U, seed=seed)
    with tables.writing():
        weight = tables.weights()[physical.name]
        weight[rows_U] = fresh_UD.to(weight.dtype)
        for state in tables.optimizer_state()[physical.name].values():
            state[rows_U] = 0


def refuse_shared_rows(tables: Tables, method: Method) -> None:
    """Raises ConfigError where rows can't be reset: sharded tables, and methods that keep no row which is one id's
    alone."""
    spec = method.spec
    if tables.sharding is not None:
        raise ConfigError(
            f"rows of table '{spec.name}' can't be reset: they are sharded, and each process would have to learn the "
            "same ids in the same order. Train streaming tables in one process"
        )
    reason = _why_not(method)
    if reason is not None:
        raise ConfigError(
            f"rows of table '{spec.name}' can't be reset: its method '{spec.method}' {reason}. Use method 'full', or a "
            "hashed table without a vocabulary ('unified')"
        )


def _why_not(method: Method) -> str | None:
    """What stands against taking row i for all that there is of id i; None if nothing."""
    if len(method.physical) != 1:
        return f"makes an id's row of {len(method.physical)} looked-up rows, which other ids use too"
    schedule = method.traits.schedule
    if len(schedule.stages) > 1:
        return f"trains in {len(schedule.stages)} stages and decides in one for the next what ids keep"
    if type(schedule).after_step is not Schedule.after_step:
        return "changes rows as training goes on (pruning, masks), and a fresh row would break its schedule"
    num_ids, num_rows = method.spec.num_embeddings, method.physical[0].num_embeddings
    some = torch.linspace(0, num_ids - 1, 1000, dtype=torch.float64).long()  # a hash maps no thousand ids to themselves
    if num_rows != num_ids or not torch.equal(method.address(some)[0], some):
        return "lets ids share rows"
    if combination(method) == "freely":
        return "keeps more for an id than its row (codes, thresholds or a transform)"
    return None


def _method(tables: Tables, table: str) -> Method:
    by_name = {method.spec.name: method for method in tables.built_methods()}
    if table not in by_name:
        raise ConfigError(f"there is no table '{table}'; {nearest_or_all(table, by_name, label='there are')}")
    return by_name[table]
