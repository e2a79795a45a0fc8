"""Commands that are one process's work, whatever started them."""

import os

from embank.tables.errors import ConfigError


def refuse_several(command: str) -> None:
    """Raises ConfigError if torchrun has started several processes, which would each do the whole work and write the
    same files."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise ConfigError(
            f"`{command}` runs in one process, and WORLD_SIZE says that torchrun has started {count}; start it without "
            "torchrun (the ranks of a training share its tables: `embank train`, `embank lm train`)"
        )
