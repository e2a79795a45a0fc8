"""Preparing Criteo-shaped logs: rows/s and peak memory of `embank prepare`, in a process of its own.

Run: python benchmarks/prepare_criteo.py [--rows 10000000] [--work runs/prepare]
Generates the log once (about 243 bytes a row), prepares it, and writes benchmarks/results/prepare_criteo.json. Peak
memory is the largest resident set of the process, as the operating system counts it.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).with_name("results")


def generate(path: Path, rows: int) -> None:
    """The log, if it is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["embank", "data", "synth", "--like", "criteo", "--rows", str(rows), "--out", str(path)]
        subprocess.run([sys.executable, "-m", *command], check=True)


def main() -> None:
    """Generate, prepare, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--work", type=Path, default=Path("runs/prepare"))
    parser.add_argument("--log", type=Path, help="a Criteo-shaped log that exists already")
    args = parser.parse_args()
    log = args.log or args.work / f"criteo-{args.rows}.tsv"
    generate(log, args.rows)
    out = args.work / "prepared"
    shutil.rmtree(out, ignore_errors=True)
    load = os.getloadavg()[0]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    command = ["embank", "prepare", "--format", "criteo", "--input", str(log), "--out", str(out)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    wall = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    schema = json.loads((out / "schema.json").read_text())
    result = {
        "command": " ".join(["python", "benchmarks/prepare_criteo.py", *sys.argv[1:]]),
        "machine": platform.platform(),
        "num_cpus": os.cpu_count(),
        "load_before": round(load, 2),
        "rows": args.rows,
        "input_bytes": log.stat().st_size,
        "output_bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file()),
        "num_ids": sum(field["num_embeddings"] for field in schema["categorical"]),
        "wall_s": round(wall, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime, 1),
        "rows_per_s": round(args.rows / wall),
        "peak_rss_bytes": used.ru_maxrss * 1024,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "prepare_criteo.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
