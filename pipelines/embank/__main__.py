"""`python -m embank`."""

from embank.pipelines.cli import main

if __name__ == "__main__":
    main()
