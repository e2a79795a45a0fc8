"""Leaderboards as people read them: matrices of hand-made lines whose best is known, and choices at a grid's edge."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embank.pipelines.cli import show
from embank.pipelines.sweep.composition import _ends, plot_compositions
from embank.pipelines.sweep.edges import MOST_BEYOND, around, edges
from embank.pipelines.sweep.folder import SweepFolder
from embank.pipelines.sweep.leaderboard import Row, read_csv, table_columns, write_csv
from embank.pipelines.sweep.matrix import markdown, of_codecs, of_compositions, of_differences, of_gains, of_methods
from embank.pipelines.sweep.page import page
from embank.pipelines.sweep.plan import Plan
from embank.tables import ConfigError, DataError
from tests.scripts import ROOT, script
from tests.training.runs import raw_config


def row(method: str, budget: float | None, auc: float | None, **changes: Any) -> Row:
    """A line whose validation says what its test split says, unless told otherwise."""
    share = changes.pop("share", budget or 1.0)
    known: dict[str, Any] = {"model": "deepfm", "status": "complete", "point": "", "seeds": "0,1", "valid_metric": auc}
    sizes = {} if auc is None else {"serving_ratio": share, "serving_bytes": 1000 * share}
    return Row(method=method, budget=budget, auc=auc, **{**known, **sizes, **changes})


PLAIN = [
    row("full", None, 0.9, auc_sd=0.001),
    row("hash", 0.5, 0.7, auc_sd=0.002),
    row("hash", 0.1, 0.6, auc_sd=0.003),
    row("mine", 0.5, 0.85, share=0.3, auc_sd=0.004, best_baseline="hash", minus_best_baseline=0.2),
    row("mine", 0.1, None, status="infeasible", note="infeasible: floor 0.123"),
    row("yours", 0.5, 0.86, valid_metric=0.8, best_baseline="hash", minus_best_baseline=0.16),
    row(
        "yours",
        0.1,
        0.8,
        share=0.102,
        best_baseline="hash",
        minus_best_baseline=0.2,
        minus_best_baseline_sd=0.01,
        minus_best_baseline_bytes_ratio=2.3,
    ),
]


def test_methods_by_budgets() -> None:
    assert of_methods(PLAIN) == [
        ["method", "own size", "0.5", "0.1"],
        ["full", "**0.9000 ± 0.0010 (1)**", "", ""],
        ["yours", "", "0.8600", "**0.8000**"],  # 2% more bytes are the same size
        ["mine", "", "**0.8500 ± 0.0040 (0.3)**", "floor 0.123"],  # the best by validation, .85 against .8
        ["hash", "", "0.7000 ± 0.0020", "0.6000 ± 0.0030"],
    ]
    assert of_differences(PLAIN) == [
        ["method", "0.5", "0.1"],
        ["yours", "+0.1600 (hash)", "+0.2000 ± 0.0100 (hash, 2.3 times the bytes)"],
        ["mine", "+0.2000 (hash)", ""],
    ]
    assert of_differences(PLAIN[:3]) == []
    assert of_compositions(PLAIN) == []
    assert markdown([["a", "b"], ["c", "d"]]) == ["| a | b |", "|---|---|", "| c | d |"]


def test_sizes_that_options_say_are_a_column() -> None:
    rows = [row("hash:num_rows=9", None, 0.7), row("unified:rows=9", None, 0.8)]
    rows = [replace(r, serving_ratio=None) for r in rows]
    assert [line[0] for line in of_methods(rows)] == ["method", "unified:rows=9", "hash:num_rows=9"]
    failed = [*PLAIN, row("broken", 0.5, None, status="failed"), row("broken", 0.1, None, status="failed")]
    assert of_methods(failed)[-1] == ["broken", "", "failed", "failed"], "counts as the lowest of each column"


CODED = [
    *(replace(r, codec="fp32") for r in PLAIN),
    row("full", None, 0.89, codec="int4", share=0.14, minus_fp32=-0.01),
    row("full", None, 0.7, codec="int2", share=0.08),
    row("hash", 0.5, 0.69, codec="int4", share=0.07),
    row("mine", 0.5, 0.84, codec="int4", share=0.045, auc_sd=0.001),
    row("mine", 0.5, 0.83, codec="int2", share=0.03),
    row("yours", 0.1, 0.85, codec="int4", share=0.015, valid_metric=0.6),
    row("yours", 0.5, None, codec="pq", status="refused", note="refused: deepfm/yours/0.5/0: too few"),
]


def test_the_best_composition_at_each_size() -> None:
    head, *lines = of_compositions(CODED)
    assert head[1:] == ["≤ 0.5", "≤ 0.1", "≤ 0.05", "≤ 0.025"], "down to the smallest line"
    cells = {line[0]: line[1:] for line in lines}
    assert cells["full"] == ["**0.8900** (+ int4, 0.14)", "0.7000 (+ int2, 0.08)", "", ""]
    assert cells["mine"] == [
        "0.8500 ± 0.0040 (0.5, 0.3)",
        "**0.8400 ± 0.0010** (0.5 + int4, 0.045)",
        "**0.8400 ± 0.0010** (0.5 + int4, 0.045)",
        "",
    ]
    assert cells["yours"][-1] == "**0.8500** (0.1 + int4, 0.015)", "the only one that is so small"
    assert cells["hash"][1] == "0.6900 (0.5 + int4, 0.07)"
    assert of_methods(CODED) == of_methods(PLAIN), "methods alone are what they are without codecs"


def test_what_codecs_bring_at_each_size() -> None:
    """Below .5, int4 rows of `full` are ahead of what is best alone; the smallest as good as `hash` at .1, whose
    validation is .6, is `yours` in int4."""
    head, *lines = of_gains(CODED)
    assert len(head) == 5
    assert lines == [
        [
            "≤ 0.5",
            "0.8500 ± 0.0040 (mine 0.5, 0.3)",
            "0.8900 (full + int4, 0.14)",
            "+0.0400",
            "0.8900 (full + int4, 0.14): 2.1 times fewer bytes",
        ],
        [
            "≤ 0.1",
            "0.6000 ± 0.0030 (hash 0.1, 0.1)",
            "0.8400 ± 0.0010 (mine 0.5 + int4, 0.045)",
            "+0.2400",
            "0.8500 (yours 0.1 + int4, 0.015): 6.7 times fewer bytes",
        ],
        ["≤ 0.05", "", "0.8400 ± 0.0010 (mine 0.5 + int4, 0.045)", "", ""],
        ["≤ 0.025", "", "0.8500 (yours 0.1 + int4, 0.015)", "", ""],
    ]
    assert of_gains(PLAIN) == []
    worse = [row("hash", 0.5, 0.7, codec="fp32"), row("hash", 0.5, 0.6, codec="int4", share=0.07)]
    assert of_gains(worse)[1:] == [
        ["≤ 0.5", *2 * ["0.7000 (hash 0.5, 0.5)"], "", ""],
        *(["≤ " + size, "", "0.6000 (hash 0.5 + int4, 0.07)", "", ""] for size in ("0.25", "0.1")),
    ]


def test_what_each_codec_costs_over_all_lines() -> None:
    """By hand: int4 takes 1 of 1/.14 (7.1), of .5/.07 (7.1) and of .3/.045 (6.7), so the median is 7.1."""
    lost = [(line, {("hash", "int4"): -0.00004, ("mine", "int4"): -0.002}) for line in CODED]
    rows = [
        replace(line, minus_fp32=known.get((line.method, str(line.codec)), line.minus_fp32)) for line, known in lost
    ]
    assert of_codecs(rows) == [
        ["codec", "lines", "times fewer bytes: median (least to most)", "AUC: median", "AUC: worst line"],
        ["int4", "3", "7.1 (6.7 to 7.1)", "-0.0020", "-0.0100 (full)"],
    ]
    one = [replace(CODED[1], codec="fp32"), replace(CODED[9], minus_fp32=-0.00004)]
    assert of_codecs(one)[1] == ["int4", "1", "7.1 (7.1 to 7.1)", "+0.0000", "+0.0000 (hash 0.5)"]
    assert of_codecs(PLAIN) == []


def test_a_change_that_is_rounded_to_nothing_has_no_minus_anywhere() -> None:
    """By hand: -.00004 is +0.0000 in the terminal's columns and in every matrix of the page, as +.00004 is."""
    tiny: dict[str, Any] = {
        "best_baseline": "mde",
        "minus_best_baseline": -0.00004,
        "minus_hash": -0.00004,
        "minus_fp32": -0.00004,
    }
    coded = row("hash", 0.5, 0.69996, codec="int4", share=0.07, valid_metric=0.8, **tiny)
    rows = [row("hash", 0.5, 0.7, codec="fp32"), coded, row("other", 0.5, 0.6, codec="fp32", **tiny)]
    columns = table_columns(rows)
    assert columns["AUC − fp32"] == ["-", "+0.0000", "+0.0000"]
    assert columns["AUC − hash"] == ["-", "+0.0000", "+0.0000"]
    assert columns["AUC − best baseline"] == ["-", "+0.0000 (mde)", "+0.0000 (mde)"]
    assert of_codecs(rows)[1][3:] == ["+0.0000", "+0.0000 (hash 0.5)"]
    assert of_differences(rows)[1] == ["other", "+0.0000 (mde)"]
    assert of_gains(rows)[1][3] == "+0.0000"
    assert "-0.0000" not in page(rows, title="T", facts=[])


def test_codecs_of_a_plain_table_that_is_larger_than_the_largest_budget_have_a_column() -> None:
    rows = [
        row("full", None, 0.9, codec="fp32"),
        row("full", None, 0.89, codec="int8", share=0.28),
        row("full", None, 0.88, codec="int4", share=0.14),
        row("hash", 0.1, 0.6, codec="fp32"),
        row("hash", 0.1, 0.59, codec="int8", share=0.028),
    ]
    head, *lines = of_compositions(rows)
    assert head[1:] == ["≤ 0.5", "≤ 0.25", "≤ 0.1", "≤ 0.05"]
    cells = {line[0]: line[1:] for line in lines}
    assert cells["full"] == ["**0.8900** (+ int8, 0.28)", "**0.8800** (+ int4, 0.14)", "", ""]
    assert [line[0] for line in of_gains(rows)[1:]] == head[1:]
    wide = [replace(rows[0]), row("full", None, 0.9, codec="pq", share=1.5)]
    assert of_compositions(wide)[0][1:] == ["≤ 1.5", "≤ 1"], "codebooks of tiny tables"
    within = [row("full", None, 0.9, codec="fp32"), row("full", None, 0.8, codec="int8", share=0.28)]
    assert of_compositions([*within, row("hash", 0.35, 0.6, codec="fp32")])[0][1:] == ["≤ 0.35"], "as it was"


def test_a_terminal_has_what_codecs_bring_where_their_lines_are_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = SweepFolder(tmp_path)
    show.leaderboard(CODED, folder)
    few = capsys.readouterr().out
    assert few.count("int4") == 4
    assert "under codecs" not in few
    many = [row(f"m{number}", 0.5, 0.5, codec="int4", share=0.07) for number in range(show.MOST_LINES)]
    show.leaderboard([*CODED, *many], folder)
    told = capsys.readouterr().out
    assert f"and {len(many) + 7} lines under codecs, of which:" in told
    assert "0.8500 (yours 0.1 + int4, 0.015): 6.7 times fewer bytes" in told
    assert "m7" not in told
    assert "leaderboard.csv" in told


def test_the_page_and_the_pictures(tmp_path: Path) -> None:
    text = page(CODED, title="T", facts=["a fact"])
    order = [
        "# T",
        "| full | **0.9000",
        "## Methods with codecs",
        "| best method alone |",
        "| codec | lines |",
        "composition.png",
    ]
    order += ["## Against baselines", "pareto.png", "## How the figures were made", "- a fact", "## Refused codecs"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "- deepfm, yours under pq: refused: deepfm/yours/0.5/0: too few" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
    assert "composition" not in page(PLAIN, title="T", facts=[])
    two = page([*PLAIN, *(replace(r, model="dlrm") for r in PLAIN)], title="T", facts=[])
    assert two.index("**deepfm**") < two.index("**dlrm**")
    plot_compositions(CODED, tmp_path / "c.png", title="T")
    shown = [line for line in CODED if line.auc is not None]
    named = [(line.method, line.codec) for line in _ends(shown)]
    assert ("mine", "fp32") in named, "on the front of methods alone"
    low = row("low", 0.02, 0.5, codec="fp32")  # on that front too, below all of what codecs reach
    assert [(line.method, line.codec) for line in _ends([*shown, low])] == named
    plot_compositions([CODED[-1]], tmp_path / "empty.png", title="T")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_a_leaderboard_is_read_as_it_was_written(tmp_path: Path) -> None:
    for rows in (PLAIN, CODED):
        write_csv(rows, tmp_path / "l.csv")
        assert read_csv(tmp_path / "l.csv") == rows
    assert "codec" in (tmp_path / "l.csv").read_text()
    (tmp_path / "l.csv").write_text("model,weather\na,b\n")
    with pytest.raises(DataError, match="has a column 'weather', which no leaderboard has"):
        read_csv(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("model,method,budget,status,point,seeds,auc\na,b,1,complete,,0,x\n")
    with pytest.raises(DataError, match="line 2: could not convert string to float: 'x'"):
        read_csv(tmp_path / "l.csv")


@pytest.mark.parametrize(
    "sweep", sorted(path.parent.name for path in (ROOT / "docs/results").glob("*/leaderboard.csv"))
)
def test_published_pages_are_those_of_their_files(sweep: str) -> None:
    folder = ROOT / "docs/results" / sweep
    assert (folder / "leaderboard.md").read_text() == script("leaderboards").rendered(folder), (
        "python benchmarks/leaderboards.py"
    )


def told(grid: dict[str, list[Any]], **chosen: str) -> list[str]:
    plan = Plan(
        config=raw_config(Path("data")), models=["deepfm"], methods=["hash"], budgets=[0.5], seeds=[0], grid=grid
    )
    return [str(edge) for edge in edges(plan, chosen)]


def test_choices_at_the_edge_of_a_grid() -> None:
    grid = {"train.table_lr": [0.05, 0.2, 0.1], "tables.dim": [4, 8]}
    at = [f"train.table_lr={lr},tables.dim={dim}" for lr, dim in ((0.2, 8), (0.1, 8), (0.05, 4), (0.2, 8))]
    assert told(grid, a=at[0], b=at[1], c=at[2], d=at[3]) == [
        "train.table_lr=0.05, the smallest value of its grid, was chosen by 1 of 4 lines (c): try train.table_lr=0.025 "
        "as well",
        "train.table_lr=0.2, the largest value of its grid, was chosen by 2 of 4 lines (a, d): try train.table_lr=0.4 "
        "as well",
        "tables.dim=4, the smallest value of its grid, was chosen by 1 of 4 lines (c): try tables.dim=2 as well",
        "tables.dim=8, the largest value of its grid, was chosen by 3 of 4 lines (a, b, d): try tables.dim=16 as well",
    ]
    assert told(grid, b="train.table_lr=0.1,tables.dim=6") == []


def told_of(key: str, values: list[float], *failed: float, chosen: float) -> list[str]:
    """Of a line that tried all values of one key."""
    tried = [f"{key}={value:g}" for value in values]
    plan = Plan(
        config=raw_config(Path("data")),
        models=["deepfm"],
        methods=["hash"],
        budgets=[0.5],
        seeds=[0],
        grid={key: values},
    )
    lost = [f"{key}={value:g}" for value in failed]
    return [str(edge) for edge in edges(plan, {"a": f"{key}={chosen:g}"}, {"a": tried}, {"a": lost})]


def test_a_point_that_failed_is_no_neighbour_of_an_edge() -> None:
    """What to try is found by the values with a score, and lies on this side of what failed."""
    rate = "train.table_lr"
    assert told_of(rate, [0.01, 1, 1e38], 1e38, chosen=1) == [
        f"{rate}=1, the largest value of its grid that has a score, was chosen by 1 of 1 lines (a): try {rate}=100 as "
        "well; 1e+38 failed"
    ]
    (said,) = told_of(rate, [0.1, 1, 4, 9], 4, 9, chosen=1)
    assert said.endswith(f"try {rate}=2 as well; 4 and 9 failed"), "the next by ratio is 10, beyond what failed"
    (said,) = told_of(rate, [0.01, 0.1, 1], 0.1, chosen=1)
    assert said == f"{rate}=1, the largest value of its grid, was chosen by 1 of 1 lines (a): try {rate}=100 as well"
    assert told_of(rate, [0.1, 1], 0.1, chosen=1) == [], "of one value with a score nothing is known"
    assert told_of(rate, [0.01, 0.1, 1], 1, chosen=0.01) == [
        f"{rate}=0.01, the smallest value of its grid, was chosen by 1 of 1 lines (a): try {rate}=0.001 as well"
    ]
    assert told_of("train.epochs", [1, 2, 3], 3, chosen=2) == [], "no whole number lies between"
    assert told_of("model.dropout", [0.2, 0.4, 0.6], 0.6, chosen=0.4)[0].endswith(
        "try model.dropout=0.49 as well; 0.6 failed"
    )


def test_a_value_with_a_score_at_one_point_is_a_neighbour() -> None:
    grid: dict[str, list[Any]] = {"train.lr": [0.1, 0.2], "train.table_lr": [1.0, 2.0]}
    plan = Plan(config=raw_config(Path("data")), models=["fm"], methods=["hash"], budgets=[0.5], seeds=[0], grid=grid)
    tried = [f"train.lr={lr},train.table_lr={rate}" for lr in (0.1, 0.2) for rate in (1, 2)]

    def found(*failed: str) -> list[tuple[str, float]]:
        told = edges(plan, {"a": tried[0]}, {"a": tried}, {"a": failed})
        return [(edge.key, edge.following) for edge in told]

    assert found(tried[3]) == [("train.lr", 0.05), ("train.table_lr", 0.5)]
    assert found(*tried[2:]) == [("train.table_lr", 0.5)], "all of 0.2 failed, so that 0.1 is all there is"


def test_ends_that_have_no_beyond() -> None:
    assert told({"train.weight_decay": [0.0, 1e-5]}, a="train.weight_decay=0.0") == []
    (said,) = told({"train.weight_decay": [0.0, 1e-5]}, a="train.weight_decay=1e-05")
    assert said.endswith("try train.weight_decay=0.0001 as well")
    assert told({"model.dropout": [0.5, 0.9]}, a="model.dropout=0.9") == [], "the model takes no more"
    assert told({"train.table_optimizer": ["sgd", "adagrad"]}, a="train.table_optimizer=sgd") == []
    assert told({"train.lr": [0.001]}, a="train.lr=0.001") == []


def neighbours(grid: dict[str, list[Any]], point: str, *tried: str, failed: Sequence[str] = ()) -> list[str]:
    plan = Plan(
        config=raw_config(Path("data")), models=["deepfm"], methods=["hash"], budgets=[0.5], seeds=[0], grid=grid
    )
    return around(plan, point, tried, failed=failed)


def test_neighbours_of_a_point() -> None:
    grid: dict[str, list[Any]] = {"train.table_lr": [0.01, 0.1, 0.03], "train.lr": [0.001, 0.002]}
    assert neighbours(grid, "train.table_lr=0.1,train.lr=0.001") == [
        "train.table_lr=0.03,train.lr=0.001",
        "train.table_lr=0.333,train.lr=0.001",
        "train.table_lr=0.1,train.lr=0.0005",
        "train.table_lr=0.1,train.lr=0.002",
    ]
    tried = ["train.table_lr=0.333,train.lr=0.001", "train.table_lr=0.333,train.lr=0.0005"]
    assert neighbours(grid, tried[1], *tried) == [
        "train.table_lr=0.1,train.lr=0.0005",
        "train.table_lr=1.11,train.lr=0.0005",
        "train.table_lr=0.333,train.lr=0.00025",
        "train.table_lr=0.333,train.lr=0.001",
    ]


def test_a_point_that_failed_is_no_neighbour() -> None:
    """It was taken for one that is no better, where a widened grid ends."""
    rate = "train.table_lr"

    def of(values: list[Any], point: float, *failed: float) -> list[str]:
        tried = [f"{rate}={value:g}" for value in values]
        lost = [f"{rate}={value:g}" for value in failed]
        return [
            name.removeprefix(f"{rate}=")
            for name in neighbours({rate: values}, f"{rate}={point:g}", *tried, failed=lost)
        ]

    assert of([0.01, 0.1, 1], 0.1) == ["0.01", "1"]
    assert of([0.01, 0.1, 1], 0.1, 1) == ["0.01", "0.316"], "on this side of what failed"
    assert of([0.01, 0.1, 1], 0.1, 0.01) == ["0.0316", "1"]
    assert of([0.1, 1], 0.1, 1) == ["0.01", "0.316"], "one value with a score, and one that says how far to go"
    assert of([0.1, 1], 1, 0.1) == ["0.316", "10"]
    assert of([0.1, 1, 2], 0.1, 1, 2) == ["0.01", "0.316"]
    assert of([1, 1e38], 1, 1e38) == ["1e-38", "1e+19"]
    grid: dict[str, list[Any]] = {rate: [0.1, 1], "train.lr": [0.001, 0.002]}
    tried = [f"{rate}={one},train.lr={other}" for one in (0.1, 1) for other in (0.001, 0.002)]
    assert neighbours(grid, tried[0], *tried, failed=[tried[2]])[1] == tried[2], "a value that has a score elsewhere"
    beyond = [f"{rate}={value:g}" for value in (0.5, 0.3, 0.2, 0.15, 0.12, 0.11)]
    assert neighbours({rate: [0.01, 0.1, 1]}, f"{rate}=0.1", *beyond, failed=[*beyond, f"{rate}=1"]) == [f"{rate}=0.01"]


def test_a_real_number_may_be_written_as_a_whole_one() -> None:
    """The kind of the key decides what lies beyond, not how its values are written."""
    rates = {"train.table_lr": [10, 1]}
    assert neighbours(rates, "train.table_lr=1") == ["train.table_lr=0.1", "train.table_lr=10"]
    assert neighbours(rates, "train.table_lr=0.1", "train.table_lr=0.1") == [
        "train.table_lr=0.01",
        "train.table_lr=1",
    ]
    assert neighbours({"train.epochs": [10, 4]}, "train.epochs=4") == ["train.epochs=2", "train.epochs=10"]
    assert neighbours({"train.epochs": [1, 2]}, "train.epochs=1") == ["train.epochs=2"], "not 0, which is refused"
    assert neighbours({"train.lr": [1.0, 1, 2]}, "train.lr=1") == ["train.lr=0.5", "train.lr=2"], "one value, one name"


def test_values_beyond_are_beyond_and_told_in_full() -> None:
    close = {"train.lr": [0.1234, 0.12341]}
    assert neighbours(close, "train.lr=0.12341") == ["train.lr=0.1234", "train.lr=0.12342"]
    (said,) = told({"train.lr": [0.0201, 0.02011]}, a="train.lr=0.0201")
    assert said.endswith("try train.lr=0.02009 as well")
    (said,) = told({"train.epochs": [2**24, 2**26]}, a=f"train.epochs={2**26}")
    assert said.startswith("train.epochs=67108864, the largest")
    assert said.endswith("try train.epochs=268435456 as well")
    assert neighbours({"train.table_lr": [1e200, 1e300]}, "train.table_lr=1e+300") == ["train.table_lr=1e+200"]
    grid: dict[str, list[Any]] = {"train.lr": [0.1, 0.2]}
    plan = Plan(
        config=raw_config(Path("data")), models=["deepfm"], methods=["hash"], budgets=[0.5], seeds=[0], grid=grid
    )
    (edge,) = edges(plan, {"a": "train.lr=0.4"}, {"a": ["train.lr=0.4"]})
    assert str(edge).startswith("train.lr=0.4, the largest value that was tried, was chosen by 1 of 1 lines")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": {}, "widen": True}, "--widen says how a --grid is run, and there is none"),
        ({"grid": {}, "grid_budget": 0.5}, "--grid-budget says how a --grid is run, and there is none"),
        ({"grid": {"train.lr": [0.1, 0.1], "train.decay": ["none", "cosine"]}, "widen": True}, "no key has two"),
        ({"grid": {"train.seed": [1, 2]}}, "has the key train.seed, which is not tuned: give seeds with --seeds"),
        ({"grid": {"tables.method": ["full"]}}, "tables.method, which is not tuned: give methods with --methods"),
        ({"grid": {"tables.budget": [0.5, 0.2]}}, "tables.budget, which is not tuned: give budgets with --budgets"),
        ({"grid": {"model.name": ["fm", "lr"]}}, "model.name, which is not tuned: give models with --models"),
        ({"grid": {"data.path": ["a", "b"]}}, "data.path, which is not tuned: other data is another sweep"),
        ({"grid": {"train.monitor": ["auc"]}}, "train.monitor, which is not tuned: points are compared by one"),
        ({"grid": {"train": [{"epochs": 1}]}}, "has the whole section train, with train.seed in it"),
    ],
)
def test_grids_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"models": ["deepfm"], "methods": ["hash"], "budgets": [0.5], "seeds": [0]}
    with pytest.raises(ConfigError, match=message):
        Plan(config=raw_config(Path("data")), **settings, **arguments)


def test_neighbours_end_where_values_do() -> None:
    ends: dict[str, list[Any]] = {"train.lr": [0.01], "train.decay": ["none", "cosine"], "train.weight_decay": [0, 1]}
    assert neighbours(ends, "train.lr=0.01,train.decay=none,train.weight_decay=0") == [
        "train.lr=0.01,train.decay=none,train.weight_decay=1"
    ]
    rates = [round(0.1 * 2**place, 6) for place in range(2 + MOST_BEYOND)]
    tried = [f"train.lr={rate}" for rate in rates]
    assert neighbours({"train.lr": rates[:2]}, tried[-2], *tried[:-1]) == [tried[-3], tried[-1]]
    assert neighbours({"train.lr": rates[:2]}, tried[-1], *tried) == [tried[-2]], "no more than so many beyond a grid"


def test_budgets_that_differ_have_folders_of_their_own() -> None:
    plan = Plan(
        config=raw_config(Path("data")),
        models=["deepfm"],
        methods=["hash"],
        budgets=[0.1234561, 0.1234564, 0.5, 1 / 3],
        seeds=[0],
        grid={},
    )
    names = [case.name for case in plan.cases()]
    assert names == [f"deepfm/hash/{text}" for text in ("0.1234561", "0.1234564", "0.5", "0.3333333333333333")]
