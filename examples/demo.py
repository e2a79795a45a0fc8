"""The main job on real data: fetch MovieLens-100K, prepare it, train plain and compressed tables, compare them.

Run: make demo (or python examples/demo.py [FOLDER]). Leaves everything under demo/: data, one run directory per
configuration, results.json, and auc_against_bytes.png. Running it again reuses what is complete.
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

from embank.pipelines.cli import show
from embank.pipelines.cli.main import messages
from embank.pipelines.data.catalog import get_dataset
from embank.pipelines.data.prepare import prepare_from_cli
from embank.pipelines.training.config import load_config
from embank.pipelines.training.plots import plot_auc_against_bytes
from embank.pipelines.training.trainer import Trainer

CONFIG = Path(__file__).with_name("movielens.yaml")
VARIANTS = [("full", None), ("hash", 0.5), ("hash", 0.25), ("hash", 0.1)]
SEEDS = [0, 1, 2]


def prepare(folder: Path) -> Path:
    """MovieLens-100K as training data."""
    raw, data = folder / "raw", folder / "data" / "movielens-100k"
    if not raw.is_dir():
        show.out.print("Fetching MovieLens-100K (2 MB) ...")
        get_dataset("movielens-100k", raw, source=None)
    if not data.is_dir():
        show.out.print("Preparing it: vocabularies fitted on the training part, ids ranked by frequency ...")
        data.parent.mkdir(parents=True, exist_ok=True)
        files = [raw / f"ml-100k.{kind}" for kind in ("inter", "item", "user")]
        show.prepared(data, prepare_from_cli("movielens", files, data, None, False, show.NoProgress()))
    return data


def train(folder: Path, data: Path) -> list[dict]:
    """One run per method, budget and seed."""
    results = []
    for method, budget in VARIANTS:
        for seed in SEEDS:
            name = f"{method}-{budget or 1}-seed{seed}"
            settings = [
                f"data.path={data}",
                f"tables.method={method}",
                f"tables.budget={budget or 'null'}",
                f"train.seed={seed}",
            ]
            config = load_config(CONFIG, overrides=settings)
            run = folder / "runs" / name
            show.out.print(f"\n[bold]{name}[/bold]")
            with show.training() as reporter:
                results.append(Trainer(config, run, reporter=reporter).train(resume=(run / "config.yaml").is_file()))
    return results


def summarise(results: list[dict]) -> list[list[str]]:
    """One line per method and budget, mean and standard deviation over seeds."""
    rows = []
    for method, budget in VARIANTS:
        same = [r for r in results if (r["method"], r["budget"]) == (method, budget)]
        auc = [r["auc"] for r in same]
        rows.append(
            [
                method,
                str(budget or 1),
                f"{mean(auc):.4f} ± {stdev(auc):.4f}",
                f"{mean(r['logloss'] for r in same):.4f}",
                f"{same[0]['serving_bytes']:,}",
                f"{same[0]['serving_ratio']:.3f}",
                f"{mean(r['samples_per_s'] for r in same):,.0f}",
            ]
        )
    return rows


def main() -> None:
    """Everything, with a table and a plot at the end."""
    show.quiet_libraries()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    results = train(folder, prepare(folder))
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    plot = folder / "auc_against_bytes.png"
    plot_auc_against_bytes(results, plot, title="DeepFM on MovieLens-100K, 3 seeds")
    show.out.print(f"\n[bold]DeepFM on MovieLens-100K, test split, mean ± deviation over seeds {SEEDS}[/bold]")
    columns = ["tables", "budget", "AUC", "log loss", "serving bytes", "of plain", "samples/s"]
    show.table(columns, summarise(results))
    show.out.print(f"AUC against bytes: {plot}\nlearning curves:   {folder}/runs/*/plots/learning_curves.png")


if __name__ == "__main__":
    with messages(debug="--debug" in sys.argv):
        main()
