"""What each method costs in AUC, over all sweeps of docs/results: one table of what their leaderboards say.

Run: python benchmarks/results_summary.py
Reads docs/results/*/leaderboard.csv and writes docs/results/summary.md. A cell is the test AUC of a method at a budget
minus that of the plain table in the same sweep, mean over its seeds.
"""

from pathlib import Path

from embank.pipelines.sweep.leaderboard import read_csv

RESULTS = Path(__file__).parents[1] / "docs/results"
COLUMNS = (
    ("movielens-deepfm-codecs", "0.1"),
    ("movielens-deepfm-codecs", "0.01"),
    ("movielens-dcn", "0.05"),
    ("anime-deepfm-codecs", "0.05"),
    ("criteo-dlrm", "0.05"),
    ("criteo-dlrm", "0.01"),
    ("criteo-deepfm-codecs", "0.05"),
    ("criteo-synth", "0.1"),
    ("criteo-synth", "0.01"),
)
"""Sweep and budget of each column of the table."""

HEADS = {
    "movielens-deepfm-codecs": "MovieLens, DeepFM",
    "movielens-dcn": "MovieLens, DCN-V2",
    "anime-deepfm-codecs": "MyAnimeList",
    "criteo-dlrm": "Criteo, DLRM",
    "criteo-deepfm-codecs": "Criteo, DeepFM",
    "criteo-synth": "generated log",
}


def aucs(sweep: str) -> dict[tuple[str, str], float]:
    """Test AUC by method and budget, of complete lines without a codec."""
    rows = read_csv(RESULTS / sweep / "leaderboard.csv")
    return {
        (row.method, "" if row.budget is None else f"{row.budget:g}"): row.auc
        for row in rows
        if row.is_alone and row.auc is not None
    }


def summary() -> str:
    """The page."""
    by_sweep = {sweep: aucs(sweep) for sweep, _ in COLUMNS}
    plain = {
        sweep: next(auc for (method, _), auc in found.items() if method == "full") for sweep, found in by_sweep.items()
    }
    methods = {method for found in by_sweep.values() for method, _ in found if method != "full"}
    costs: dict[str, list[float | None]] = {}
    for method in methods:
        found = [by_sweep[sweep].get((method, budget)) for sweep, budget in COLUMNS]
        costs[method] = [
            None if auc is None else auc - plain[sweep] for auc, (sweep, _) in zip(found, COLUMNS, strict=True)
        ]
    sweeps = [sweep for sweep, _ in COLUMNS]
    heads = [
        HEADS[sweep] if number == sweeps.index(sweep) else "" for number, sweep in enumerate(sweeps)
    ]  # once for all of its budgets
    lines = [
        "# AUC that each method costs",
        "",
        "`python benchmarks/results_summary.py`: test AUC minus that of the plain table in the same sweep, from the",
        "leaderboards next to this page. The method that costs least at 0.1 on MovieLens comes first; a cell is empty",
        "where a method can't be that small. How far to trust a difference: [README.md](README.md).",
        "",
        f"| | {' | '.join(heads)} |",
        f"|---|{'---|' * len(COLUMNS)}",
        f"| budget | {' | '.join(budget for _, budget in COLUMNS)} |",
    ]
    shown = {method: cells for method, cells in costs.items() if any(cell is not None for cell in cells)}
    for method, cells in sorted(shown.items(), key=lambda pair: (-(-1 if pair[1][0] is None else pair[1][0]), pair[0])):
        told = ["" if cell is None else f"{cell:+.3f}".replace("0.", ".", 1) for cell in cells]
        lines.append(f"| `{method}` | {' | '.join(told)} |")
    others = ", ".join(f"`{method}`" for method in sorted(costs) if method not in shown)
    lines += ["", f"Not shown, as they can't be as small as any of these: {others}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (RESULTS / "summary.md").write_text(summary())
