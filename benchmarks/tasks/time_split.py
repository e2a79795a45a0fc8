"""Models on data that is split by time: test AUC over seeds, and paired differences from logistic regression.

Run: python benchmarks/tasks/time_split.py NAME PREPARED [--epochs 2] [--models lr deepfm dcn_v2 dlrm] [--seeds 0 1 2]
A seed decides initial values and the order of rows; all models see the same split, so differences are taken seed by
seed. The best evaluation on validation is chosen (four an epoch), the test split is read once a run. Writes
benchmarks/results/time_split_NAME.json.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from embank.pipelines import Schema, Trainer, parse_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import records

HYPER = {
    "lr": {},
    "deepfm": {"hidden_units": [256, 128, 64]},
    "dcn_v2": {"hidden_units": [256, 128, 64], "num_cross_layers": 3},
    "dlrm": {"bottom": [256, 64], "top": [256, 128, 64]},
}


def run(args: argparse.Namespace, model: str, seed: int, folder: Path) -> dict:
    """One training run."""
    rows = Schema.load(args.data).split("train").num_rows
    config = {
        "data": {"path": str(args.data), "batch_size": args.batch_size},
        "model": {"name": model, **HYPER[model]},
        "tables": {"dim": 16},
        "train": {
            "epochs": args.epochs,
            "seed": seed,
            "table_lr": args.table_lr,
            "embedding_l2": args.l2,
            "eval_every": max(1, rows // args.batch_size // 4),
            "num_threads": 1,
        },
    }
    result = Trainer(parse_config(config), folder / f"{model}-{seed}").train()
    names = ("auc", "logloss", "valid_auc", "best_step", "num_steps", "samples_per_s")
    return {"model": model, "seed": seed, **{name: result[name] for name in names}}


def recorded(runs: list[dict[str, Any]]) -> list[records.Record]:
    """AUC and log loss of each model over seeds; minus logistic regression, seed by seed."""
    found = []
    base = {r["seed"]: r["auc"] for r in runs if r["model"] == "lr"}
    for model in dict.fromkeys(r["model"] for r in runs):
        same = [r for r in runs if r["model"] == model]
        peers = []
        if model != "lr" and base:
            less = records.figures([r["auc"] - base[r["seed"]] for r in same], statistic="mean")
            peers.append(records.peer("lr", less, kind="difference"))
        auc = records.figures([r["auc"] for r in same], statistic="mean")
        loss = records.figures([r["logloss"] for r in same], statistic="mean")
        case = {"model": model}
        found.append(records.record("test AUC", "AUC", case=case, better="higher", peers=peers, **auc))
        found.append(records.record("test log loss", "log loss", case=case, better="lower", **loss))
    return found


def about(rows: str) -> str:
    """For the page."""
    return f"{rows}. Mean ± sd over seeds, differences from logistic regression seed by seed."


def main() -> None:
    """All models and seeds, then the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--table-lr", type=float, default=0.02)
    parser.add_argument("--l2", type=float, default=0.0)
    parser.add_argument("--models", nargs="+", default=list(HYPER), choices=HYPER)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    records.argument(parser)
    args = parser.parse_args()
    measurement = records.begin(settings=records.settings_of(args))
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            for seed in args.seeds:
                runs.append(run(args, model, seed, Path(folder)))
                print(runs[-1], flush=True)
    schema = Schema.load(args.data)
    rows = ", ".join(f"{split.name} {split.num_rows:,} rows" for split in schema.splits)
    measurement.records = recorded(runs)
    measurement.detail = {"rows": rows, "fingerprint": schema.fingerprint, "runs": runs}
    name, title = f"time_split_{args.name}", f"Models on {args.name}, split by time"
    print(f"written: {records.save(name, measurement, title=title, about=about(rows), out=args.out)}")


if __name__ == "__main__":
    main()
