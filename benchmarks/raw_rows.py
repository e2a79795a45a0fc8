"""From raw rows to scores: what a bundle with many ids costs to open, how fast strings become ids and files scores.

Each figure is of a process of its own with a warm file cache. Seconds are wall time; `cpu` those of the processors.

    python benchmarks/raw_rows.py --work runs/raw-rows [--ids 10000000] [--rows 1000000] [--threads 2]

It generates a log with that many distinct ids and one in Criteo's layout, prepares them, trains a model on each for one
epoch, exports it, and measures
  open      import torch, then `load_model`; resident and anonymous memory before and after
  encode    strings per second of one feature on one thread, 5% of them unknown; memory after it
  one_row   `model.score([row])` of 26 categorical and 13 numeric columns, one thread, and its parts
  predict   rows per second of `embank predict` on a file in Criteo's layout, and how much of it tables and network are
What is there already in --work is not made again. Writes
benchmarks/results/raw_rows.json.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import records
import yaml

MODELS = {
    "dlrm_small": "{name: dlrm, bottom: [64, 32], top: [64, 32]}",
    "dlrm": "{name: dlrm, bottom: [512, 256, 64], top: [512, 256]}",
}

OPEN = """
import json, sys, time
def memory():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: int(fields[key].split()[0]) * 1024 for name, key in (("resident", "VmRSS"), ("anonymous", "RssAnon"))}
begun = time.perf_counter()
import torch
imported = time.perf_counter()
before = memory()
from embank.pipelines import load_model
model = load_model(sys.argv[1])
opened = time.perf_counter()
told = {"import_torch_s": imported - begun, "load_model_s": opened - imported, "before": before, "after": memory()}
"""
ENCODE = (
    OPEN
    + """
import numpy as np, polars as pl
torch.set_num_threads(1)
from embank.tables.ids.token_hash import token_ids
rng, count, num = np.random.default_rng(0), 1_000_000, int(sys.argv[2])
numbers = np.where(rng.random(count) < .05, num + rng.integers(num, size=count), rng.integers(num, size=count))
tokens = pl.Series([f"user-{number:013d}" for number in numbers.tolist()])
rounds = []
for _ in range(5):
    begun = time.process_time()
    hashes = token_ids(tokens)
    hashed = time.process_time()
    ids = model.rules.index.find("user", hashes)
    found = time.process_time()
    rounds.append([hashed - begun, found - hashed])
hash_s, find_s = min(r[0] for r in rounds), min(r[1] for r in rounds)
told |= {"hash_per_s": count / hash_s, "find_per_s": count / find_s, "strings_per_s": count / (hash_s + find_s)}
told |= {"unknown_share": float((ids == 0).mean()), "touched": memory(), "index_bytes": model.rules.index.nbytes}
begun = time.perf_counter()
model.ids_of("user", ["user-0000000000007"])
told["one_id_s"] = time.perf_counter() - begun
print(json.dumps(told))
"""
)
ONE_ROW = (
    OPEN
    + """
torch.set_num_threads(1)
row = [model.example]
encoded = model.encode(row)
def least(call, rounds=400):
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    times.sort()
    return {"least_us": times[0] * 1e6, "median_us": times[len(times) // 2] * 1e6}
told |= {"encode": least(lambda: model.encode(row)), "tables_and_network": least(lambda: model.score_encoded(encoded))}
told["all"] = least(lambda: model.score(row))
print(json.dumps(told))
"""
)
PREDICT = """
import json, resource, sys, time
from embank.pipelines import predict
import torch
torch.set_num_threads(int(sys.argv[4]))
begun, cpu = time.perf_counter(), time.process_time()
done = predict(sys.argv[1], sys.argv[2], sys.argv[3], overwrite=True)
told = {"rows": done.num_rows, "seconds": done.seconds, "rows_per_s": done.num_rows / done.seconds}
told |= {"share_of_tables_and_network": done.seconds_scoring / done.seconds, "cpu_s": time.process_time() - cpu}
told["peak_resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(told))
"""


def embank(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "embank", *map(str, words)], check=True)


def measured(code: str, *words: object) -> dict[str, object]:
    """What code prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, capture_output=True, text=True)
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


def trained(work: Path, name: str, data: Path, model: str, table_lr: float) -> Path:
    """A run of one epoch."""
    run = work / f"run-{name}"
    if not (run / "result.json").is_file():
        config = {
            "data": {"path": str(data), "batch_size": 8192},
            "model": yaml.safe_load(model),
            "tables": {"dim": 16},
            "train": {"epochs": 1, "table_lr": table_lr},
        }
        (work / f"{name}.yaml").write_text(yaml.safe_dump(config))
        resume = ["--resume"] if run.exists() else []
        embank("train", work / f"{name}.yaml", "--out", run, *resume)
    return run


def many_ids(work: Path, num: int) -> Path:
    """A run on a log of distinct ids."""
    log, data = work / "ids.csv", work / "ids"
    if not data.is_dir():
        frame = pl.select(click=pl.int_range(num + num // 4) % 2, user=pl.int_range(num + num // 4))
        names = pl.lit("user-") + pl.col("user").cast(pl.String).str.zfill(13)
        frame.select("click", names.alias("user")).write_csv(log)
        columns = {"label": {"column": "click"}, "categorical": ["user"], "split": {"by": "ratio"}}
        (work / "ids_columns.yaml").write_text(yaml.safe_dump(columns))
        embank("prepare", "--format", "csv", "--input", log, "--config", work / "ids_columns.yaml", "--out", data)
        log.unlink()
    return trained(work, "ids", data, "{name: lr}", 0.02)


def criteo(work: Path, rows: int) -> tuple[Path, Path]:
    """A log in Criteo's layout, and it prepared."""
    log, data = work / "criteo.tsv", work / "criteo"
    if not log.is_file():
        embank("data", "synth", "--like", "criteo", "--rows", rows, "--out", log)
    if not data.is_dir():
        embank("prepare", "--format", "criteo", "--input", log, "--out", data)
    return log, data


def main() -> None:
    """Makes what is missing and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/raw-rows"))
    parser.add_argument("--ids", type=int, default=10_000_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    records.argument(parser)
    args = parser.parse_args()
    run = records.begin(settings=records.settings_of(args))
    args.work.mkdir(parents=True, exist_ok=True)
    bundle = many_ids(args.work, args.ids) / "bundle"
    log, data = criteo(args.work, args.rows)
    runs = {name: trained(args.work, name, data, model, 0.02) for name, model in MODELS.items()}
    measured(ENCODE, bundle, args.ids)  # warms the cache
    told: dict[str, Any] = {"encode": measured(ENCODE, bundle, args.ids)}
    told["one_row"] = {name: measured(ONE_ROW, run) for name, run in runs.items()}
    scores = args.work / "scores.parquet"
    told["predict"] = {name: measured(PREDICT, run, log, scores, args.threads) for name, run in runs.items()}
    run.records = recorded(told)
    records.save("raw_rows", run, title=TITLE, about=ABOUT, out=args.out)
    print(json.dumps(told, indent=1))


def recorded(told: dict[str, Any]) -> list[records.Record]:
    """Opening, strings to ids, one row, files."""
    encode = told["encode"]
    grown = encode["after"]["anonymous"] - encode["before"]["anonymous"]
    quick: dict[str, Any] = {"statistic": "best", "rounds": 5}

    def case(part: str, model: str | None = None) -> records.Case:
        return {"part": part} | ({} if model is None else {"model": model})

    def once(metric: str, unit: str, value: float, of: records.Case, **fields: Any) -> records.Record:
        return records.record(metric, unit, case=of, value=value, statistic="once", **fields)

    found = [
        once("import torch", "s", encode["import_torch_s"], case("open"), better="lower"),
        once("load_model, beyond that", "s", encode["load_model_s"], case("open"), better="lower"),
        once("anonymous memory of load_model", "bytes", grown, case("open"), better="lower"),
        *(
            records.record(name, "strings/s", case=case("encode"), better="higher", value=encode[key], **quick)
            for name, key in (
                ("strings to ids", "strings_per_s"),
                ("of it hashing", "hash_per_s"),
                ("of it finding", "find_per_s"),
            )
        ),
        once("index", "bytes", encode["index_bytes"], case("encode")),
    ]
    for model, one in told["one_row"].items():
        for name, key in (
            ("score", "all"),
            ("of it encode", "encode"),
            ("of it tables, network", "tables_and_network"),
        ):
            figures = {"value": one[key]["median_us"], "rounds": 400, "detail": {"least": one[key]["least_us"]}}
            found.append(records.record(name, "us", case=case("one row", model), better="lower", **figures))
    for model, one in told["predict"].items():
        of = case("embank predict", model)
        found.append(once("speed", "rows/s", one["rows_per_s"], of, better="higher"))
        found.append(once("share of tables and network", "", one["share_of_tables_and_network"], of))
        found.append(once("CPU time", "s", one["cpu_s"], of, better="lower"))
        found.append(once("peak resident memory", "bytes", one["peak_resident"], of, better="lower"))
    return found


TITLE = "From raw rows to scores"
ABOUT = (
    "Opening a bundle with many ids, strings to ids on one thread (5% of them unknown), one row of 13 + 26 columns "
    "scored in Python, and embank predict on a file of Criteo's layout; each in a process of its own, file cache warm."
)


if __name__ == "__main__":
    main()
