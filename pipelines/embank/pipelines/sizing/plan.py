"""The sharding plan of a configuration, for any number of ranks, without starting them."""

from pathlib import Path

from embank.pipelines.config.run import Config
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import plan_run, table_specs
from embank.tables.errors import ConfigError
from embank.tables.sharding.plan import Load, Plan


def plan_config(config: Config, *, ranks: int) -> tuple[Plan, list[Load]]:
    """The plan that a run on some ranks would begin with, and what it was made from.

    Args:
        config: the run's configuration; its prepared folder is read for sizes and counts.
        ranks: how many there would be.

    Raises:
        ConfigError: fewer than 1 rank, or the tables don't fit.
        DataError, BudgetError: as in training.
    """
    if ranks < 1:
        raise ConfigError(f"--ranks is {ranks}; a plan needs at least 1")
    schema = Schema.load(config.data.path)
    specs = table_specs(config, schema, data=Path(config.data.path))
    return plan_run(config, schema, specs, world_size=ranks)
