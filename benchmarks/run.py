"""The benchmarks, one after the other: `make bench`.

    python benchmarks/run.py                        # short sizes, roughly half an hour on two quiet cores
    python benchmarks/run.py --only tiers methods   # some of them
    python benchmarks/run.py --size full            # those of the published figures, hours
    python benchmarks/run.py --size trial           # does everything run? some minutes; the figures mean nothing

Measures the machine's own rates first (`floors.py`), then every part, each in a process of its own, then writes the
page (`page.py`). Files go to runs/bench/SIZE, those of full size to benchmarks/results. A part that fails does not end
the run: it is named at the end, and the exit status is 1. A peer that is not installed is named, too. Each part runs
alone as well.

Not among the parts are those that need data, checkouts or hours: parity and fitted tables, imports, TorchRec's tests
and examples, language models, drift, GPUs. See their docstrings, and benchmarks/peers/README.md for FuxiCTR.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import floors
import page
import records

HERE = Path(__file__).resolve().parent
WORK = Path("runs/bench")
SIZES = ("trial", "short", "full")
FUXICTR = HERE.parent / ".venv-fuxictr/bin/python"
SEARCHES = ["random", "ea", "profile alone"]
CONTESTANTS = ["embank", "embank-compiled", "torchrec", "torchrec-compiled", "torchrec-own-loader"]
BF16 = ["embank-compiled-bf16", "torchrec-compiled-bf16"]
SMALL_METHODS = (
    "--rows 3000 --packed-rows 4000 --batch-size 64 --batches 2 --rounds 2 --steps 1 --seconds 0.5 --threads 1"
)
SMALL_TIERS = "--batch-size 64 --scale-steps 4 --steps 3 --warm-steps 3 --disk-seconds 0.1"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A benchmark.

    Args:
        script: in this folder.
        trial, short, full: its options by size; several words in one string, or a list where a word has spaces.
        work: the option that names a folder for its data, if it takes one.
    """

    script: str
    trial: str | Sequence[str]
    short: str | Sequence[str]
    full: str | Sequence[str] = ""
    work: str | None = None

    def words(self, size: str) -> list[str]:
        """Its options."""
        options: str | Sequence[str] = getattr(self, size)
        return options.split() if isinstance(options, str) else list(options)


PARTS: dict[str, Part] = {
    "prepare_criteo": Part(
        script="prepare_criteo.py", trial="--rows 20000", short="--rows 1000000", full="--rows 10000000", work="--work"
    ),
    "dlrm_speed": Part(
        script="peers/dlrm_speed.py",
        trial="--rows 20000 --steps 3 --warmup 1 --repeats 2 --fuxictr-steps 2 --contestants embank torchrec",
        short=["--rows", "1000000", "--steps", "60", "--repeats", "3", "--contestants", *CONTESTANTS],
        full=[
            "--rows",
            "1000000",
            "10000000",
            "--steps",
            "150",
            "--repeats",
            "5",
            "--contestants",
            *CONTESTANTS,
            *BF16,
        ],
        work="--work",
    ),
    "loader": Part(
        script="loader.py",
        trial="--rows 20000 --batch-size 512 --rounds 2",
        short="--rows 500000 --rounds 3",
        work="--work",
    ),
    "tiers": Part(
        script="tiers.py",
        trial=f"--rows 20000 --small-rows 10000 --repeats 2 {SMALL_TIERS}",
        short="--rows 20000000 --small-rows 5000000 --repeats 3",
        full="--rows 200000000 --small-rows 20000000 --repeats 7",
        work="--folder",
    ),
    "training_bytes": Part(script="training_bytes.py", trial="--rows 1000 --methods full hash", short=""),
    "sequence": Part(
        script="sequence.py",
        trial="--rows 2000 --small-rows 1000 --repeats 2 --tokens 256 --steps 2 --contestants disk memory",
        short="--rows 200000 --repeats 3",
        full="--rows 2000000 --repeats 9",
        work="--work",
    ),
    "memory_decoding": Part(
        script="memory_decoding.py",
        trial="--rows 2000 --ffn-dim 32 --tokens 50 --rounds 2",
        short="--rounds 3",
        full="--rounds 5",
    ),
    "methods": Part(
        script="methods.py",
        trial=f"--methods full hash tt_rec --schedule-steps 40 {SMALL_METHODS}",
        short="--rows 1000000 --rounds 3 --seconds 3",
        full="--rows 10000000 --rounds 5",
    ),
    "rows": Part(script="rows.py", trial="--rounds 1 --cases 1 --batches 1", short="--rounds 3 --cases 8"),
    "unified": Part(
        script="unified.py",
        trial="--rows 5000 --rounds 2 --batches 2 --batch-size 64",
        short="--rows 1000000 --rounds 3",
        full="--rows 10000000 --rounds 9",
    ),
    "packed_lookups": Part(
        script="packed_lookups.py", trial="--rows 1000 --rounds 2 --methods full hash", short="--rounds 3"
    ),
    "checks": Part(script="checks.py", trial="--rows 20000 --steps 3", short=""),
    "search": Part(
        script="search.py",
        trial=["--problems", "2", "--evaluations", "40", "--contestants", *SEARCHES],
        short=["--problems", "3", "--contestants", "released", "nsga2", *SEARCHES],
    ),
    "lm_speed": Part(
        script="lm_speed.py",
        trial="--gib 0.002 --rounds 2 --steps 2 --small --vocab-size 300",
        short="--gib 0.1 --rounds 3",
        full="--gib 1 4 --rounds 7",
        work="--work",
    ),
    "run_parts": Part(
        script="run_parts.py",
        trial="--rows 20000 --steps 3 --valid 4096 --rounds 1 --busy 0",
        short="--rounds 3",
        full="--rounds 5",
        work="--work",
    ),
    "growth": Part(
        script="growth.py",
        trial="--most 10 --rounds 2 --axes bags batch",
        short="--most 10000000 --rounds 3",
        work="--work",
    ),
    "ranks": Part(
        script="ranks.py",
        trial="--rows 20000 --steps 3 --repeats 2 --batch-size 256",
        short="--repeats 3",
        full="--repeats 7",
    ),
    "deltas": Part(
        script="deltas.py", trial="--rows 20000", short="--rows 2000000", full="--rows 20000000", work="--folder"
    ),
    "serving": Part(
        script="serving.py",
        trial="--rows 2000 --seconds 2 --connections 1 4",
        short="--seconds 2",
        full="--seconds 5",
        work="--work",
    ),
    "raw_rows": Part(
        script="raw_rows.py",
        trial="--ids 20000 --rows 20000",
        short="--ids 1000000 --rows 200000",
        full="--ids 10000000 --rows 500000",
        work="--work",
    ),
    "scoring": Part(
        script="scoring.py",
        trial="--rows 26000 --large-rows 26000 --rounds 2",
        short="--large-rows 2000000",
        full="--large-rows 16000000",
        work="--folder",
    ),
    "page_warming": Part(
        script="page_warming.py",
        trial="--gib 0.05 --pages 200 --repeats 2",
        short="--gib 1",
        full="--gib 4",
        work="--folder",
    ),
}
RATES = Part(script="floors.py", trial="--mib 8 --rounds 2", short="")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of a part: how long it took, what it did without, and whether it failed."""

    name: str
    seconds: float
    trouble: str | None
    failed: bool = False


def run_part(name: str, part: Part, args: argparse.Namespace) -> Outcome:
    """One part in a process of its own, which may fail."""
    words, trouble = part.words(args.size), None
    if "--contestants" in words and part.script.startswith("peers/"):
        if FUXICTR.exists():
            words.append("fuxictr")
        else:
            trouble = "measured without FuxiCTR, which `python benchmarks/peers/fuxictr_env.py` installs"
    if part.work is not None:
        folder = args.work / args.size / name
        folder.mkdir(parents=True, exist_ok=True)
        words += [part.work, str(folder)]
    print(f"\n== {name}: {' '.join(words)}", flush=True)
    begun = time.perf_counter()
    command = [sys.executable, str(HERE / part.script), *words, "--out", str(args.out)]
    status = subprocess.run(command, check=False).returncode
    if status:
        trouble = f"failed with status {status}; what it said is above"
    return Outcome(name=name, seconds=time.perf_counter() - begun, trouble=trouble, failed=bool(status))


def told(outcomes: Sequence[Outcome]) -> str:
    """What became of each part."""
    lines = [f"{one.seconds:7.0f} s  {one.name}" + (f": {one.trouble}" if one.trouble else "") for one in outcomes]
    return "\n".join(["", "== in all", *lines, f"{sum(one.seconds for one in outcomes):7.0f} s"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="short")
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART", help="some parts"
    )
    parser.add_argument("--work", type=Path, default=WORK, help="folder of generated data; parts reuse theirs")
    parser.add_argument("--out", type=Path, help="folder of the result files and the page")
    args = parser.parse_args()
    args.out = args.out or (records.RESULTS if args.size == "full" else args.work / args.size)
    return args


def main() -> None:
    """The rates, the parts, the page.

    Raises:
        SystemExit: some part failed.
    """
    args = arguments()
    outcomes = [run_part("floors", RATES, args)]
    if not outcomes[0].failed:
        os.environ[floors.GIVEN] = str(args.out / "floors.json")
    try:
        outcomes.extend(run_part(name, PARTS[name], args) for name in args.only)
    finally:
        print(told(outcomes), flush=True)
    print(page.write(args.out))
    failed = [one.name for one in outcomes if one.failed]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see above")


if __name__ == "__main__":
    main()
