"""The profile's solution for searches by training: one pass over a supernet, and shapes of tables for every budget."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from embank.pipelines.config.run import Config
from embank.pipelines.runs.records import RESUME
from embank.pipelines.search.fields import field_space
from embank.pipelines.search.scores import Scorer
from embank.pipelines.search.supernet import open_supernet
from embank.search.profile import Profile, profile_plan
from embank.search.spaces import Shape
from embank.tables import CheckpointError
from embank.tables.storage.atomic import replace_text
from embank.tables.storage.yaml_text import read_yaml

ROW_LEVELS = 6


def profile_shapes(config: Config, *, supernet: Path, budgets: Sequence[float]) -> dict[float, dict[str, Shape]]:
    """What is kept of each feature's table within some budgets.

    Args:
        config: the search's configuration.
        supernet: the run directory of its supernet.
        budgets: serving bytes / plain bytes.

    Raises:
        BudgetError: one is below what the narrowest and shortest tables have.
    """
    space = field_space(config, row_levels=ROW_LEVELS)
    allowed = {budget: space.allowed_nbytes(budget) for budget in budgets}
    with open_supernet(supernet, config=config) as net:
        scorer = Scorer(net, data=Path(config.data.path), precision=config.train.precision)
        scores = {genes: scorer(space.shapes(space.decode(genes))) for genes in profile_plan(space)}
    profile = Profile(space, {genes: score for genes, score in scores.items() if score is not None})
    return {budget: space.shapes(profile.candidate(nbytes)) for budget, nbytes in allowed.items()}


def write_shapes(shapes: Mapping[float, Mapping[str, Shape]], path: Path) -> None:
    """Notes them, for the processes that train."""
    plain = {b: {name: {"rows": s.rows, "width": s.width} for name, s in own.items()} for b, own in shapes.items()}
    replace_text(path, yaml.safe_dump(plain, sort_keys=False), cure=RESUME)


def read_shapes(path: Path) -> dict[float, dict[str, Shape]]:
    """What `write_shapes` noted.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    read = read_yaml(path, origin=f"'{path}'", error=CheckpointError)
    try:
        return {float(b): {name: Shape(**shape) for name, shape in own.items()} for b, own in read.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"'{path}' is damaged; remove it and go on with --resume") from error
