"""Commands that are one process's work, whatever started them."""

import os
import sys

from embank.tables.errors import ConfigError


def refuse_several(command: str) -> None:
    """Raises ConfigError if torchrun has started several processes, which would each do the whole work and write the
    same files. Help is work for any number."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1" and "--help" not in sys.argv:
        raise ConfigError(
            f"`{command}` runs in one process, and WORLD_SIZE says that torchrun has started {count}; start it without "
            "torchrun (the ranks of a training share its tables: `embank train`, `embank lm train`)"
        )
