"""DLRM training speed on a CPU: `embank train` against a TorchRec loop and against FuxiCTR, in turn, as ratios.

    python benchmarks/peers/dlrm_speed.py --rows 1000000 10000000 --repeats 5 --threads 2
    python benchmarks/peers/dlrm_speed.py --rows 1000000 --contestants embank torchrec --embank-set train.compile=true
    python benchmarks/peers/dlrm_speed.py --rows 1000000 --contestants embank previous \\
        --previous ../old/.venv/bin/python

13 numeric and 26 categorical inputs, dim 16, bottom 512-256-64-16, top 512-256-1, batch 4,096, fp32. One round runs
every contestant once, each in a process of its own, so that a noisy minute hits all of them; the ratio is taken within
a round. The peers train on batches that lie ready in memory (but for `own-loader`); embank's figure includes its
loader. Compare what is at equal settings: `embank` to `torchrec`, `embank-compiled` to `torchrec-compiled`. `previous`
is `embank train` of another installation, such as a checkout of an earlier commit, on the same data as that one
prepares it. Data comes from `embank.pipelines.data.synth` once per table size. A finished run is a line in
`--work`/runs.jsonl and is not repeated. Writes benchmarks/results/dlrm_speed.json; run it on a quiet machine.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuxictr_env
import numpy as np
import prepared
import speed
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import floors
import records

HERE = Path(__file__).resolve().parent
BATCH_SIZE = 4096
VARIANTS = {  # what `embank train` runs with beside eager fp32
    "embank": ["train.compile=false", "train.precision=fp32"],
    "embank-compiled": ["train.compile=true", "train.precision=fp32"],
    "embank-compiled-bf16": ["train.compile=true", "train.precision=bf16"],
    "embank-default": [],
}
PREVIOUS = "previous"
TORCHREC = {
    "torchrec": [],
    "torchrec-own-loader": ["--own-loader"],
    "torchrec-compiled": ["--compile"],
    "torchrec-compiled-bf16": ["--compile", "--bf16"],
    "torchrec-compiled-own-loader": ["--compile", "--own-loader"],
    "torchrec-compiled-bf16-own-loader": ["--compile", "--bf16", "--own-loader"],
}
PEERS = (*TORCHREC, "fuxictr", PREVIOUS)
CONTESTANTS = [
    *(name for name in VARIANTS if name != "embank-default"),
    *(name for name in TORCHREC if "own" not in name),
    "fuxictr",
]
MAKE_DATA = (
    "import json, sys; from embank.pipelines.data.synth import synth_prepared as make; make(sys.argv[1], "
    "**json.loads(sys.argv[2]))"
)


def ensure_data(args: argparse.Namespace, rows: int, *, python: str = sys.executable) -> Path:
    """A prepared folder whose tables hold `rows` rows in total, with enough training rows for every contestant."""
    train = BATCH_SIZE * (args.steps + args.warmup)
    folder = args.work / f"dlrm_{rows}_{train}{'' if python == sys.executable else '_' + PREVIOUS}"
    if not folder.exists():
        sizes = {"total_rows": rows, "train": train, "valid": BATCH_SIZE, "test": BATCH_SIZE, "seed": 0}
        output_of([python, "-c", MAKE_DATA, folder, json.dumps(sizes)])
    return folder


def run_peer(name: str, data: Path, args: argparse.Namespace) -> dict:
    python = fuxictr_env.python() if name == "fuxictr" else sys.executable
    steps = min(args.steps, args.fuxictr_steps) if name == "fuxictr" else args.steps
    options = {"--data": data, "--batch-size": BATCH_SIZE, "--steps": steps, "--warmup": args.warmup}
    options["--threads"] = args.threads
    flat = [part for pair in options.items() for part in pair]
    script = HERE / f"dlrm_{name.partition('-')[0]}.py"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads(output_of([python, script, *flat, *TORCHREC.get(name, [])]))
    return result | {"process_cpu_s": cpu_seconds_since(before)}


def cpu_seconds_since(before: resource.struct_rusage) -> float:
    """CPU seconds of the processes that have ended since, start-up included."""
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime


def run_embank(name: str, data: Path, args: argparse.Namespace) -> dict:
    """One epoch of `embank train`; the whole epoch counts, first steps and loader included."""
    python = args.previous if name == PREVIOUS else sys.executable
    config = {
        "data": {"path": str(data.resolve()), "batch_size": BATCH_SIZE},
        "model": {"name": "dlrm", "bottom": speed.BOTTOM, "top": speed.TOP},
        "tables": {"dim": speed.DIM},
        "train": {
            "epochs": 1,
            "lr": 0.001,
            "table_optimizer": "rowwise_adagrad",
            "table_lr": 0.02,
            "num_threads": args.threads,
        },
    }
    path, folder = args.work / "embank.yaml", args.work / "embank_run"
    path.write_text(yaml.safe_dump(config))
    shutil.rmtree(folder, ignore_errors=True)
    sets = [part for setting in [*VARIANTS.get(name, []), *args.embank_set] for part in ("--set", setting)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output_of([python, "-m", "embank", "train", path, "--out", folder, *sets])
    result = json.loads((folder / "result.json").read_text())
    shutil.rmtree(folder)
    return {
        "samples_per_s": result["samples_per_s"],
        "loader_share": result["loader_share"],
        "steps": result["num_steps"],
        "process_cpu_s": cpu_seconds_since(before),
    }


def output_of(command: list) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\nfailed with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def measure(args: argparse.Namespace) -> list[dict]:
    """Round after round, every contestant once a round, in an order that turns with the round."""
    log = args.work / "runs.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {line["key"]: line for line in lines}
    measured = []
    for rows in args.rows:
        data = ensure_data(args, rows)
        earlier = ensure_data(args, rows, python=args.previous) if PREVIOUS in args.contestants else data
        for repeat in range(args.repeats):
            shift = repeat % len(args.contestants)
            for name in args.contestants[shift:] + args.contestants[:shift]:
                settings = [name, rows, repeat, args.steps, args.warmup, args.threads]
                extra = args.embank_set if name in (*VARIANTS, PREVIOUS) else [args.fuxictr_steps] * (name == "fuxictr")
                key = json.dumps([*settings, extra])
                if key not in done:
                    run = run_embank if name in (*VARIANTS, PREVIOUS) else run_peer
                    result = run(name, earlier if name == PREVIOUS else data, args)
                    done[key] = {"key": key, "name": name, "rows": rows, "repeat": repeat, **result}
                    with log.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
                    print(f"{rows:,} rows, round {repeat}: {name} {result['samples_per_s']:,.0f} samples/s", flush=True)
                measured.append(done[key])
    return measured


def summarize(measured: list[dict], args: argparse.Namespace) -> list[dict]:
    """Per table size and contestant: median and range of samples/s, and of embank's ratio to it, round by round."""
    out = []
    for rows in args.rows:
        speeds = {
            name: [m["samples_per_s"] for m in measured if m["rows"] == rows and m["name"] == name]
            for name in args.contestants
        }
        for name, values in speeds.items():
            entry = {"rows": rows, "name": name, **spread("samples_per_s", values)}
            for ours in (n for n in args.contestants if n in VARIANTS and name in PEERS):
                ratios = [a / b for a, b in zip(speeds[ours], values, strict=True)]
                entry |= spread(f"{ours}_over_this", ratios)
            shares = [
                m["loader_share"] for m in measured if m["rows"] == rows and m["name"] == name and "loader_share" in m
            ]
            own = [m for m in measured if m["rows"] == rows and m["name"] == name and "process_cpu_s" in m]
            cpu = spread("process_cpu_s", [m["process_cpu_s"] for m in own]) if own else {}
            out.append(entry | cpu | (spread("loader_share", shares) if shares else {}))
    return out


def spread(name: str, values: list[float]) -> dict:
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def distinct_rows(data: Path) -> int:
    """Rows of all tables that one batch looks up, each counted once."""
    columns = prepared.columns(data, "train", max_rows=BATCH_SIZE)
    return sum(np.unique(columns[field["name"]]).size for field in prepared.schema(data)["categorical"])


def works(name: str, distinct: int, rates: floors.Rates) -> list[records.Work | None]:
    """What a sample of a contestant can't do without."""
    shape = {"dense": 13, "fields": 26, "dim": speed.DIM, "bottom": speed.BOTTOM, "top": speed.TOP}
    flops = floors.dlrm_step_flops(rows=BATCH_SIZE, **shape) / BATCH_SIZE
    nbytes = floors.step_row_bytes(distinct=distinct, dim=speed.DIM) / BATCH_SIZE
    kind = "matmul bf16" if "bf16" in name and "matmul bf16" in rates.per_second else "matmul fp32"
    return [
        rates.work(kind, flops, "matrix products of a step, forward and backward, by sample"),
        rates.work("copy", nbytes, "a batch's distinct rows and their state, read and written once, by sample"),
    ]


def recorded(
    summary: list[dict[str, Any]], *, rounds: int, distinct: dict[int, int], rates: floors.Rates | None
) -> list[records.Record]:
    """Speed by table size and contestant, embank's against every peer; its wait for the loader; CPU of the process."""
    found = []
    for entry in summary:
        case = {"table rows": entry["rows"], "contestant": entry["name"]}
        ratio = f"{entry['name']}_over_this"
        peers = [
            records.peer(other["name"], _spread(other, ratio))
            for other in summary
            if other["rows"] == entry["rows"] and ratio in other
        ]
        own = [] if rates is None else works(entry["name"], distinct[entry["rows"]], rates)
        speeds = records.ranged(_spread(entry, "samples_per_s"), rounds=rounds)
        fields = {"case": case, "better": "higher", "peers": peers, "works": own}
        found.append(records.record("speed", "samples/s", **fields, **speeds))
        for name, key, unit in (
            ("CPU of the process, start-up included", "process_cpu_s", "s"),
            ("wait for the loader, share", "loader_share", ""),
        ):
            if key in entry:
                figures = records.ranged(_spread(entry, key), rounds=rounds)
                found.append(records.record(name, unit, case=case, better="lower", **figures))
    return found


def _spread(entry: dict[str, Any], name: str) -> dict[str, float]:
    return {"median": entry[name], "min": entry[f"{name}_min"], "max": entry[f"{name}_max"]}


TITLE = "DLRM training speed"
ABOUT = (
    "embank train, with its loader, against a TorchRec loop and FuxiCTR's DLRM, whose batches lie ready in memory but "
    "for own-loader: 13 + 26 inputs, dim 16, batch 4,096. Compare what is at equal settings: embank to torchrec, "
    "embank-compiled to torchrec-compiled."
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1_000_000, 10_000_000], help="rows of all tables together"
    )
    parser.add_argument("--contestants", nargs="+", choices=[*VARIANTS, *PEERS], default=CONTESTANTS)
    parser.add_argument(
        "--previous", help="the Python of an installation of another version, for the contestant `previous`"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--fuxictr-steps", type=int, default=30, help="its steps take seconds at 10 M rows")
    parser.add_argument("--warmup", type=int, default=5, help="steps that do not count, for the peers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/peers/dlrm_speed"), help="data, log and scratch")
    parser.add_argument("--name", default="dlrm_speed", help="of the result file")
    records.argument(parser)
    parser.add_argument("--embank-set", action="append", default=[], metavar="KEY=VALUE", help="passed to embank train")
    args = parser.parse_args()
    if (PREVIOUS in args.contestants) != (args.previous is not None):
        parser.error("the contestant `previous` and the option --previous need each other")
    return args


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    if "fuxictr" in args.contestants:
        fuxictr_env.ensure()
    run = records.begin(settings=records.settings_of(args))
    measured = measure(args)
    distinct = {rows: distinct_rows(ensure_data(args, rows)) for rows in args.rows}
    summary, rates = summarize(measured, args), floors.rates(args.threads)
    run.records = recorded(summary, rounds=args.repeats, distinct=distinct, rates=rates)
    run.detail = {"distinct rows of a batch": distinct, "runs": measured}
    print(f"written: {records.save(args.name, run, title=TITLE, about=ABOUT, out=args.out)}")


if __name__ == "__main__":
    main()
