"""What the options for several ranks come to where one process trains: checked all the same, and said to do nothing
where they do nothing."""

from dataclasses import replace
from pathlib import Path

from embank.pipelines.config.run import Config
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import plan_run, table_specs
from embank.tables.sharding.plan import load_plan


def check_for_one_rank(config: Config, schema: Schema) -> list[str]:
    """Holds one process to what is asked of a rank: a plan that can be read, bytes within `rows.memory_per_rank` unless
    they are on a disk.

    Args:
        config: the run's configuration.
        schema: of its data.

    Returns:
        A line for each option that has no effect.

    Raises:
        ConfigError: no such plan, or one that is wrong; more bytes than the limit.
    """
    rows, idle = config.rows, []
    if rows.plan is not None:
        plan = load_plan(rows.plan)
        idle.append(f"rows.plan ('{rows.plan}', for {plan.world_size} ranks)")
    if rows.planner != "embank":
        idle.append(f"rows.planner ({rows.planner})")
    if rows.memory_per_rank is not None and rows.tier != "disk":
        alone = replace(config, rows=replace(rows, plan=None, planner="embank"))
        plan_run(alone, schema, table_specs(config, schema, data=Path(config.data.path)), world_size=1)
    return [f"{option} has no effect: one process holds all tables. Start several with torchrun" for option in idle]
