"""The command line: `embank`."""

import sys


def main() -> None:
    """Entry point of `embank` and `python -m embank`."""
    try:
        from embank.pipelines.cli.app import main as run
    except KeyboardInterrupt:  # importing takes a moment
        print("embank: interrupted: nothing was begun", file=sys.stderr)
        sys.exit(1)
    run()


__all__ = ["main"]
