"""What is left of a trained model when its tables are fitted to fewer bytes instead of trained in them.

Run: python benchmarks/fitted.py --data runs/data/movielens-100k --work runs/fitted [--seeds 0] [--budgets 0.5 0.25 0.1]
Trains the plain tables once for each seed, by benchmarks/tasks/movielens_train.yaml with the rates that the leaderboard
found best. Then for each method and budget the tables of that method, sized as a run would size them, are fitted to the
plain ones', and the network is left as it is. AUC is of the test split:

fitted    each id counts as often as it occurs in training; `alike` is the same with all ids counting equally
tuned     fitted, and trained for one more epoch, tables and network, with a fifth of the tables' rate and a third of
          the network's, falling by a cosine (row-wise Adagrad begins anew, so that the same rate would undo the fit)
trained   from scratch in these bytes, three seeds: docs/results/movielens-deepfm/leaderboard.csv

The error is the tables' together, each id counting as often as it occurs: the norm of what differs over the norm of the
plain rows. A second run goes on where the first one stopped. Writes benchmarks/results/fitted.json;
docs/results/fitted.md shows the same as a table, which `table` makes.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import records
import torch

from embank.compression import METHODS
from embank.ctr_models import CTRModel
from embank.pipelines import Trainer, load_config
from embank.pipelines.config.run import Config
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import build, id_counts
from embank.pipelines.runs.evaluate import evaluate
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.open import best_model
from embank.pipelines.sweep.leaderboard import read_csv
from embank.pipelines.train.step import Stepper
from embank.tables import BudgetError, GivenRows, fit_tables
from embank.tables.collections.stages import settle

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "benchmarks/tasks/movielens_train.yaml"
LEADERBOARD = ROOT / "docs/results/movielens-deepfm/leaderboard.csv"
RATES = ["train.lr=0.003", "train.table_lr=0.05"]
TUNING = ["train.lr=0.001", "train.table_lr=0.01"]


def configured(args: argparse.Namespace, *changes: str) -> Config:
    """The task's configuration with changes."""
    return load_config(TASK, overrides=[f"data.path={args.data}", *RATES, *changes])


def plain_model(args: argparse.Namespace, seed: int) -> tuple[CTRModel, float]:
    """The model with plain tables, trained once, and its AUC."""
    config, run = configured(args, f"train.seed={seed}"), RunFolder(args.work / f"full-{seed}")
    if not (run.path / "result.json").exists():
        Trainer(config, run.path).train(resume=run.is_run)
    with best_model(run, schema=Schema.load(args.data), data=args.data) as (model, _):
        return model, evaluate(model, args.data, "test")["auc"]


def fitted_model(args: argparse.Namespace, plain: CTRModel, config: Config, weights: dict | None) -> tuple:
    """A model of the configuration's tables, fitted to a plain one's, with its network; and what became of them."""
    schema = Schema.load(args.data)
    model = build(config, schema, data=args.data, rows_folder=args.work / "rows")
    rows = plain.tables.weights()
    given = {
        spec.name: GivenRows(
            ids=torch.arange(spec.num_embeddings),
            vectors=rows[spec.name],
            weights=None if weights is None else weights[spec.feature_names[0]],
        )
        for spec in model.tables.specs
    }
    tables, report = fit_tables(model.tables, given)
    network = model.network
    network.load_state_dict(plain.network.state_dict())
    settle(tables)
    return CTRModel(tables, network), report


def error_of(plain: CTRModel, model: CTRModel, weights: dict) -> float:
    """All tables together, each id's square times its weight."""
    rows, square, norm = plain.tables.weights(), 0.0, 0.0
    packs = dict(zip([s.name for s in model.tables.specs], model.tables.packs(), strict=True))
    for spec in model.tables.specs:
        own, counts = rows[spec.name], weights[spec.feature_names[0]].double()[:, None]
        found = packs[spec.name].lookup(torch.arange(spec.num_embeddings))
        square += float((counts * (found - own).double().square()).sum())
        norm += float((counts * own.double().square()).sum())
    return (square / norm) ** 0.5


def tune(args: argparse.Namespace, model: CTRModel, config: Config) -> None:
    """One epoch more."""
    loader_of = {"batch_size": config.data.batch_size, "shuffle": True, "seed": config.train.seed}
    num_steps = Loader(args.data, "train", **loader_of).num_batches
    num_rows = Schema.load(args.data).split("train").num_rows
    stepper = Stepper(
        model, config=config.train, batch_size=config.data.batch_size, num_rows=num_rows, num_steps=num_steps
    )
    model.train()
    for step, batch in enumerate(Loader(args.data, "train", address=stepper.address, **loader_of).epoch(0)):
        stepper(batch, step=step)
    settle(model.tables)


def measured(args: argparse.Namespace, plain: CTRModel, *, method: str, budget: float, seed: int) -> dict:
    """One method under one budget."""
    changes = [f"train.seed={seed}", f"tables.method={method}", f"tables.budget={budget}"]
    config = configured(args, *changes)
    counts = id_counts(Schema.load(args.data), data=args.data)
    begun = time.perf_counter()
    model, _ = fitted_model(args, plain, config, counts)
    seconds = time.perf_counter() - begun
    found = {
        "error": error_of(plain, model, counts),
        "fit_seconds": seconds,
        "serving_ratio": model.tables.nbytes("serving") / model.tables.plain_nbytes,
        "fitted": evaluate(model, args.data, "test")["auc"],
        "alike": evaluate(fitted_model(args, plain, config, None)[0], args.data, "test")["auc"],
    }
    tune(args, model, configured(args, *changes, *TUNING))
    return found | {"tuned": evaluate(model, args.data, "test")["auc"]}


def trained_before() -> dict[tuple[str, float], float]:
    """AUC of methods that were trained under budgets, from the leaderboard."""
    rows = [row for row in read_csv(LEADERBOARD) if row.is_alone]
    return {(row.method, row.budget or 1.0): row.auc for row in rows if row.auc is not None}


def recorded(report: dict) -> list[records.Record]:
    """A case a method and budget, the best fitted ones first, by means over seeds; what no budget holds is left out."""
    trained, groups = trained_before(), {}
    for entry in report["entries"]:
        if "error" in entry:
            groups.setdefault((entry["budget"], entry["method"]), []).append(entry)

    def mean(own: list[dict], key: str) -> dict:
        values = [entry[key] for entry in own]
        return {"value": statistics.mean(values), "statistic": "mean", "rounds": len(values)}

    full = list(report["full"].values())
    plain = statistics.mean(full)
    found = [
        records.record("AUC of the plain tables", "AUC", better="higher", **records.figures(full, statistic="mean"))
    ]
    for (budget, method), own in sorted(
        groups.items(), key=lambda item: (-item[0][0], -mean(item[1], "fitted")["value"])
    ):
        case = {"budget": budget, "method": method}
        before = trained.get((method, budget))
        for name, key, unit, better in (
            ("bytes, of plain", "serving_ratio", "", "lower"),
            ("error", "error", "", "lower"),
            ("fitted", "fitted", "AUC", "higher"),
            ("all alike", "alike", "AUC", "higher"),
            ("one epoch", "tuned", "AUC", "higher"),
            ("fit", "fit_seconds", "s", "lower"),
        ):
            figures, peers = mean(own, key), []
            if key == "fitted":
                peers.append(records.peer("plain tables", figures["value"] - plain, kind="difference"))
                if before is not None:
                    less = figures["value"] - before
                    peers.append(records.peer("trained from scratch", less, kind="difference"))
            found.append(records.record(name, unit, case=case, better=better, peers=peers, **figures))
    return found


def table(found: list[records.Record]) -> list[str]:
    """The lines of docs/results/fitted.md: AUC without training, after one epoch, and trained from scratch."""
    trained, cases = trained_before(), {}
    for record in found:
        if record.case:
            cases.setdefault((record.case["budget"], record.case["method"]), {})[record.metric] = record.value
    lines = [
        "| budget | method | bytes | error | fitted | all alike | one epoch | trained | fit, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (budget, method), own in cases.items():
        before = trained.get((method, budget))
        lines.append(
            f"| {budget:g} | {method} | {own['bytes, of plain']:.3f} | {own['error']:.3f} | {own['fitted']:.4f} "
            f"| {own['all alike']:.4f} | {own['one epoch']:.4f} | {'-' if before is None else format(before, '.4f')} "
            f"| {own['fit']:.1f} |"
        )
    return lines


TITLE = "Tables fitted to trained ones"
ABOUT = (
    "MovieLens-100K, DeepFM: plain tables are trained, then those of each method are fitted to them within a budget "
    "and the network is left as it is. Error of the rows, each id counting as often as it occurs; test AUC without "
    "training (each id counting so, or all alike) and after one epoch more."
)


def main() -> None:
    """Measures what has not been measured, then writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.25, 0.1])
    parser.add_argument("--methods", nargs="+", default=sorted(METHODS - {"full"}))
    records.argument(parser)
    args = parser.parse_args()
    run = records.begin(settings=records.settings_of(args))
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    kept = args.work / "entries.jsonl"
    entries = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done, full = {(e["method"], e["budget"], e["seed"]) for e in entries}, {}
    for seed in args.seeds:
        plain, full[seed] = plain_model(args, seed)
        for budget in args.budgets:
            for method in args.methods:
                if (method, budget, seed) in done:
                    continue
                entry = {"method": method, "budget": budget, "seed": seed}
                try:
                    entry |= measured(args, plain, method=method, budget=budget, seed=seed)
                except BudgetError as error:
                    entry["note"] = str(error)
                print(entry, flush=True)
                entries.append(entry)
                with kept.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
    run.records, run.detail = recorded({"full": full, "entries": entries}), {"full": full, "entries": entries}
    records.save("fitted", run, title=TITLE, about=ABOUT, out=args.out)
    print("\n".join(table(run.records)))


if __name__ == "__main__":
    main()
