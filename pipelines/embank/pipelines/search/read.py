"""The search as the command line and Python ask for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embank.pipelines.search.folder import JOURNAL
from embank.pipelines.search.plan import SPACES, Metric, SearchPlan
from embank.tables import ConfigError
from embank.tables.storage.yaml_text import read_yaml
from embank.tables.wording import nearest_or_all

if TYPE_CHECKING:
    import optuna

_SUFFIXES = (".yaml", ".yml")


def read_space(space: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a space.

    Args:
        space: a name, or a YAML file with the name under `space` and options beside it.

    Raises:
        ConfigError: neither.
    """
    if not space.endswith(_SUFFIXES):
        if space not in SPACES:
            known = nearest_or_all(space, SPACES, label="there are")
            raise ConfigError(f"--space is '{space}'; {known}, or a file that ends in .yaml")
        return space, {}
    options = read_yaml(space, origin=f"the space '{space}'")
    if not isinstance(options, dict) or options.get("space") not in SPACES:
        raise ConfigError(
            f"the space '{space}' must be a mapping with 'space: NAME' and its options; names: {', '.join(SPACES)}"
        )
    name = str(options.pop("space"))
    return name, {str(key): value for key, value in options.items()}


def make_plan(
    config: Mapping[str, Any],
    *,
    out: str | Path,
    space: str = "widths",
    storage: str | None = None,
    budgets: Sequence[float] = (),
    metric: Metric = "auc",
    **settings: Any,
) -> SearchPlan:
    """A plan whose studies are kept in the search's directory, unless it says where else.

    Args:
        config: plain dicts.
        out: the search's directory.
        space: see `read_space`.
        storage: a file or a URL; None is a journal in `out`.
        budgets: none searches without a limit.
        metric: see `SearchPlan`.
        settings: further arguments of `SearchPlan`.
    """
    name, options = read_space(space)
    return SearchPlan(
        config=config,
        space=name,
        options=options,
        space_file=space if space.endswith(_SUFFIXES) else "",
        storage=storage or str(Path(out) / JOURNAL),
        budgets=tuple(budgets) or (None,),
        metric=metric,
        **settings,
    )


def search_config(
    config: str | Path | Mapping[str, Any],
    *,
    out: str | Path,
    space: str = "widths",
    sampler: str = "ea",
    budget: float | None = None,
    num_trials: int = 600,
    storage: str | None = None,
    num_retrained: int = 5,
    train_seeds: Sequence[int] = (0,),
    workers: int = 1,
    resume: bool = False,
    **settings: Any,
) -> "optuna.Study":
    """What `embank search` does, for one budget: searches, trains the best candidates anew, and writes `out`.

    Args:
        config: a YAML file, or plain dicts.
        out: the search's directory.
        space: `widths` or `rows` (scored on a supernet), `methods`, `unified` or `full` (by training), or a SPACE.yaml.
        sampler: one of `embank.search.SAMPLERS`.
        budget: serving bytes / plain bytes; None for no limit.
        num_trials: of the study, those that it has already included.
        storage: a journal file or a database's URL; None is a journal in `out`.
        num_retrained: candidates that are trained anew; 0 cuts the best one out of the supernet.
        train_seeds: each of them is trained with.
        workers: processes.
        resume: go on with a stopped search, or with more trials.
        settings: further arguments of `SearchPlan`, such as `seed`, `metric`, `supernet`.

    Returns:
        The study; each trial has the user attributes `candidate` and `nbytes`. `out/best.yaml` is the best
        configuration.

    Raises:
        ConfigError, CheckpointError, DataError, BudgetError: bad input.
        WorkError: the storage can't be written, or trainings have failed.
    """
    from embank.pipelines.config.file import read_config
    from embank.pipelines.search.search import Search

    plan = make_plan(
        config if isinstance(config, Mapping) else read_config(config),
        out=out,
        space=space,
        sampler=sampler,
        budgets=[] if budget is None else [budget],
        num_trials=num_trials,
        storage=storage,
        num_retrained=num_retrained,
        train_seeds=tuple(train_seeds),
        workers=workers,
        **settings,
    )
    (study,) = Search(plan, out).run(resume=resume).values()
    return study
