"""Faults at length: `python -m tests.faults --seconds 600 --seed 0 [--kinds killed_train,full_disk]`.

Prints each fault that went wrong with the number that brings it back (`--only NUMBER`), and at the end how many ended
how. A small file system as `--folder` (`mount -t tmpfs -o size=3m tmpfs DIR`) makes the full disk a real one.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.faults import FAULTS, FaultError
from tests.faults.place import Place


def main() -> int:
    """Runs faults until the time is over; the exit code says whether all of them ended as they must."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(FAULTS))
    parser.add_argument("--only", type=int)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    kinds = args.kinds.split(",")
    ends: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="embank-faults-", dir=args.folder) as folder:
        place = Place(Path(folder))
        limit, number = time.monotonic() + args.seconds, args.only or 0
        while time.monotonic() < limit:
            kind = kinds[number % len(kinds)]
            try:
                ends[kind, FAULTS[kind](place, random.Random(f"{args.seed}/{number}"))] += 1
            except (FaultError, AssertionError, TimeoutError) as error:
                ends[kind, "WRONG"] += 1
                print(f"number {number}, {kind}: {error}\n", flush=True)
            number += 1
            if args.only is not None:
                break
    for (kind, end), count in sorted(ends.items()):
        print(f"{kind:<16} {end:<10} {count:>6}")
    return int(any(end == "WRONG" for _, end in ends))


if __name__ == "__main__":
    sys.exit(main())
