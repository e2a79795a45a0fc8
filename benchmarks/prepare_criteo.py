"""Preparing Criteo-shaped logs: rows/s and peak memory of `embank prepare`, in a process of its own.

Run: python benchmarks/prepare_criteo.py [--rows 10000000] [--work runs/prepare]
Generates the log once (about 243 bytes a row), prepares it, and writes benchmarks/results/prepare_criteo.json. Peak
memory is the largest resident set of the process, as the operating system counts it.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import floors
import records


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
    records.argument(parser)
    args = parser.parse_args()
    run = records.begin(settings=records.settings_of(args))
    log = args.log or args.work / f"criteo-{args.rows}.tsv"
    generate(log, args.rows)
    out = args.work / "prepared"
    shutil.rmtree(out, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    command = ["embank", "prepare", "--format", "criteo", "--input", str(log), "--out", str(out)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    wall = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    schema = json.loads((out / "schema.json").read_text())
    result = {
        "rows": args.rows,
        "input_bytes": log.stat().st_size,
        "output_bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file()),
        "num_ids": sum(field["num_embeddings"] for field in schema["categorical"]),
        "wall_s": wall,
        "cpu_s": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        "peak_rss_bytes": used.ru_maxrss * 1024,
    }
    run.records = recorded(result, rates=floors.rates(os.cpu_count() or 1))
    records.save("prepare_criteo", run, title=TITLE, about=ABOUT, out=args.out)
    print(json.dumps(result, indent=1))


def recorded(result: dict[str, Any], *, rates: floors.Rates | None) -> list[records.Record]:
    """Speed, CPU, memory and sizes of one preparation."""
    case = {"rows": result["rows"], "input bytes": result["input_bytes"], "ids": result["num_ids"]}
    once: dict[str, Any] = {"case": case, "statistic": "once"}
    counts = "input and output, each byte read or written once in memory"
    nbytes = (result["input_bytes"] + result["output_bytes"]) / result["rows"]
    works = [] if rates is None else [rates.work("copy", nbytes, counts)]
    rate = result["rows"] / result["wall_s"]
    return [
        records.record("speed", "rows/s", better="higher", value=rate, works=works, **once),
        records.record("CPU time", "s", better="lower", value=result["cpu_s"], **once),
        records.record("peak resident memory", "bytes", better="lower", value=result["peak_rss_bytes"], **once),
        records.record("output", "bytes", case=case, statistic="exact", value=result["output_bytes"]),
    ]


TITLE = "Preparing Criteo-shaped logs"
ABOUT = "embank prepare on a generated log of Criteo's layout, in a process of its own, from reading to checked files."

if __name__ == "__main__":
    main()
