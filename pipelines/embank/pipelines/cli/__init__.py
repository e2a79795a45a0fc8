"""The command line: `embank`."""

import sys
from typing import NoReturn


def main() -> None:
    """Entry point of `embank` and `python -m embank`."""
    try:
        from embank.pipelines.cli.watched import watched
    except KeyboardInterrupt:
        _not_begun()
    watched(_run)


def _run() -> None:
    try:
        from embank.pipelines.cli import waiting  # noqa: F401 - first of all: it sees whether others use the cores
        from embank.pipelines.cli.app import main as run
    except KeyboardInterrupt:  # importing takes a moment
        _not_begun()
    run()


def _not_begun() -> NoReturn:
    print("embank: interrupted: nothing was begun", file=sys.stderr)
    sys.exit(1)


__all__ = ["main"]
