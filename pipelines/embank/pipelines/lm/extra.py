"""Libraries that only language models need: the extra `lm`."""

from importlib import import_module
from typing import Any

from embank.tables.errors import ConfigError


def require(name: str, *, what: str) -> Any:
    """A library of the extra `lm`.

    Args:
        name: of the module.
        what: needs it, for the message.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what} needs the package '{name}'; install it with `pip install 'embank[lm]'`") from error
