"""Writes the pages of all sweeps of docs/results again from their CSV files, in the layout of today's `embank sweep`.

Run: python benchmarks/leaderboards.py
Title, and how the figures were made, are taken from the page that is there.
"""

import re
from pathlib import Path

from embank.pipelines.sweep.leaderboard import read_csv
from embank.pipelines.sweep.page import FACTS, LAST_FACT, page

RESULTS = Path(__file__).parents[1] / "docs/results"


def rendered(sweep: Path) -> str:
    """The page of a sweep.

    Args:
        sweep: its folder, with leaderboard.csv and leaderboard.md.
    """
    text = (sweep / "leaderboard.md").read_text()
    title = text.splitlines()[0].removeprefix("# ")
    told = text.partition(f"{FACTS}\n")[2] or text  # the first pages had them at their beginning
    section = re.split(r"^(?:!\[|\||## )", told, maxsplit=1, flags=re.MULTILINE)[0]
    facts = [" ".join(bullet.split()) for bullet in re.split(r"^- ", section, flags=re.MULTILINE)[1:]]
    return page(read_csv(sweep / "leaderboard.csv"), title=title, facts=[fact for fact in facts if fact != LAST_FACT])


if __name__ == "__main__":
    for csv in sorted(RESULTS.glob("*/leaderboard.csv")):
        csv.with_suffix(".md").write_text(rendered(csv.parent))
