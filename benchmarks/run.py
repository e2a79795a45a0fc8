"""The benchmark suite at a size that finishes in minutes: `make bench`. Each part runs alone as well, at full size.

Run: python benchmarks/run.py [--full]
Writes JSON under benchmarks/results/. Peers (FuxiCTR) have an environment of their own and are started by hand, see
benchmarks/peers/README.md.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SEARCHES = ["released", "random", "nsga2", "ea", "profile alone"]
CONTESTANTS = ["embank", "embank-compiled", "torchrec", "torchrec-compiled", "torchrec-own-loader"]
SPEED = ["--contestants", *CONTESTANTS, "--repeats", "3"]


def main() -> None:
    """One part after the other; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the sizes of the published figures")
    full = parser.parse_args().full
    rows = 10_000_000 if full else 1_000_000
    tables = ["1000000", "10000000"] if full else ["1000000"]
    sequence_rows = ["--rows", "2000000" if full else "200000", "--repeats", "9" if full else "3"]
    scale = ["200000000", "20000000"] if full else ["20000000", "5000000"]
    parts = [
        ["prepare_criteo.py", "--rows", str(rows), "--work", "runs/bench"],
        ["peers/dlrm_speed.py", "--rows", *tables, "--steps", "150" if full else "60", *SPEED],
        [
            "tiers.py",
            "--rows",
            scale[0],
            "--small-rows",
            scale[1],
            "--repeats",
            "7" if full else "3",
            "--folder",
            "runs/bench",
        ],
        ["training_bytes.py"],
        ["sequence.py", *sequence_rows],
        ["memory_decoding.py", "--rounds", "5" if full else "3"],
        ["methods.py", "--rows", str(rows), "--rounds", "5" if full else "3"],
        ["unified.py", "--rows", str(rows), "--rounds", "9" if full else "3"],
        ["search.py", *([] if full else ["--problems", "3", "--contestants", *SEARCHES])],
        ["lm_speed.py", "--gib", *(["1", "4"] if full else ["0.1"]), "--rounds", "7" if full else "3"],
        ["ranks.py", "--repeats", "7" if full else "3"],
        ["deltas.py", "--rows", "20000000" if full else "2000000", "--folder", "runs/bench"],
        ["serving.py", "--work", "runs/bench/serving", "--seconds", "5" if full else "2"],
        ["scoring.py", "--large-rows", "16000000" if full else "2000000", "--folder", "runs/bench"],
        ["page_warming.py", "--gib", "4" if full else "1", "--folder", "runs/bench"],
    ]
    for part in parts:
        print(f"\n== {' '.join(part)}", flush=True)
        subprocess.run([sys.executable, str(HERE / part[0]), *part[1:]], check=True)


if __name__ == "__main__":
    main()
