"""How much memory a table takes in training, by method, as a multiple of the plain table's.

Run: python benchmarks/training_bytes.py [--rows 100000] [--dim 16] [--budget 0.1]
One table with counts that fall as 1 / rank, row-wise Adagrad on FBGEMM. Methods whose floor is above the budget, or
that take none, have their own size. Bytes are those of `nbytes("training")`: rows with padding and optimizer state, and
what FBGEMM's modules hold; of a method with several stages each stage is measured, without training it. Exact: the same
on every machine. Writes benchmarks/results/training_bytes.json.
"""

import argparse
from typing import Any

import records
import torch

from embank.tables import (
    BudgetError,
    RowOptimizer,
    TableCollection,
    TableSpec,
    advance,
    current_stage,
    method_class,
    num_stages,
    registered_methods,
)


def collection(method: str, args: argparse.Namespace, *, budget: float | None) -> TableCollection:
    """A collection of one table."""
    counts_R = (1e6 / torch.arange(1, args.rows + 1, dtype=torch.float64)).long()
    spec = TableSpec(
        name="item",
        num_embeddings=args.rows,
        embedding_dim=args.dim,
        feature_names=["item"],
        method=method,
        budget=budget,
        counts=counts_R,
    )
    return TableCollection([spec], optimizer=RowOptimizer(name="rowwise_adagrad", lr=0.02))


def built(method: str, args: argparse.Namespace) -> tuple[TableCollection, float | None]:
    """The method's table within the budget, or of its own size, and the budget."""
    if method_class(method).traits.allocation.takes_budget:
        try:
            return collection(method, args, budget=args.budget), args.budget
        except BudgetError:
            pass
    return collection(method, args, budget=None), None


def stages_of(method: str, args: argparse.Namespace) -> dict:
    """Training bytes of each stage, and the budget that the table has."""
    tables, budget = built(method, args)
    stages = {}
    for last in range(num_stages(tables)):
        tables = advance(tables) if last else tables
        stages[current_stage(tables).name] = tables.nbytes("training")
    return {"method": method, "budget": budget, "stages": stages}


def recorded(report: dict[str, Any]) -> list[records.Record]:
    """Each method's stages, the least memory first."""
    plain, found = report["plain_bytes"], []
    for entry in sorted(report["methods"], key=lambda one: max(one["stages"].values())):
        for stage, held in entry["stages"].items():
            budget = "its own" if entry["budget"] is None else entry["budget"]
            case = {"method": entry["method"], "budget": budget, "stage": stage}
            exact = {"value": held, "statistic": "exact", "peers": [records.peer("plain tables", held / plain)]}
            found.append(records.record("training memory", "bytes", case=case, better="lower", **exact))
    return found


TITLE = "Training memory by method"
ABOUT = (
    "Bytes of one table in training, by method and stage: rows with padding, optimizer state, and what FBGEMM's "
    "modules hold; row-wise Adagrad, counts that fall as 1 / rank."
)


def main() -> None:
    """Measures all methods, and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--methods", nargs="+", default=sorted(registered_methods()))
    records.argument(parser)
    args = parser.parse_args()
    run = records.begin(settings=records.settings_of(args))
    report = {
        "plain_bytes": collection("full", args, budget=None).nbytes("training"),
        "methods": [stages_of(method, args) for method in args.methods],
    }
    run.records = recorded(report)
    records.save("training_bytes", run, title=TITLE, about=ABOUT, out=args.out)
    for record in run.records:
        print(record.case["method"], record.case["stage"], f"{record.peers[0].value:.2f}")


if __name__ == "__main__":
    main()
