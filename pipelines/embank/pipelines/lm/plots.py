"""Learning curves of a language model as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from embank.pipelines.runs.plots import COLORS, style


def plot_lm_curves(records: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Draws bits per byte on validation over steps, and the test figure as a line.

    Args:
        records: lines of metrics.jsonl.
        path: the PNG.
        title: above it.
    """
    figure, axes = plt.subplots(figsize=(6, 4))
    valid = [r for r in records if r["split"] == "valid"]
    axes.plot(
        [r["step"] for r in valid], [r["bits_per_byte"] for r in valid], marker="o", color=COLORS[0], label="validation"
    )
    for record in records:
        if record["split"] == "test":
            axes.axhline(record["bits_per_byte"], linestyle=":", color=COLORS[1], label="test, best checkpoint")
    style(axes)
    axes.set(xlabel="step", ylabel="bits per byte", title=title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
