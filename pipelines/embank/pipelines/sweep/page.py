"""The leaderboard's page for people: matrices first, then pictures, and how the figures were made."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from embank.pipelines.runs.records import RESUME
from embank.pipelines.sweep.leaderboard import FAILED, REFUSED, Row
from embank.pipelines.sweep.matrix import (
    CHOICE,
    Matrix,
    markdown,
    of_codecs,
    of_compositions,
    of_differences,
    of_gains,
    of_methods,
)
from embank.tables.storage.atomic import replace_text

FACTS = "## How the figures were made"
LAST_FACT = "All columns of all lines: [leaderboard.csv](leaderboard.csv)."
_METHODS = (
    "Test AUC by method and budget (serving bytes / bytes of the plain tables); in brackets the share of plain bytes "
    "where it is not the budget. "
)
_DIFFERENCES = (
    "Test AUC minus that of the best baseline, which is in brackets; how they are compared is said at the end of the "
    "page."
)
_GAINS = (
    "The best method alone and the best of all methods, codecs and budgets that take no more than a share of the plain "
    "tables' bytes: test AUC, and in brackets method, budget, codec and share. The last column has the smallest line "
    "whose validation is no worse than that of the method alone. Validation chooses; differences are of test AUC."
)
_CODECS = (
    "Each codec over all lines of methods, against the same runs in 32 bits: how many times fewer bytes, and the "
    "change of test AUC."
)
_COMPOSITIONS = (
    "For each method the best of its codecs and budgets, by validation, that takes no more than a share of the plain "
    "tables' bytes: test AUC, and in brackets budget, codec and share. Bold and order are as in the first table."
)


def write_markdown(rows: Sequence[Row], path: Path, *, title: str, facts: Sequence[str]) -> None:
    """Writes the page; what all lines say in full is in the CSV next to it.

    Args:
        rows: the leaderboard.
        path: the file.
        title: data and models.
        facts: sentences about the sweep.
    """
    replace_text(path, page(rows, title=title, facts=facts), cure=RESUME)


def page(rows: Sequence[Row], *, title: str, facts: Sequence[str]) -> str:
    """The text of the page.

    Args:
        rows: the leaderboard.
        title: data and models.
        facts: sentences about the sweep.
    """
    compositions = _by_model(rows, of_compositions)
    lines = [f"# {title}", "", *_filled(_METHODS + CHOICE), *_by_model(rows, of_methods)]
    if compositions:
        lines += ["", "## Methods with codecs", "", *_filled(_GAINS), *_by_model(rows, of_gains)]
        lines += ["", *_filled(_CODECS), *_by_model(rows, of_codecs)]
        lines += ["", *_filled(_COMPOSITIONS), *compositions]
        lines += ["", "![The front of methods with codecs, and of methods alone](composition.png)"]
    differences = _by_model(rows, of_differences)
    if differences:
        lines += ["", "## Against baselines", "", *_filled(_DIFFERENCES), *differences]
    lines += ["", "![AUC against serving bytes](pareto.png)"]
    lines += ["", FACTS, "", *map(_bullet, [*facts, LAST_FACT])]
    for head, status in (("## Failed runs", FAILED), ("## Refused codecs", REFUSED)):
        told = [
            f"{row.model}, {row.method}{f' under {row.codec}' if row.codec else ''}: {row.note}"
            for row in rows
            if row.status == status
        ]
        lines += ["", head, "", *map(_bullet, told)] if told else []
    return "\n".join(lines) + "\n"


def _by_model(rows: Sequence[Row], made: Callable[[Sequence[Row]], Matrix]) -> list[str]:
    """A matrix for each model, with its name where there are several."""
    models = list(dict.fromkeys(row.model for row in rows))
    lines: list[str] = []
    for model in models:
        matrix = made([row for row in rows if row.model == model])
        if matrix:
            lines += [*(["", f"**{model}**"] if len(models) > 1 else []), "", *markdown(matrix)]
    return lines


def _filled(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def _bullet(fact: str) -> str:
    return textwrap.fill(
        fact, 120, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
