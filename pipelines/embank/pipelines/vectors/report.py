"""The report of compressed vectors: a page, its figures as JSON, and a picture of bytes against recall."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from embank.pipelines.runs.plots import COLORS, style
from embank.pipelines.vectors.neighbours import DEPTHS, METRICS, recall_at
from embank.pipelines.vectors.store import KEY_INDEX, KEYS
from embank.pipelines.vectors.trials import FEW, Trial

if TYPE_CHECKING:
    from embank.pipelines.vectors.compress import Compressed

PAGE, FIGURES, PICTURE = "report.md", "report.json", "tradeoff.png"
_INK = "#24292f"
_SPOKEN = {"cosine": "cosine", "inner_product": "inner product"}


def report_files(made: Compressed) -> dict[str, Callable[[Path], None]]:
    """What is written beside compressed vectors, by file."""
    return {
        PAGE: lambda path: _write_page(made, path),
        FIGURES: lambda path: _write_figures(made, path),
        PICTURE: lambda path: plot_tradeoff(made, path),
    }


def _write_page(made: Compressed, path: Path) -> None:
    path.write_text(page(made, key_nbytes=_key_nbytes(path.parent)), encoding="utf-8")


def _write_figures(made: Compressed, path: Path) -> None:
    values = asdict(made) | {"key_nbytes": _key_nbytes(path.parent)}
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _key_nbytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in (KEYS, KEY_INDEX) if (folder / name).is_file())


def page(made: Compressed, *, key_nbytes: int) -> str:
    """The report as Markdown.

    Args:
        made: what was done.
        key_nbytes: bytes of the files of keys.
    """
    chosen, plain = made.chosen, 4 * made.num_rows * made.dim
    lines = [
        f"# {Path(made.source).name} in {made.codec}",
        "",
        f"{chosen.nbytes:,} bytes for {made.num_rows:,} vectors of {made.dim:,} numbers: {chosen.share:.4f} of the "
        f"{plain:,} that they take in fp32. {_keys_said(made, key_nbytes)}",
        "",
        f"Of all vectors: what is lost of a number is {chosen.lost:.4f} of the numbers' root mean square; the mean "
        f"cosine between a vector and its coded form is {chosen.cosine:.5f}.",
        "",
        f"Of the true neighbours of {made.num_queries:,} test queries, this share is found among the coded vectors:",
        "",
        "| | " + " | ".join(f"recall@{depth}" for depth in DEPTHS) + " |",
        "|---|" + "---|" * len(DEPTHS),
        *(
            f"| by {_SPOKEN[metric]} | " + " | ".join(_cell(chosen.test[metric].get(depth)) for depth in DEPTHS) + " |"
            for metric in METRICS
        ),
        "",
        "## What was tried",
        "",
        _chosen_said(made),
        "",
        *_trial_lines(made),
        "",
        "![bytes against recall](tradeoff.png)",
        "",
        "## How it was measured",
        "",
        f"- Queries are vectors of the file, {made.num_queries:,} for validation and as many others for test, drawn "
        f"with seed {made.seed} (`--seed`). They stay fp32, and look for all vectors but themselves.",
        f"- {_compared_said(made)}",
        "- A vector counts as found if it is as near as the last of the true neighbours, so that of equal vectors any "
        "will do.",
        "- Bytes are those of the coded vectors, codebooks, axes and steps included. Keys are told apart.",
        "- `pq` and `opq` learn from at most 65,536 vectors and 16,777,216 numbers, spread evenly; `pca` and `lowrank` "
        "from at most 262,144 vectors.",
    ]
    lines += [f"- Codec `{codec}` can't hold these vectors: {why}." for codec, why in made.refused.items()]
    return "\n".join(lines) + "\n"


def _keys_said(made: Compressed, key_nbytes: int) -> str:
    if made.key_column is None:
        return "They have no keys, but row numbers."
    return f"Keys are those of column '{made.key_column}', {key_nbytes:,} bytes beside."


def _chosen_said(made: Compressed) -> str:
    if made.budget is None:
        return f"Codec `{made.codec}` was asked for."
    if made.chosen.num_rows <= FEW:
        return (
            f"Codec `{made.codec}` loses least of those that take at most {made.budget:g} of the fp32 bytes: so few "
            "vectors are all among each other's ten nearest, and recall tells nothing."
        )
    return (
        f"Codec `{made.codec}` keeps recall@10 by {_SPOKEN[made.metric]} best on validation queries, of those that "
        f"take at most {made.budget:g} of the fp32 bytes. Recall below is by {_SPOKEN[made.metric]}."
    )


def _compared_said(made: Compressed) -> str:
    tried = made.trials[0].num_rows
    if tried == made.num_rows:
        return "Codecs were tried on all vectors."
    return (
        f"Codecs were tried on {tried:,} of the vectors, drawn with seed {made.seed}; the first table is of "
        f"{made.codec} on all {made.num_rows:,}, among which neighbours are harder to keep."
    )


def _trial_lines(made: Compressed) -> list[str]:
    heads = ("codec", "bytes", "share of fp32", "lost", "cosine", "valid recall@10", "test recall@10", "s")
    rows = []
    for trial in sorted(made.trials, key=lambda trial: -trial.share):
        name = f"**{trial.codec}**" if trial.codec == made.codec else trial.codec
        recall = (_cell(recall_at(part, made.metric)) for part in (trial.valid, trial.test))
        cells = (name, f"{trial.nbytes:,}", f"{trial.share:.4f}", f"{trial.lost:.4f}", f"{trial.cosine:.5f}", *recall)
        rows.append(f"| {' | '.join(cells)} | {trial.seconds:.1f} |")
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *rows]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def plot_tradeoff(made: Compressed, path: Path) -> None:
    """Recall@10 on test queries against the share of the fp32 bytes: a point for each codec, the chosen one marked, the
    budget as a line.

    Args:
        made: what was done.
        path: the PNG.
    """
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    trials = sorted(made.trials, key=lambda trial: trial.share)
    values = [recall_at(trial.test, made.metric) or 0.0 for trial in trials]
    spread = (max(values) - min(values)) or 0.1
    for number, (trial, recall) in enumerate(zip(trials, values, strict=True)):
        is_chosen = trial.codec == made.codec
        axes.plot(
            trial.share,
            recall,
            marker="*" if is_chosen else "o",
            markersize=15 if is_chosen else 6,
            color=COLORS[1 if is_chosen else 0],
            linestyle="none",
        )
        axes.annotate(
            f"{trial.codec} (chosen)" if is_chosen else trial.codec,
            (trial.share, recall),
            xytext=(0, _label_offset(number, trials, values, spread)),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=_INK,
        )
    if made.budget is not None:
        axes.axvline(made.budget, color="#8c959f", linewidth=1, linestyle="--")
        axes.annotate(
            f"budget {made.budget:g}",
            (made.budget, 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8,
            color="#57606a",
        )
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.16)
    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0) if low <= tick <= high]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("share of the fp32 bytes")
    axes.set_ylabel(f"recall@10 by {_SPOKEN[made.metric]}, test queries")
    axes.set_title(f"{Path(made.source).name}: {made.num_rows:,} vectors of {made.dim:,}", fontsize=11, color=_INK)
    style(axes)
    figure.savefig(path, dpi=160, format="png")
    plt.close(figure)


def _label_offset(number: int, trials: list[Trial], values: list[float], spread: float) -> int:
    """Above the point; below it where the point before is near and has its label above."""
    if number and trials[number].share < 1.25 * trials[number - 1].share:
        return -15 if values[number] <= values[number - 1] or spread < 1e-3 else 9
    return 9
