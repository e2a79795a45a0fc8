"""More made-up files than the suite has time for: `python -m tests.fuzz --cases 10000`."""

import argparse
import os
import sys
from pathlib import Path

import pytest


def main() -> int:
    """Runs the tests with that many cases in all; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--only", default="", help="tests whose names have this in them")
    args = parser.parse_args()
    os.environ["EMBANK_FUZZ_CASES"] = str(args.cases)
    return pytest.main(["-n", "0", "-q", str(Path(__file__).parent), *(["-k", args.only] if args.only else [])])


if __name__ == "__main__":
    sys.exit(main())
