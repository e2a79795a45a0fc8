"""The main job on real data: fetch MovieLens-100K, prepare it, train plain and compressed tables, compare them.

Run: make demo (or python examples/demo.py [FOLDER]). Leaves everything under demo/: the data, and a sweep with one run
directory per configuration, leaderboard.csv, leaderboard.md and pareto.png. Running it again reuses what is complete.
"""

import sys
from pathlib import Path

from embank.pipelines.cli import show
from embank.pipelines.cli.messages import messages
from embank.pipelines.config.file import read_config
from embank.pipelines.data.prepare.prepare import prepare_from_cli
from embank.pipelines.data.sources.catalog import get_dataset
from embank.pipelines.sweep.plan import Plan
from embank.pipelines.sweep.sweep import Sweep

CONFIG = Path(__file__).with_name("movielens.yaml")


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


def main() -> None:
    """Everything, with a table and a plot at the end."""
    show.quiet_libraries()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    plan = Plan(
        config=read_config(CONFIG, overrides=[f"data.path={prepare(folder)}"]),
        models=["deepfm"],
        methods=["full", "hash", "mgqe"],
        budgets=[0.25, 0.1],
        seeds=[0, 1, 2],
        grid={},
    )
    show.out.print("\nTraining plain, hashed and quantised tables, three seeds each ...")
    sweep = Sweep(plan, folder / "sweep", say=show.line)
    rows = sweep.run(resume=sweep.folder.record.is_file())
    show.out.print("\n[bold]DeepFM on MovieLens-100K, test split, mean ± deviation over three seeds[/bold]")
    show.leaderboard(rows, sweep.folder)
    sweep.refuse_failures(rows)


if __name__ == "__main__":
    with messages(debug="--debug" in sys.argv):
        main()
