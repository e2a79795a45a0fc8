"""Data, training, evaluation, sweeps and the command line.

Names are imported when they are first used, so that a command loads what it needs and no more.
"""

from typing import TYPE_CHECKING, Any

from embank.tables.libraries import public_name

if TYPE_CHECKING:
    from embank.pipelines.config.run import TrainConfig, load_config, parse_config
    from embank.pipelines.data.loading.integrity import verify_prepared
    from embank.pipelines.data.schema import Schema
    from embank.pipelines.train.trainer import Trainer

__all__ = ["Schema", "TrainConfig", "Trainer", "load_config", "parse_config", "verify_prepared"]

_HOME = {
    "Schema": "data.schema",
    "TrainConfig": "config.run",
    "Trainer": "train.trainer",
    "load_config": "config.run",
    "parse_config": "config.run",
    "verify_prepared": "data.loading.integrity",
}
"""The module of each name."""


def __getattr__(name: str) -> Any:
    found = globals()[name] = public_name(__name__, name, homes=_HOME)
    return found


def __dir__() -> list[str]:
    return __all__
