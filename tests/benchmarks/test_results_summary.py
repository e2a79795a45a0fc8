"""The page that sums up all sweeps says what their leaderboards say."""

import re

from tests.scripts import ROOT, script

PAGE = ROOT / "docs/results/summary.md"


def test_the_page_is_that_of_the_leaderboards() -> None:
    assert PAGE.read_text() == script("results_summary").summary(), "python benchmarks/results_summary.py"


def test_a_cell_is_the_difference_of_two_lines() -> None:
    """Worked out from the table that people read, which is not what the script reads."""
    text = (ROOT / "docs/results/movielens-deepfm/leaderboard.md").read_text()
    auc = {
        method: float(re.search(rf"^\| {method} \| {budget} \|[^|]*\| (0\.\d+)", text, flags=re.MULTILINE)[1])
        for method, budget in (("full", "1"), ("hash", "0.1"))
    }
    (shown,) = re.findall(r"^\| `hash` \| ([-+.\d]+) ", PAGE.read_text(), flags=re.MULTILINE)
    assert abs(float(shown) - (auc["hash"] - auc["full"])) < 6e-4
