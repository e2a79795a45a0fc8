"""The search as the command line and Python ask for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embank.pipelines.search.folder import JOURNAL
from embank.pipelines.search.plan import SPACES, Metric, SearchPlan
from embank.tables import ConfigError
from embank.tables.storage.yaml_text import read_yaml
from embank.tables.wording import nearest_or_all

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
        storage=storage or str(Path(out) / JOURNAL),
        budgets=tuple(budgets) or (None,),
        metric=metric,
        **settings,
    )
