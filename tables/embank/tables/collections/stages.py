"""What happens to the tables of a collection besides steps: pruning on a schedule, settling, going on to the next
stage.

Methods act per class, so that one rule (a threshold over all tables, a search over all fields) can span tables.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from embank.tables.collections.base import Tables
from embank.tables.collections.held_rows import HeldRows, by_class
from embank.tables.errors import ConfigError
from embank.tables.method.base import physical_tables
from embank.tables.method.local_rows import Score
from embank.tables.method.schedule import Advance, Carry, Schedule, Stage, is_last_stage, stages_of
from embank.tables.rows.physical import PhysicalTable
from embank.tables.specs import TableSpec

ROWS_PER_COPY = 65_536

AnyTables = TypeVar("AnyTables", bound=Tables)


def planned_stages(tables: Tables) -> tuple[Stage, ...]:
    """The trainings that the collection needs: those of its methods with several, made one. Methods with one train
    along in all.

    Raises:
        ConfigError: two methods need trainings that can't be made one: another number of them, other lengths, or
            another beginning or end.
    """
    methods = list(tables.built_methods())
    staged = [method for method in methods if len(stages_of(method)) > 1]
    if not staged:
        return stages_of(next((method for method in methods if stages_of(method) != Schedule.stages), methods[0]))
    first = staged[0]
    for other in staged[1:]:
        if not _go_together(stages_of(first), stages_of(other)):
            raise ConfigError(
                f"table '{first.spec.name}' (method '{first.spec.method}') trains in the stages "
                f"{_told(stages_of(first))}, table '{other.spec.name}' (method '{other.spec.method}') in "
                f"{_told(stages_of(other))}, which can't be trained as one; store both by one of these methods, or one "
                "of them by a method of one stage"
            )
    distinct = list(dict.fromkeys(stages_of(method) for method in staged))
    return tuple(_merged(stages) for stages in zip(*distinct, strict=True))


def _go_together(some: Sequence[Stage], others: Sequence[Stage]) -> bool:
    """Whether two methods may be trained as one, stage by stage: they alternate or not, each by itself, and agree in
    all else."""
    plain = [[replace(stage, name="", alternates=False) for stage in stages] for stages in (some, others)]
    return plain[0] == plain[1]


def _merged(stages: Sequence[Stage]) -> Stage:
    """One stage of several methods."""
    name = " and ".join(dict.fromkeys(stage.name for stage in stages))
    return replace(stages[0], name=name, alternates=any(stage.alternates for stage in stages))


def _told(stages: Sequence[Stage]) -> str:
    facts = {"search": "is_search", "new network": "fresh_network", "validation batches": "alternates"}
    told = []
    for stage in stages:
        notes = [f"{stage.epochs:g} of the epochs", *(word for word, fact in facts.items() if getattr(stage, fact))]
        told.append(f"{stage.name} ({', '.join([*notes, f'hands over its {stage.hands_over}'])})")
    return ", ".join(told)


def num_stages(tables: Tables) -> int:
    """Trainings that the collection needs: the most that one of its methods asks for.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=10, embedding_dim=2, feature_names=["item"])
        >>> num_stages(TableCollection([spec]))
        1
    """
    return len(planned_stages(tables))


def current_stage(tables: Tables) -> Stage:
    """The stage that the collection is in.

    Example:
        >>> spec = TableSpec(
        ...     name="item", num_embeddings=100, embedding_dim=8, feature_names=["item"], method="dedup", budget=0.2
        ... )
        >>> current_stage(TableCollection([spec])).name
        'full'
    """
    return planned_stages(tables)[max(method.spec.stage for method in tables.built_methods())]


def stage_state(tables: Tables) -> dict[str, dict[str, Any]]:
    """By table, its stage and what the stages before have found: what a checkpoint needs to make the collection
    again."""
    return {spec.name: {"stage": spec.stage, "found": dict(spec.found)} for spec in tables.specs}


def restored_specs(specs: Sequence[TableSpec], state: Mapping[str, Mapping[str, Any]]) -> list[TableSpec]:
    """Specs as a run begins with them, taken to the stage that `stage_state` told of."""
    return [replace(spec, **state.get(spec.name, {})) for spec in specs]


@contextmanager
def rows_held(tables: Tables) -> Iterator[None]:
    """Looks rows up without a gradient: a backward pass leaves them, their optimizer state and their projections alone,
    and the forward pass leaves the methods' statistics alone (`statistics_move`)."""
    before = tables.rows_learn, tables.statistics_learn
    tables.rows_learn = tables.statistics_learn = False
    try:
        yield
    finally:
        tables.rows_learn, tables.statistics_learn = before


@torch.no_grad()
def after_step(tables: Tables, *, step: int, num_steps: int) -> None:
    """Lets methods change rows after a training step, see `Schedule.after_step`. `Tables.step` calls it."""
    tables.training_state.num_unfinished = 0
    for methods in by_class(tables).values():
        schedule = methods[0].traits.schedule
        if type(schedule).after_step is not Schedule.after_step:
            with HeldRows(tables) as rows:
                schedule.after_step(methods, rows, step=step, num_steps=num_steps, seed=tables.seed)


@torch.no_grad()
def settle(tables: Tables) -> None:
    """Makes rows what will be served, see `Schedule.settle`. In stages before the last it does nothing."""
    for methods in by_class(tables).values():
        schedule = methods[0].traits.schedule
        if schedule.settles and is_last_stage(methods[0]):
            with HeldRows(tables) as rows:
                schedule.settle(methods, rows)


def advance(tables: AnyTables, *, score: Score | None = None) -> AnyTables:
    """The collection of the next stage, with the rows and dense values that the stages' methods carry over.

    Methods that have fewer stages stay as they are, rows included; row-optimizer state starts anew for all.

    Args:
        tables: at the end of its stage, and not in the last one.
        score: of the model as its methods stand, for stages that search; None without a model.

    Raises:
        ConfigError: there is no next stage.

    Example:
        >>> spec = TableSpec(
        ...     name="item", num_embeddings=100, embedding_dim=8, feature_names=["item"], method="pep", budget=0.2
        ... )
        >>> tables = TableCollection([spec])
        >>> num_stages(tables), current_stage(tables).name
        (2, 'thresholds')
        >>> tables = advance(tables)  # after the training of the first stage
        >>> current_stage(tables).name
        'retrain'
    """
    found: dict[str, Advance] = {}
    rows = HeldRows(tables)
    for methods in by_class(tables).values():
        if not is_last_stage(methods[0]):
            with torch.no_grad():
                advances = methods[0].traits.schedule.advance(methods, rows, score=score, seed=tables.seed)
            found |= {method.spec.name: entry for method, entry in zip(methods, advances, strict=True)}
    if not found:
        raise ConfigError("the tables are in their last stage; there is none to advance to")
    specs = [
        replace(spec, stage=spec.stage + 1, found={key: value.cpu() for key, value in found[spec.name].found.items()})
        if spec.name in found
        else spec
        for spec in tables.specs
    ]
    result = tables.rebuilt(specs)
    for old, new in zip(tables.built_methods(), result.built_methods(), strict=True):
        entry = found.get(new.spec.name)
        if entry is None:
            new.load_state_dict(old.state_dict())
            carries: Mapping[str, Carry] = {table.name: Carry(table=table.name) for table in physical_tables(new)}
        else:
            new.load_state_dict({**new.state_dict(), **entry.dense})
            carries = entry.carries
        with HeldRows(result) as targets:
            for name, carry in carries.items():
                table = next(t for t in new.physical if t.name == name)
                carry_rows(carry, table=table, source=rows, target=targets)
    return result


@torch.no_grad()
def carry_rows(carry: Carry, *, table: PhysicalTable, source: HeldRows, target: HeldRows) -> None:
    """Fills a table's rows from an earlier stage's, a few at a time, wherever either is held."""
    first, last = carry.first_column, carry.first_column + table.embedding_dim
    shard = target.shards.get(table.name)
    for start in range(0, table.num_embeddings, ROWS_PER_COPY):
        numbers = torch.arange(start, min(table.num_embeddings, start + ROWS_PER_COPY))
        wanted = numbers if carry.rows is None else carry.rows[numbers]
        values = source.initial(carry.table, wanted) if carry.initial else source.gathered(carry.table, wanted)
        chosen = values[:, first:last]
        if shard is not None:
            held, local = shard.local_rows(numbers)
            own = chosen[held, shard.first_column : shard.first_column + shard.num_columns]
            target[table.name][local] = own.to(target[table.name].device)


def finished(tables: AnyTables) -> AnyTables:
    """The collection in its last stage and settled, as if every stage before had been trained for zero steps."""
    while not all(is_last_stage(method) for method in tables.built_methods()):
        tables = advance(tables)
    settle(tables)
    return tables


def search_parameters(tables: Tables) -> list[nn.Parameter]:
    """What validation batches move in a stage that alternates."""
    methods = tables.built_methods()
    return [parameter for method in methods for parameter in method.traits.schedule.search_parameters(method)]
