"""One table for all features against one per feature, both hashed, at equal bytes: test AUC over seeds.

Run: python benchmarks/tasks/unified.py NAME PREPARED [--budgets 1 0.5 0.1] [--seeds 0 1 2 3 4] [--epochs 10]
The arms: `hash` (a table per feature, rows in proportion to its values), `unified` with one lookup of the whole dim, and with two of
half of it. Tables of fewer than 100 ids are plain in all of them, so that no arm suffers from features crushed to a row. A seed decides
initial values and the order of rows; differences are taken seed by seed. The best epoch on validation is chosen, the test split
is read once a run. Nothing is tuned. Writes benchmarks/results/unified_NAME.json and .md.

Source: Coleman et al., NeurIPS 2023, section 5 (per-feature and multiplexed hashing with DCN-V2 at three budgets).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from embank.pipelines.data.schema import Schema
from embank.pipelines.training.config import parse_config
from embank.pipelines.training.trainer import Trainer

RESULTS = Path(__file__).parent.parent / "results"
ARMS = {
    "hash": {"method": "hash"},
    "unified, 1 lookup": {"method": "unified", "lookups": 1},
    "unified, 2 lookups": {"method": "unified", "lookups": 2},
}


def run(args: argparse.Namespace, arm: str, budget: float, seed: int, folder: Path) -> dict:
    """One training run."""
    config = {
        "data": {"path": str(args.data), "batch_size": args.batch_size},
        "model": {"name": "dcn_v2", "hidden_units": [192], "num_cross_layers": 1},
        "tables": {"dim": 16, "budget": budget, **ARMS[arm]},
        "train": {"epochs": args.epochs, "seed": seed, "table_lr": args.table_lr, "num_threads": 1},
    }
    result = Trainer(parse_config(config), folder / f"{arm}-{budget}-{seed}").train()
    names = ("auc", "logloss", "valid_auc", "serving_bytes", "best_step", "num_steps")
    return {"arm": arm, "budget": budget, "seed": seed, **{name: result[name] for name in names}}


def markdown(report: dict) -> str:
    """A line per budget and arm."""
    lines = [
        f"# {report['name']}: one table for all features, and one for each",
        "",
        f"`{report['command']}`; {report['rows']}",
        "",
        "| budget | arm | test AUC, mean ± sd | test log loss | serving bytes | minus hash, mean ± sd of the seeds' differences |",
        "|---|---|---|---|---|---|",
    ]
    runs = report["runs"]
    base = {(r["budget"], r["seed"]): r["auc"] for r in runs if r["arm"] == "hash"}
    for budget, arm in dict.fromkeys((r["budget"], r["arm"]) for r in runs):
        same = [r for r in runs if (r["budget"], r["arm"]) == (budget, arm)]
        auc, loss = [r["auc"] for r in same], mean(r["logloss"] for r in same)
        differences = [r["auc"] - base[budget, r["seed"]] for r in same]
        against = "" if arm == "hash" else f"{mean(differences):+.4f} ± {stdev(differences):.4f}"
        lines.append(
            f"| {budget:g} | {arm} | {mean(auc):.4f} ± {stdev(auc):.4f} | {loss:.4f} | {same[0]['serving_bytes']:,} | {against} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """All arms, budgets and seeds, then the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("data", type=Path)
    parser.add_argument("--budgets", nargs="+", type=float, default=[1.0, 0.5, 0.1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--table-lr", type=float, default=0.05)
    args = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for budget in args.budgets:
            for seed in args.seeds:
                for arm in ARMS:
                    runs.append(run(args, arm, budget, seed, Path(folder)))
                    print(runs[-1], flush=True)
    schema = Schema.load(args.data)
    rows = ", ".join(f"{split.name} {split.num_rows:,} rows" for split in schema.splits)
    command = " ".join(["python", "benchmarks/tasks/unified.py", args.name, "PREPARED", *sys.argv[3:]])
    report = {"name": args.name, "command": command, "rows": rows, "fingerprint": schema.fingerprint, "runs": runs}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"unified_{args.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / f"unified_{args.name}.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
