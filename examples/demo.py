"""The main job on real data: fetch MovieLens-100K, prepare it, train plain and compressed tables, compare them.

Run: make demo (or python examples/demo.py [FOLDER]). It gives the commands that it prints, which you can give as well.
Leaves everything under demo/: the data, and a sweep with one run directory per configuration, leaderboard.csv,
leaderboard.md and pareto.png. Running it again reuses what is complete.
"""

import subprocess
import sys
from pathlib import Path

CONFIG = Path(__file__).with_name("movielens.yaml")
METHODS, BUDGETS, SEEDS = "full,hash,mgqe", "0.25,0.1", "0,1,2"


def embank(*words: str | Path) -> None:
    """One command of embank; the demo ends with its exit code where it fails."""
    told = [str(word) for word in words]
    print("\n$ embank", *told, flush=True)
    done = subprocess.run([sys.executable, "-m", "embank", *told], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Data, a sweep, its table and its picture."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    raw, data, sweep = folder / "raw", folder / "data/movielens-100k", folder / "sweep"
    if not raw.is_dir():
        embank("data", "get", "movielens-100k", "--out", raw)
    if not data.is_dir():
        data.parent.mkdir(parents=True, exist_ok=True)
        embank("prepare", "--format", "movielens", "--input", raw, "--out", data)
    plan = ["--methods", METHODS, "--budgets", BUDGETS, "--seeds", SEEDS]
    resume = ["--resume"] if (sweep / "sweep.yaml").is_file() else []
    embank("sweep", CONFIG, "--set", f"data.path={data}", *plan, "--out", sweep, *resume)


if __name__ == "__main__":
    main()
