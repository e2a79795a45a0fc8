"""The command line: `embank`."""

from embank.pipelines.cli.main import main

__all__ = ["main"]
