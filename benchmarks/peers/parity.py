"""Does embank reach FuxiCTR's test AUC? Same split, ids, dims, layer sizes and grid for both.

    python benchmarks/peers/parity.py --task movielens-100k --data runs/data/movielens
    python benchmarks/peers/parity.py --task anime --data runs/data/anime --threads 2

For each model and side: one seed over the grid, the point with the best validation AUC, then the other seeds at that
point. With `--peers-from REPORT.json` FuxiCTR's studies are those of an earlier report on the same data. Test AUC is
reported for the chosen point alone. Every finished run is a line in `--work`/runs.jsonl, and a run
whose line is there is not repeated: stop and start at will. Writes benchmarks/results/parity_<task>.json.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import fuxictr_env
import prepared
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import machine
import records

HERE = Path(__file__).resolve().parent
SIDES = ("fuxictr", "embank")
MODELS = ("deepfm", "dcn_v2", "dlrm")
DIM = 16
HIDDEN = [256, 128, 64]
BOTTOM = [256, 64]
CROSS_LAYERS = 3
EPOCHS = 50
PATIENCE = 2  # epochs without a better validation AUC


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set's grid, which is the product of the three lists, and its batch size."""

    lr: tuple[float, ...]
    l2: tuple[float, ...]
    dropout: tuple[float, ...]
    batch_size: int
    pooling: str = "mean"  # of multi-valued features
    embank: dict = field(default_factory=lambda: PLATEAU)
    fuxictr: tuple[str, ...] = ("plateau",)  # of FUXICTR_SCHEDULES


# On a small set validation wavers from epoch to epoch, and stopping at the first plateau ends some runs far too early.
# There embank takes the best of 20 epochs under a cosine, by validation as well, and FuxiCTR, which has no cosine, the
# better of its plateau rule and the best of 20 epochs at a constant rate: each is tuned and run with all seeds, the
# mean validation AUC decides.
PLATEAU = {"epochs": EPOCHS, "patience": PATIENCE, "decay": "plateau"}
COSINE = {"epochs": 20, "patience": None, "decay": "cosine"}
FUXICTR_SCHEDULES = {
    "plateau": ["--epochs", str(EPOCHS), "--patience", str(PATIENCE)],
    "constant": ["--epochs", "20", "--patience", "20", "--keep-lr"],
}

TASKS = {
    "movielens-100k": Task(
        lr=(1e-3,),
        l2=(1e-3, 3e-3, 1e-2),
        dropout=(0.0, 0.2),
        batch_size=1024,
        embank=COSINE,
        fuxictr=("plateau", "constant"),
    ),
    "anime": Task(lr=(1e-3,), l2=(1e-3, 3e-3, 1e-2), dropout=(0.0,), batch_size=2048),
    "criteo-sample": Task(lr=(1e-3,), l2=(1e-2, 3e-2, 1e-1), dropout=(0.0, 0.2), batch_size=1024),
    "flights": Task(lr=(1e-3,), l2=(1e-3, 1e-2, 1e-1), dropout=(0.0, 0.2), batch_size=2048),
}

# FuxiCTR trains everything with Adam and divides its rate by 10 on plateaus. embank trains rows with its default,
# row-wise Adagrad in FBGEMM, whose rate is on another scale; it is the same for all models, data sets and points of the
# grid.
EMBANK_TRAIN = {"table_optimizer": "rowwise_adagrad", "table_lr": 0.05}
EMBANK_ROWS = {"backend": "fbgemm"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the grid; `l2` is the weight of half the tables' squared norm in the loss."""

    lr: float
    l2: float
    dropout: float


@dataclass(frozen=True, kw_only=True)
class Run:
    side: str
    model: str
    point: Point
    seed: int
    schedule: str | None = None  # FuxiCTR's


class Runner:
    """Runs what is not in the log yet."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.task = args, TASKS[args.task]
        schema = prepared.schema(args.data)
        self.num_numeric = len(schema["numeric"])
        self.num_rows = next(split["num_rows"] for split in schema["splits"] if split["name"] == "train")
        self.fingerprint = schema["fingerprint"]
        self.log = args.work / "runs.jsonl"
        args.work.mkdir(parents=True, exist_ok=True)

    def finished(self) -> dict[str, dict]:
        """The log, read anew: another process may work on another part of the same comparison."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return {line["key"]: line for line in map(json.loads, lines)}

    def __call__(self, run: Run) -> dict:
        identity = {name: value for name, value in asdict(run).items() if name != "schedule"}  # it is in the settings
        key = json.dumps([identity, self.fingerprint, self.settings(run)], sort_keys=True)
        done = self.finished()
        if key in done:
            return done[key]
        started = time.perf_counter()
        scores = run_fuxictr(run, self) if run.side == "fuxictr" else run_embank(run, self)
        line = {"key": key, **asdict(run), **scores, "wall_s": time.perf_counter() - started}
        line["commit"] = machine.commit()
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{run.side} {run.model} {asdict(run.point)} seed {run.seed}: " + brief(line), flush=True)
        return line

    def settings(self, run: Run) -> dict:
        """Everything besides the run that decides its figures; a change of it makes the log's lines stale."""
        return embank_config(run, self) if run.side == "embank" else {"arguments": fuxictr_arguments(run, self)}


def brief(line: dict) -> str:
    return (
        f"valid {line['valid_auc']:.4f}, test {line['test_auc']:.4f}, best epoch {line['best_epoch']}, "
        f"{line['wall_s']:.0f} s"
    )


def fuxictr_arguments(run: Run, runner: Runner) -> list[str]:
    task = runner.task
    options = {
        "--model": run.model,
        "--dim": DIM,
        "--pooling": task.pooling,
        "--cross-layers": CROSS_LAYERS,
        "--learning-rate": run.point.lr,
        "--embedding-regularizer": run.point.l2,
        "--dropout": run.point.dropout,
        "--batch-size": task.batch_size,
    }
    flat = [str(part) for pair in options.items() for part in pair]
    flat += [*FUXICTR_SCHEDULES[run.schedule], "--seed", str(run.seed)]
    return [*flat, "--hidden", *map(str, HIDDEN), "--bottom", *map(str, BOTTOM)]


def run_fuxictr(run: Run, runner: Runner) -> dict:
    where = ["--data", runner.args.data, "--cache", runner.args.work / "fuxictr_data"]
    command = [fuxictr_env.python(), HERE / "fuxictr_run.py", *where, "--threads", runner.args.threads]
    result = json.loads(output_of([*command, *fuxictr_arguments(run, runner)]))
    names = ("valid_auc", "test_auc", "test_logloss", "best_epoch", "samples_per_s")
    return {name: result[name] for name in names} | {"epochs": len(result["epochs"])}


def embank_config(run: Run, runner: Runner) -> dict:
    task, point = runner.task, run.point
    model = {"name": run.model, "dropout": point.dropout}
    if run.model == "dlrm":
        model |= {"bottom": BOTTOM, "top": HIDDEN}
    else:
        model |= {"hidden_units": HIDDEN}
    if run.model == "dcn_v2":
        model |= {"num_cross_layers": CROSS_LAYERS, "embed_numeric": runner.num_numeric > 0}
    train = {**task.embank, "lr": point.lr, "embedding_l2": point.l2}
    config = {
        "data": {"batch_size": task.batch_size},
        "model": model,
        "tables": {"dim": DIM, "pooling": task.pooling},
        "train": {**train, "seed": run.seed, **EMBANK_TRAIN},
        "rows": EMBANK_ROWS,
    }
    return config | {"set": runner.args.embank_set}


def run_embank(run: Run, runner: Runner) -> dict:
    config = embank_config(run, runner)
    sets = [part for setting in config.pop("set") for part in ("--set", setting)]
    config["data"]["path"] = str(runner.args.data.resolve())
    config["train"]["num_threads"] = runner.args.threads
    with tempfile.TemporaryDirectory(dir=runner.args.work, prefix="embank-") as scratch:
        path, folder = Path(scratch) / "config.yaml", Path(scratch) / "run"
        path.write_text(yaml.safe_dump(config))
        output_of([sys.executable, "-m", "embank", "train", path, "--out", folder, *sets])
        result = json.loads((folder / "result.json").read_text())
    steps_per_epoch = -(-runner.num_rows // runner.task.batch_size)
    return {
        "valid_auc": result["valid_auc"],
        "test_auc": result["auc"],
        "test_logloss": result["logloss"],
        "best_epoch": round(result["best_step"] / steps_per_epoch, 2),
        "samples_per_s": result["samples_per_s"],
        "epochs": round(result["num_steps"] / steps_per_epoch, 2),
    }


def output_of(command: list) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\nfailed with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def grid(task: Task) -> Iterator[Point]:
    for lr, l2, dropout in itertools.product(task.lr, task.l2, task.dropout):
        yield Point(lr=lr, l2=l2, dropout=dropout)


def study(runner: Runner, side: str, model: str, seeds: list[int], schedule: str | None = None) -> dict:
    """Selection with the first seed on validation, then all seeds at the selected point."""
    base = Run(side=side, model=model, point=Point(lr=0, l2=0, dropout=0), seed=seeds[0], schedule=schedule)
    tried = [(point, runner(replace(base, point=point))) for point in grid(runner.task)]
    best, _ = max(tried, key=lambda pair: pair[1]["valid_auc"])
    runs = [runner(replace(base, point=best, seed=seed)) for seed in seeds]
    tests = [run["test_auc"] for run in runs]
    return {
        "side": side,
        "model": model,
        "schedule": schedule or runner.task.embank["decay"],
        "selected": asdict(best),
        "valid_auc": statistics.mean(run["valid_auc"] for run in runs),
        "test_auc": tests,
        "test_auc_mean": statistics.mean(tests),
        "test_auc_sd": statistics.stdev(tests) if len(tests) > 1 else None,
        "test_logloss_mean": statistics.mean(run["test_logloss"] for run in runs),
        "samples_per_s": statistics.median(run["samples_per_s"] for run in runs),
        "wall_s": statistics.median(run["wall_s"] for run in runs),
        "grid": [{**asdict(point), "valid_auc": line["valid_auc"], "epochs": line["epochs"]} for point, line in tried],
    }


def study_all(runner: Runner, side: str, model: str, seeds: list[int]) -> list[dict]:
    """One study a schedule; `compare` takes the one with the best validation AUC."""
    schedules = runner.task.fuxictr if side == "fuxictr" else (None,)
    return [study(runner, side, model, seeds, schedule) for schedule in schedules]


def earlier_studies(report: Path, runner: Runner, args: argparse.Namespace) -> list[dict]:
    """FuxiCTR's studies of an earlier report, if it compared on the same rows, seeds and grid."""
    earlier = records.load(report).runs[-1].detail
    now = {"task": args.task, "seeds": args.seeds, "rows": runner.num_rows, **plain(asdict(runner.task))}
    then = {
        "task": earlier["task"],
        "seeds": earlier["seeds"],
        "rows": earlier["data"]["train_rows"],
        **earlier["grid"],
    }
    differing = [key for key in then if key != "embank" and then[key] != now[key]]
    if differing:
        raise SystemExit(
            f"{report} compared something else: its {differing[0]} is {then[differing[0]]}, now {now[differing[0]]}"
        )
    schedule = {
        "schedule": earlier["grid"]["embank"]["decay"]
    }  # where FuxiCTR had one only, reports used not to name it
    return [
        schedule | entry for entry in earlier["studies"] if entry["side"] == "fuxictr" and entry["model"] in args.models
    ]


def plain(value: object) -> object:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def compare(studies: list[dict]) -> list[dict]:
    """embank minus FuxiCTR, seed by seed (both sides score the same test rows)."""
    by_model: dict[str, dict[str, dict]] = {}
    for entry in sorted(studies, key=lambda entry: entry["valid_auc"]):
        by_model.setdefault(entry["model"], {})[entry["side"]] = entry
    out = []
    for model, sides in by_model.items():
        if len(sides) == len(SIDES):
            pairs = zip(sides["embank"]["test_auc"], sides["fuxictr"]["test_auc"], strict=True)
            differences = [ours - theirs for ours, theirs in pairs]
            spread = statistics.stdev(differences) if len(differences) > 1 else None
            mean = statistics.mean(differences)
            peer = sides["fuxictr"]["schedule"]
            out.append({"model": model, "peer": peer, "differences": differences, "mean": mean, "sd": spread})
    return out


def recorded(report: dict) -> list[records.Record]:
    """Test AUC at the selected point of each model, side and schedule; embank's minus FuxiCTR's, seed by seed."""
    found, rounds = [], len(report["seeds"])
    against = {entry["model"]: entry for entry in report["differences"]}
    for entry in report["studies"]:
        chosen, other = entry["selected"], against.get(entry["model"])
        case = {
            "model": entry["model"],
            "side": entry["side"],
            "schedule": entry["schedule"],
            "chosen": f"lr {chosen['lr']:g}, L2 {chosen['l2']:g}, dropout {chosen['dropout']:g}",
        }
        peers = []
        if entry["side"] == "embank" and other is not None:
            figures = records.deviating(other["mean"], other["sd"], rounds=rounds)
            peers.append(records.peer(f"FuxiCTR ({other['peer']})", figures, kind="difference"))
        auc = records.deviating(entry["test_auc_mean"], entry["test_auc_sd"], rounds=rounds)
        fields = {"case": case, "rounds": rounds}
        found += [
            records.record("test AUC", "AUC", case=case, better="higher", peers=peers, **auc),
            records.record("valid AUC", "AUC", better="higher", value=entry["valid_auc"], statistic="mean", **fields),
            records.record(
                "test log loss",
                "log loss",
                better="lower",
                value=entry["test_logloss_mean"],
                statistic="mean",
                **fields,
            ),
            records.record("speed", "samples/s", better="higher", value=entry["samples_per_s"], **fields),
            records.record("a run", "s", better="lower", value=entry["wall_s"], **fields),
        ]
    return found


def about(report: dict) -> str:
    """For the page."""
    return (
        f"Test AUC of embank and FuxiCTR, both tuned over the same grid of {report['grid_points']} points on "
        f"validation with the first of {len(report['seeds'])} seeds; same split, ids, dims and layers. Speeds are "
        "those of whole trainings, and say nothing where other work ran."
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(TASKS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="a folder of embank prepare")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first one selects")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="log and scratch; default runs/peers/parity_<task>")
    parser.add_argument("--embank-set", action="append", default=[], metavar="KEY=VALUE", help="passed to embank train")
    parser.add_argument("--peers-from", type=Path, metavar="REPORT", help="an earlier report, for FuxiCTR's figures")
    records.argument(parser)
    args = parser.parse_args()
    if args.peers_from:
        args.sides = ["embank"]
    args.work = args.work or Path(f"runs/peers/parity_{args.task}")
    return args


def main() -> None:
    args = arguments()
    if "fuxictr" in args.sides:
        fuxictr_env.ensure()
    run = records.begin(settings={"seeds": args.seeds, "threads": args.threads})
    runner = Runner(args)
    studies = [
        entry for model in args.models for side in args.sides for entry in study_all(runner, side, model, args.seeds)
    ]
    if args.peers_from:
        studies = sorted(
            [*earlier_studies(args.peers_from, runner, args), *studies], key=lambda e: MODELS.index(e["model"])
        )
    report = {
        "task": args.task,
        "threads": args.threads,
        "data": {"train_rows": runner.num_rows, "fingerprint": runner.fingerprint},
        "settings": {
            "dim": DIM,
            "hidden": HIDDEN,
            "bottom": BOTTOM,
            "cross_layers": CROSS_LAYERS,
            "patience": PATIENCE,
        },
        "embank": {"train": EMBANK_TRAIN | runner.task.embank, "rows": EMBANK_ROWS, "set": args.embank_set},
        "grid": asdict(runner.task),
        "grid_points": len(list(grid(runner.task))),
        "seeds": args.seeds,
        "studies": studies,
        "differences": compare(studies),
    }
    run.records, run.detail = recorded(report), plain(report)
    title = f"embank and FuxiCTR on {args.task}"
    print(f"written: {records.save(f'parity_{args.task}', run, title=title, about=about(report), out=args.out)}")


if __name__ == "__main__":
    main()
