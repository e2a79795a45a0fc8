"""Small supernets for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.training.runs import config, raw_config

from embank.pipelines.config.run import Config
from embank.pipelines.search.fields import FieldSpace, field_space
from embank.pipelines.search.plan import SearchPlan
from embank.pipelines.search.read import make_plan
from embank.pipelines.search.scores import Scorer
from embank.pipelines.search.supernet import open_supernet, train_supernet

SECTIONS: dict[str, Any] = {"tables": {"dim": 8}, "train": {"epochs": 1}}


def searched(data: Path, **sections: Any) -> Config:
    """A configuration whose tables can be searched."""
    return config(data, **{**SECTIONS, **sections})


@contextmanager
def scored(
    run: Path, data: Path, *, row_levels: int = 3, **sections: Any
) -> Iterator[tuple[Config, FieldSpace, Scorer]]:
    """A trained supernet, its space and its scores."""
    own = searched(data, **sections)
    train_supernet(own, run)
    with open_supernet(run, config=own) as net:
        yield own, field_space(own, row_levels=row_levels), Scorer(net, data=data)


def plan_of(data: Path, out: Path, **settings: Any) -> SearchPlan:
    """A plan of a few quick trials."""
    defaults: dict[str, Any] = {"space": "rows", "budgets": [0.4], "num_trials": 8, "num_retrained": 1}
    sections = {**SECTIONS, **settings.pop("sections", {})}
    return make_plan(raw_config(data, **sections), out=out, **{**defaults, **settings})
