"""A sharding plan: which process holds which part of each physical table. Data that can be read, edited and printed.

The planner here needs sizes and expected lookups only: it allocates nothing and starts nothing, so the plan for a
thousand ranks is made on a laptop.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from embank.tables.errors import ConfigError
from embank.tables.method.options import option_class
from embank.tables.rows.physical import PhysicalTable
from embank.tables.rows.shards import TableShard, num_positions
from embank.tables.sharding.memory import refuse_bad_limit, too_large
from embank.tables.storage.atomic import publish_file, temporary_beside
from embank.tables.storage.refusals import writing
from embank.tables.storage.yaml_text import read_yaml
from embank.tables.validation import problem_in_words

Kind = Literal["table_wise", "row_wise", "column_wise", "data_parallel"]

REPLICATE_BELOW_BYTES = 2**16
"""Tables up to this size are replicated: averaging their gradient moves less than looking them up elsewhere would."""


@option_class
class Placement:
    """Where one physical table goes.

    Args:
        kind: "table_wise": whole, on one rank. "row_wise": rows dealt to all ranks in stripes (see `TableShard`).
            "column_wise": columns cut evenly over `ranks`. "data_parallel": a copy on every rank, gradients averaged.
        ranks: for table_wise the one rank, for column_wise the ranks in the order of the columns; else empty.

    Example:
        >>> Placement(kind="table_wise", ranks=(1,))
        Placement(kind='table_wise', ranks=(1,))
    """

    kind: Kind
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the planner knows of a physical table.

    Args:
        table: the table.
        nbytes_per_row: of a row and its optimizer state, as held in training.
        lookups: expected lookups per sample.
        lookups_R: the same by row, float [num_embeddings], where counts are known; it tells how even a row-wise cut is.
        whole_rows: columns must stay together.
    """

    table: PhysicalTable
    nbytes_per_row: int
    lookups: float
    lookups_R: Tensor | None = None
    whole_rows: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the whole table."""
        return self.table.num_embeddings * self.nbytes_per_row


@option_class
class Plan:
    """Placements by physical table.

    Args:
        world_size: number of ranks that it is for.
        tables: placements.

    Example:
        >>> rows, whole = Placement(kind="row_wise"), Placement(kind="table_wise", ranks=(1,))
        >>> Plan(world_size=2, tables={"user": rows, "item": whole})
        Plan(world_size=2, tables={'user': Placement(kind='row_wise', ranks=()), 'item':
        Placement(kind='table_wise', ranks=(1,))})
    """

    world_size: int
    tables: Mapping[str, Placement]

    def __post_init__(self) -> None:
        for name, placement in self.tables.items():
            wrong = [rank for rank in placement.ranks if not 0 <= rank < self.world_size]
            if wrong:
                raise ConfigError(
                    f"the plan puts table '{name}' on rank {wrong[0]} of {self.world_size}; use 0 .. "
                    f"{self.world_size - 1}"
                )
            wanted = {"table_wise": len(placement.ranks) == 1, "column_wise": len(placement.ranks) >= 1}
            if not wanted.get(placement.kind, not placement.ranks):
                raise ConfigError(
                    f"the plan gives table '{name}' ranks {list(placement.ranks)} with kind '{placement.kind}'; "
                    "table_wise takes one rank, column_wise at least one, the others none"
                )
            if len(set(placement.ranks)) < len(placement.ranks):
                raise ConfigError(f"the plan names a rank twice for table '{name}': {list(placement.ranks)}")

    def placement(self, table: str) -> Placement:
        """Where a table goes.

        Raises:
            ConfigError: the plan does not name it.
        """
        if table not in self.tables:
            raise ConfigError(f"the plan has no physical table '{table}'; it places {', '.join(self.tables)}")
        return self.tables[table]

    def shard(self, table: PhysicalTable, rank: int) -> TableShard | None:
        """The part of a table that a rank holds; None for none."""
        whole = TableShard.whole(table)
        placement = self.placement(table.name)
        if placement.kind == "data_parallel":
            return whole
        if placement.kind == "row_wise":
            first, last = row_range(table, rank, self.world_size)
            return replace(whole, first_position=first, num_rows=last - first, is_striped=True)
        if rank not in placement.ranks:
            return None
        if placement.kind == "table_wise":
            return whole
        width = table.embedding_dim // len(placement.ranks)
        return replace(whole, first_column=placement.ranks.index(rank) * width, num_columns=width)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, which `parse_plan` reads back."""
        return {
            "world_size": self.world_size,
            "tables": {name: {**asdict(p), "ranks": list(p.ranks)} for name, p in self.tables.items()},
        }


def row_range(table: PhysicalTable, rank: int, world_size: int) -> tuple[int, int]:
    """Positions that a rank holds of a row-wise table: blocks of equal size, the last ones shorter, as TorchRec cuts
    them."""
    positions = num_positions(table.num_embeddings)
    block = -(-positions // world_size)
    return min(positions, rank * block), min(positions, (rank + 1) * block)


def parse_plan(raw: Any, *, source: str) -> Plan:
    """A plan from plain dicts.

    Raises:
        ConfigError: names what is wrong, with the place in `source`.
    """
    try:
        return TypeAdapter(Plan).validate_python(raw)
    except ValidationError as error:
        problem = error.errors()[0]
        own = problem.get("ctx", {}).get("error")
        if isinstance(own, ConfigError):  # a ValueError, which pydantic takes for a finding of its own
            raise own from error
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"the plan '{source}' is wrong at '{where}': {problem_in_words(problem)}") from error


def load_plan(path: str | Path) -> Plan:
    """A plan from a YAML or JSON file.

    Raises:
        ConfigError: unreadable or wrong.

    Example:
        >>> plan = Plan(world_size=2, tables={"user": Placement(kind="row_wise")})
        >>> save_plan(plan, "plan.yaml")
        >>> load_plan("plan.yaml") == plan
        True
    """
    raw = read_yaml(path, origin=f"the plan '{path}'")
    return parse_plan(raw, source=str(path))


def save_plan(plan: Plan, path: str | Path, *, overwrite: bool = False) -> None:
    """Writes a plan as YAML (or JSON, by the file's suffix).

    Args:
        plan: which rank holds what.
        path: the file.
        overwrite: replace one that is there, which somebody may have edited.

    Raises:
        ConfigError: the file exists, or its path can't be used.
        WorkError: it can't be written.

    Example:
        >>> plan = Plan(world_size=2, tables={"user": Placement(kind="row_wise")})
        >>> save_plan(plan, "plan.yaml")
        >>> print(Path("plan.yaml").read_text(), end="")
        world_size: 2
        tables:
          user:
            kind: row_wise
            ranks: []
    """
    raw, path = plan.to_json(), Path(path)
    text = json.dumps(raw, indent=1) if path.suffix == ".json" else yaml.safe_dump(raw, sort_keys=False)
    refuse_taken(path, overwrite=overwrite)
    temporary = temporary_beside(path)
    with writing(f"the plan '{path}'", cure="Make room, or choose another file"):
        if _is_device(path):
            path.write_text(text)
            return
        try:
            temporary.write_text(text)
            publish_file(temporary, path, overwrite=overwrite)
        finally:
            temporary.unlink(missing_ok=True)


def refuse_taken(path: Path, *, overwrite: bool) -> None:
    """Raises ConfigError if a plan can't have a path: something is there, or no folder is around it."""
    if path.is_dir():
        raise ConfigError(f"'{path}' is a folder; give a plan the name of a file")
    if path.exists() and not _is_device(path) and not overwrite:
        raise ConfigError(
            f"'{path}' exists already, perhaps as a plan that was edited; choose another file, or replace it "
            "(overwrite=True, --overwrite)"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder '{path.parent}' to write '{path.name}' into; make it")


def _is_device(path: Path) -> bool:
    """Whether a path is there, and is no file, such as /dev/stdout."""
    return path.exists() and not path.is_file()


def check_plan(plan: Plan, loads: Sequence[Load], *, optimizer: str) -> None:
    """Refuses a plan that the tables can't have.

    Raises:
        ConfigError: a table is missing or unknown, can't be cut by columns, or its optimizer would mean something else.
    """
    names = {load.table.name for load in loads}
    for unknown in sorted(set(plan.tables) - names):
        raise ConfigError(
            f"the plan places '{unknown}', which is no physical table here; there are: {', '.join(sorted(names))}"
        )
    for load in loads:
        table, placement = load.table, plan.placement(load.table.name)
        if placement.kind == "data_parallel" and optimizer == "adam":
            raise ConfigError(
                f"the plan replicates table '{table.name}', whose optimizer is a lazy adam: replicas don't know which "
                "rows were looked up. Use table_wise or row_wise"
            )
        if placement.kind != "column_wise":
            continue
        pieces = len(placement.ranks)
        if load.whole_rows and pieces > 1:
            raise ConfigError(
                f"the method of table '{table.name}' needs whole rows; it can't be column_wise. Use row_wise"
            )
        if table.embedding_dim % pieces:
            raise ConfigError(
                f"table '{table.name}' of dim {table.embedding_dim} can't be cut evenly into {pieces} columns; use a "
                "number of ranks that divides the dim"
            )
        if optimizer == "rowwise_adagrad" and pieces > 1:
            raise ConfigError(
                f"table '{table.name}' can't be column_wise with rowwise_adagrad: each piece would keep a row "
                "statistic of its own, so results would depend on the number of ranks. Use row_wise, or "
                "table_optimizer adagrad or sgd"
            )


def make_plan(
    loads: Sequence[Load],
    *,
    world_size: int,
    memory_per_rank: int | None = None,
    replicate_below_bytes: int = REPLICATE_BELOW_BYTES,
    optimizer: str = "rowwise_adagrad",
    keep_whole: bool = False,
) -> Plan:
    """Our plan: small tables replicated, large ones row-wise, the rest whole on the rank with the least to do.

    A table is large if its bytes or its lookups exceed a rank's fair share. Whole tables are dealt largest first to the
    rank whose larger share (of all bytes, of all lookups) stays smallest. If a rank's memory is too small, the largest
    whole table on the fullest rank is cut into rows until all fit.

    Args:
        loads: the physical tables.
        world_size: number of ranks.
        memory_per_rank: bytes for rows and their optimizer state on each rank; None for no limit.
        replicate_below_bytes: tables up to this size are replicated.
        optimizer: of the rows; lazy adam forbids replicas.
        keep_whole: cut no table that a rank has room for.

    Raises:
        ConfigError: it can't fit; names the table, its bytes and the limit.
    """
    if world_size < 1:
        raise ConfigError(f"world_size is {world_size}; a plan needs at least 1 rank")
    refuse_bad_limit(memory_per_rank)
    small: list[Load] = []
    rest: list[Load] = []
    for load in loads:
        (small if load.nbytes <= replicate_below_bytes and optimizer != "adam" else rest).append(load)
    fair_bytes = sum(load.nbytes for load in rest) / world_size
    fair_lookups = sum(load.lookups for load in rest) / world_size
    may_cut = world_size > 1 and not keep_whole
    cut = [r for r in rest if may_cut and (r.nbytes > fair_bytes or r.lookups > max(fair_lookups, 1.0))]
    whole = [r for r in rest if r not in cut]
    while True:
        placements = {load.table.name: Placement(kind="data_parallel") for load in small}
        placements |= {load.table.name: Placement(kind="row_wise") for load in cut}
        placements |= _deal(whole, cut, world_size)
        plan = Plan(world_size=world_size, tables={load.table.name: placements[load.table.name] for load in loads})
        if memory_per_rank is None:
            return plan
        held = [rank.nbytes for rank in rank_loads(plan, loads)]
        fullest = max(range(world_size), key=held.__getitem__)
        if held[fullest] <= memory_per_rank:
            return plan
        there = [load for load in whole if placements[load.table.name].ranks == (fullest,)]
        if not there or world_size == 1:
            raise too_large(small, rest, held=held[fullest], limit=memory_per_rank, world_size=world_size)
        largest = max(there, key=lambda load: load.nbytes)
        whole.remove(largest)
        cut.append(largest)


def _deal(whole: Sequence[Load], cut: Sequence[Load], world_size: int) -> dict[str, Placement]:
    """Whole tables to ranks, largest share first."""
    all_bytes = max(1, sum(load.nbytes for load in (*whole, *cut)))
    all_lookups = max(1e-9, sum(load.lookups for load in (*whole, *cut)))

    def share(load: Load) -> float:
        return max(load.nbytes / all_bytes, load.lookups / all_lookups)

    nbytes, lookups = [0.0] * world_size, [0.0] * world_size
    placements = {}
    for load in sorted(whole, key=share, reverse=True):

        def after(rank: int, load: Load = load) -> tuple[float, float]:
            shares = ((nbytes[rank] + load.nbytes) / all_bytes, (lookups[rank] + load.lookups) / all_lookups)
            return max(shares), sum(shares)

        rank = min(range(world_size), key=after)
        nbytes[rank], lookups[rank] = nbytes[rank] + load.nbytes, lookups[rank] + load.lookups
        placements[load.table.name] = Placement(kind="table_wise", ranks=(rank,))
    return placements


@dataclass(frozen=True, kw_only=True)
class RankLoad:
    """What a plan gives one rank.

    Args:
        nbytes: rows and optimizer state.
        lookups: rows that it looks up per sample of the global batch (replicas look up their own samples).
    """

    nbytes: int
    lookups: float


def rank_loads(plan: Plan, loads: Sequence[Load]) -> list[RankLoad]:
    """Bytes and expected lookups of each rank under a plan."""
    result = []
    for rank in range(plan.world_size):
        nbytes, lookups = 0, 0.0
        for load in loads:
            shard = plan.shard(load.table, rank)
            if shard is None or not shard.num_rows:
                continue
            width = shard.num_columns / load.table.embedding_dim
            nbytes += round(shard.num_rows * load.nbytes_per_row * width)
            lookups += _lookups(load, shard, plan)
        result.append(RankLoad(nbytes=nbytes, lookups=lookups))
    return result


def _lookups(load: Load, shard: TableShard, plan: Plan) -> float:
    """Lookups per sample that a shard serves."""
    kind = plan.placement(load.table.name).kind
    if kind == "data_parallel":
        return load.lookups / plan.world_size
    if kind == "row_wise" and load.lookups_R is not None:
        rows = shard.row_numbers()
        return float(load.lookups_R[rows[rows < load.table.num_embeddings]].sum())
    return load.lookups * shard.num_rows / shard.num_positions


def imbalance(values: Sequence[float]) -> float:
    """The largest value over the mean: 1 is perfect."""
    mean = sum(values) / max(1, len(values))
    return max(values) / mean if mean else 1.0
