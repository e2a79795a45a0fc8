"""What a search leaves for people: a table of candidates, and pictures."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embank.pipelines.runs.records import RESUME
from embank.pipelines.search.retrain import Entry, best_entry, kendall_tau
from embank.tables.storage.atomic import replace_text

_FIGURES = ("auc", "logloss")


def write_csv(entries: Sequence[Entry], path: Path, *, plain_nbytes: int) -> None:
    """All candidates that were trained, numbers in full; a column for each of their values.

    Args:
        entries: the candidates.
        path: of the file.
        plain_nbytes: of the task's plain tables, what `share` refers to.
    """
    names = list(dict.fromkeys(name for entry in entries for name in entry.candidate))
    fields = ["budget", "name", "trial", "nbytes", "share", "score", "validation", "seeds"]
    fields += [column for figure in _FIGURES for column in (figure, f"{figure}_sd")] + ["is_best", *names]
    best = {id(best_entry([e for e in entries if e.budget == entry.budget])) for entry in entries}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=fields)
    writer.writeheader()
    for entry in entries:
        row: dict[str, Any] = {
            "budget": entry.budget,
            "name": entry.name,
            "trial": entry.trial,
            "nbytes": entry.nbytes,
            "share": entry.nbytes / plain_nbytes,
            "score": entry.score,
            "validation": entry.validation,
            "seeds": " ".join(map(str, entry.results)),
            "is_best": id(entry) in best,
            **entry.candidate,
        }
        for figure in _FIGURES:
            found = entry.average(figure) if entry.results else None
            row |= {figure: found[0], f"{figure}_sd": found[1]} if found else {}
        writer.writerow(row)
    replace_text(path, text.getvalue(), cure=RESUME)


def markdown(
    entries: Sequence[Entry], *, title: str, facts: Sequence[str], plain_nbytes: int, pictures: Sequence[str]
) -> str:
    """The table for people."""
    best = {id(best_entry([e for e in entries if e.budget == entry.budget])) for entry in entries}
    lines = [f"# {title}", "", *(f"- {fact}" for fact in facts)]
    pairs = [(e.score, e.validation) for e in entries if e.score is not None and e.validation is not None]
    tau = kendall_tau([(a, b) for a, b in pairs if a is not None and b is not None])
    if tau is not None:
        lines.append(
            f"- Kendall's tau between supernet score and validation after training: {tau:+.2f} ({len(pairs)} "
            "candidates)."
        )
    lines += ["", *(f"![{Path(name).stem}]({name})" for name in pictures), ""]
    lines += [
        "| budget | candidate | serving bytes | of plain | supernet score | validation | test AUC | log loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        auc, loss = (entry.average(figure) if entry.results else None for figure in _FIGURES)
        mark = " **best**" if id(entry) in best else ""
        cells = [
            "-" if entry.budget is None else f"{entry.budget:g}",
            f"{entry.name}{mark}",
            f"{entry.nbytes:,}",
            f"{entry.nbytes / plain_nbytes:.4f}",
            _number(entry.score),
            _number(entry.validation),
            _pair(auc),
            _pair(loss),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    failed = [f"- {e.name} at {e.budget}, seed {seed}: {said}" for e in entries for seed, said in e.failures.items()]
    if failed:
        lines += ["", "## Failed trainings", "", *failed]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _pair(values: tuple[float, float | None] | None) -> str:
    if values is None:
        return "-"
    return _number(values[0]) if values[1] is None else f"{values[0]:.4f} ± {values[1]:.4f}"
