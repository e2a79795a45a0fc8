"""What happens to the tables of a collection besides steps: pruning on a schedule, settling, going on to the next stage.

Methods act per class, so that one rule (a threshold over all tables, a search over all fields) can span tables.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from embank.tables.core import Tables
from embank.tables.errors import ConfigError
from embank.tables.method import Advance, Carry, LocalRows, Method, Stage

ROWS_PER_COPY = 65_536

AnyTables = TypeVar("AnyTables", bound=Tables)


class HeldRows(LocalRows):
    """The rows that a collection holds in this process."""

    def __init__(self, tables: Tables) -> None:
        self.views = tables.weights()
        self.first_rows = {s.table.name: s.first_row for store in tables.row_stores() for s in store.shards}

    def __getitem__(self, table: str) -> Tensor:
        return self.views[table]

    def first_row(self, table: str) -> int:
        return self.first_rows[table]

    def sum(self, values: Tensor) -> Tensor:
        return values


def by_class(tables: Tables) -> dict[type[Method], list[Method]]:
    """The methods of a collection by their class, each list in the order of the specs."""
    groups: dict[type[Method], list[Method]] = {}
    for method in tables.built_methods():
        groups.setdefault(type(method), []).append(method)
    return groups


def num_stages(tables: Tables) -> int:
    """Trainings that the collection needs: the most that one of its methods asks for."""
    return max(len(method.stages) for method in tables.built_methods())


def current_stage(tables: Tables) -> Stage:
    """The stage that the collection is in: that of the methods with the most stages, the first one that differs from plain training."""
    methods = sorted(tables.built_methods(), key=lambda method: -len(method.stages))
    return methods[0].stages[methods[0].spec.stage]


@torch.no_grad()
def after_step(tables: Tables, *, step: int, num_steps: int) -> None:
    """Lets methods change rows after a training step, see `Method.after_step`."""
    for cls, methods in by_class(tables).items():
        if cls.after_step.__func__ is not Method.after_step.__func__:  # type: ignore[attr-defined]
            cls.after_step(methods, HeldRows(tables), step=step, num_steps=num_steps)


@torch.no_grad()
def settle(tables: Tables) -> None:
    """Makes rows what will be served, see `Method.settle`. In stages before the last it does nothing."""
    for cls, methods in by_class(tables).items():
        if methods[0].spec.stage == len(cls.stages) - 1:
            cls.settle(methods, HeldRows(tables))


def advance(tables: AnyTables, *, score: Callable[[], float] | None = None) -> AnyTables:
    """The collection of the next stage, with the rows and dense values that the stages' methods carry over.

    Methods that have fewer stages stay as they are, rows included; row-optimizer state starts anew for all.

    Args:
        tables: at the end of its stage, and not in the last one.
        score: validation AUC of the model as its methods stand, for stages that search; None without a model.

    Raises:
        ConfigError: there is no next stage.
    """
    found: dict[str, Advance] = {}
    rows = HeldRows(tables)
    for cls, methods in by_class(tables).items():
        if methods[0].spec.stage + 1 < len(cls.stages):
            with torch.no_grad():
                advances = cls.advance(methods, rows, score=score)
            found |= {method.spec.name: entry for method, entry in zip(methods, advances, strict=True)}
    if not found:
        raise ConfigError("the tables are in their last stage; there is none to advance to")
    specs = [
        replace(spec, stage=spec.stage + 1, found=dict(found[spec.name].found)) if spec.name in found else spec
        for spec in tables.specs
    ]
    result = tables.rebuilt(specs)
    for old, new in zip(tables.built_methods(), result.built_methods(), strict=True):
        entry = found.get(new.spec.name)
        if entry is None:
            new.load_state_dict(old.state_dict())
            carries: Mapping[str, Carry] = {table.name: Carry(table=table.name) for table in new.physical}
        else:
            new.load_state_dict({**new.state_dict(), **entry.dense})
            carries = entry.carries
        for name, carry in carries.items():
            carry_rows(carry, source=rows[carry.table], target=result.weights()[name])
    return result


@torch.no_grad()
def carry_rows(carry: Carry, *, source: Tensor, target: Tensor) -> None:
    """Fills a table's rows from an earlier stage's, a few at a time."""
    first, last = carry.first_column, carry.first_column + target.shape[1]
    for start in range(0, target.shape[0], ROWS_PER_COPY):
        stop = min(target.shape[0], start + ROWS_PER_COPY)
        chosen = source[start:stop] if carry.rows is None else source[carry.rows[start:stop]]
        target[start:stop] = chosen[:, first:last]


def finished(tables: AnyTables) -> AnyTables:
    """The collection in its last stage and settled, as if every stage before had been trained for zero steps."""
    while any(m.spec.stage + 1 < len(m.stages) for m in tables.built_methods()):
        tables = advance(tables)
    settle(tables)
    return tables


def search_parameters(tables: Tables) -> list[nn.Parameter]:
    """What validation batches move in a stage that alternates."""
    return [parameter for method in tables.built_methods() for parameter in method.search_parameters()]
