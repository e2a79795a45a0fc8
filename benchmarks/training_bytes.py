"""How much memory a table takes in training, by method, as a multiple of the plain table's.

Run: python benchmarks/training_bytes.py [--rows 100000] [--dim 16] [--budget 0.1]
One table with counts that fall as 1 / rank, row-wise Adagrad on FBGEMM. Methods whose floor is above the budget, or
that take none, have their own size. Bytes are those of `nbytes("training")`: rows with padding and optimizer state, and
what FBGEMM's modules hold; of a method with several stages each stage is measured, without training it. Exact: the same
on every machine. Writes benchmarks/results/training_bytes.{json,md}.
"""

import argparse
import json
from pathlib import Path

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

RESULTS = Path(__file__).with_name("results")


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


def markdown(report: dict) -> str:
    """A line a method, the least memory first."""
    settings, plain = report["settings"], report["plain_bytes"]
    lines = [
        "# Training memory by method",
        "",
        f"`python benchmarks/training_bytes.py --rows {settings['rows']} --dim {settings['dim']} "
        f"--budget {settings['budget']:g}`",
        "",
        f"One table of {settings['rows']:,} ids x {settings['dim']}; the plain one takes {plain:,} bytes with its "
        "optimizer state.",
        "",
        "| method | budget | largest stage, of plain | stages |",
        "|---|---|---|---|",
    ]
    for entry in sorted(report["methods"], key=lambda one: max(one["stages"].values())):
        told = ", ".join(f"{stage} {held / plain:.2f}" for stage, held in entry["stages"].items())
        several = told if len(entry["stages"]) > 1 else ""
        budget = "its own" if entry["budget"] is None else f"{entry['budget']:g}"
        lines.append(f"| `{entry['method']}` | {budget} | {max(entry['stages'].values()) / plain:.2f} | {several} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures all methods, and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--methods", nargs="+", default=sorted(registered_methods()))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    report = {
        "settings": {"rows": args.rows, "dim": args.dim, "budget": args.budget},
        "plain_bytes": collection("full", args, budget=None).nbytes("training"),
        "methods": [stages_of(method, args) for method in args.methods],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "training_bytes.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "training_bytes.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
