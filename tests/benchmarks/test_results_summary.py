"""The page that sums up all sweeps says what their leaderboards say."""

import re

from tests.scripts import ROOT, script

PAGE = ROOT / "docs/results/summary.md"


def test_the_page_is_that_of_the_leaderboards() -> None:
    assert PAGE.read_text() == script("results_summary").summary(), "python benchmarks/results_summary.py"


def test_a_cell_is_the_difference_of_two_lines() -> None:
    """Worked out from the table that people read, which is not what the script reads."""
    text = (ROOT / "docs/results/movielens-deepfm-codecs/leaderboard.md").read_text()
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n\n")[2].splitlines()
    ]
    cells = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    auc = {
        method: float(re.search(r"0\.\d+", cells[method][column])[0])
        for method, column in (("full", "own size"), ("hash", "0.1"))
    }
    (shown,) = re.findall(r"^\| `hash` \| ([-+.\d]+) ", PAGE.read_text(), flags=re.MULTILINE)
    assert abs(float(shown) - (auc["hash"] - auc["full"])) < 6e-4
