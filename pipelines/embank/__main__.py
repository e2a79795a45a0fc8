"""`python -m embank`."""

from embank.pipelines.cli import main

main()
