"""A leaderboard as people read it: methods by budgets, and with codecs the best composition of each method by size."""

from collections.abc import Callable, Sequence
from math import log
from statistics import mean, median

from embank.pipelines.sweep.comparison import EQUAL
from embank.pipelines.sweep.leaderboard import INFEASIBLE, SIGNED, Row

Matrix = list[list[str]]
"""Cells by row; the first row is the head."""

_SIZES = (0.5, 0.25, 0.1, 0.05, 0.025, 0.01, 0.005, 0.0025, 0.001, 0.0005, 0.0001)
_OWN = "own size"
CHOICE = (
    "Bold is the best of a column by validation, since the best of many test figures is too good by chance. Rows are "
    "sorted by test AUC, its mean over the budgets, where the column's lowest counts for a method that has no figure; "
    "methods of one size come first."
)
"""How a matrix is to be read."""


def of_methods(rows: Sequence[Row]) -> Matrix:
    """Test AUC of methods alone, by budget; the share of plain bytes where it is not the budget's.

    Args:
        rows: lines of one model.
    """
    return _by_budget(_alone(rows), _quality)


def of_differences(rows: Sequence[Row]) -> Matrix:
    """AUC of methods alone minus that of the best baseline at equal bytes, by budget; [] if there is none.

    Args:
        rows: lines of one model.
    """
    alone = _alone(rows)
    compared = {row.method for row in alone if row.minus_best_baseline is not None}
    return _by_budget([row for row in alone if row.method in compared], _difference) if compared else []


def of_compositions(rows: Sequence[Row]) -> Matrix:
    """For each method, the best of its lines (by validation) that is no larger than a size: AUC, codec and budget,
    share; [] without codecs.

    Args:
        rows: lines of one model.
    """
    sized = _sized(rows)
    if len(_alone(sized)) == len(sized):
        return []
    sizes = _sizes(sized)
    methods = list(dict.fromkeys(row.method for row in sized))
    best = {
        method: [_best_within([row for row in sized if row.method == method], size) for size in sizes]
        for method in methods
    }
    tops = [_best_within(sized, size) for size in sizes]
    head = ["method, the best of its codecs and budgets", *(f"≤ {size:g}" for size in sizes)]
    order = _sorted(methods, [[best[method][i] for method in methods] for i in range(len(sizes))])
    return [head, *([method, *map(_composition_of, best[method], tops)] for method in order)]


def of_gains(rows: Sequence[Row]) -> Matrix:
    """What codecs bring, by size: the best method alone, the best of all lines, the difference of their test AUCs, and
    the smallest line that is as good as the method alone, with how many times fewer bytes it has; [] without codecs.

    Which is best and as good is judged on validation.

    Args:
        rows: lines of one model.
    """
    sized = _sized(rows)
    if len(_alone(sized)) == len(sized):
        return []
    lines = []
    for size in _sizes(sized):
        alone, top = _best_within(_alone(sized), size), _best_within(sized, size)
        if alone is None or top is None or alone.auc is None or top.auc is None:
            lines.append([f"≤ {size:g}", "", _composition(top, name=True), "", ""])
            continue
        equals = [row for row in sized if _validation(row) >= _validation(alone)]
        least = min(equals, key=lambda row: (row.serving_ratio or 0, -_validation(row)))
        fewer = (alone.serving_ratio or 0) / (least.serving_ratio or 1)
        same = "" if least is alone else f"{_composition(least, name=True)}: {fewer:.2g} times fewer bytes"
        told = [_composition(row, name=True) for row in (alone, top)]
        lines.append([f"≤ {size:g}", *told, "" if top is alone else f"{top.auc - alone.auc:{SIGNED}}", same])
    return [
        ["share of the plain bytes", "best method alone", "best of all", "difference", "the smallest as good as alone"],
        *lines,
    ]


def of_codecs(rows: Sequence[Row]) -> Matrix:
    """What each codec costs and saves over all methods and budgets, against the same runs without it: bytes, and test
    AUC; [] without codecs.

    Args:
        rows: lines of one model.
    """
    alone = {(row.method, row.budget): row.serving_bytes for row in _alone(rows)}
    lines = []
    for codec in dict.fromkeys(row.codec for row in rows if not row.is_alone):
        coded = [row for row in rows if row.codec == codec and row.minus_fp32 is not None and row.serving_bytes]
        if not coded:
            continue
        fewer = [(alone.get((row.method, row.budget)) or 0.0) / (row.serving_bytes or 1.0) for row in coded]
        lost = [row.minus_fp32 or 0.0 for row in coded]
        worst = coded[lost.index(min(lost))]
        source = worst.method if worst.budget is None else f"{worst.method} {worst.budget:g}"
        lines.append(
            [
                str(codec),
                f"{len(coded)}",
                f"{median(fewer):.1f} ({min(fewer):.1f} to {max(fewer):.1f})",
                f"{median(lost):{SIGNED}}",
                f"{min(lost):{SIGNED}} ({source})",
            ]
        )
    head = ["codec", "lines", "times fewer bytes: median (least to most)", "AUC: median", "AUC: worst line"]
    return [head, *lines] if lines else []


def _sized(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if _is_judged(row) and row.serving_ratio]


_SLACK = 1.0005
"""Sizes are told in a few digits."""


def _alone(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.is_alone]


def _is_judged(row: Row) -> bool:
    return row.auc is not None and row.valid_metric is not None


def _validation(row: Row) -> float:
    assert row.valid_metric is not None
    return row.valid_metric


def _best(rows: Sequence[Row]) -> Row | None:
    """By validation; of equal ones the smallest."""
    judged = [row for row in rows if _is_judged(row)]
    return max(judged, key=lambda row: (_validation(row), -(row.serving_bytes or 0)), default=None)


def _best_within(rows: Sequence[Row], size: float) -> Row | None:
    return _best([row for row in rows if row.serving_ratio is not None and row.serving_ratio <= size * _SLACK])


def _sizes(sized: Sequence[Row]) -> list[float]:
    """The sweep's budgets, smaller sizes that codecs reach, and larger ones that lines with codecs have: plain tables
    under a codec may take more than the largest budget."""
    budgets = {row.budget for row in sized if row.budget is not None} or {1.0}
    sizes = sorted({*budgets, *_larger(sized, max(budgets)), *(s for s in _SIZES if s < min(budgets))}, reverse=True)
    least = min(row.serving_ratio or 1 for row in sized)
    return [size for size in sizes if size * _SLACK >= least]


def _larger(sized: Sequence[Row], budget: float) -> list[float]:
    """Sizes above the largest budget, up to the first that has every line with a codec."""
    coded = max((row.serving_ratio or 0 for row in sized if not row.is_alone), default=0)
    if coded <= budget * _SLACK:
        return []
    largest = min((size for size in (1.0, *_SIZES) if coded <= size * _SLACK), default=coded)
    return [size for size in (largest, 1.0, *_SIZES) if budget < size <= largest]


def _by_budget(rows: Sequence[Row], told: Callable[[Row], str]) -> Matrix:
    """Methods by budgets, the largest first; lines without a budget stand in a column of their own."""
    budgets = sorted({row.budget for row in rows if row.budget is not None}, reverse=True)
    columns: list[float | None] = [*([None] if any(row.budget is None for row in rows) else []), *budgets]
    methods = list(dict.fromkeys(row.method for row in rows))
    of_one_size = [method for method in methods if not any(row.budget for row in rows if row.method == method)]
    cells = {(row.method, row.budget): row for row in rows}
    by_column = [[cells.get((method, budget)) for method in methods] for budget in columns]
    tops = [_best([row for row in column if row is not None]) if told is _quality else None for column in by_column]
    first = by_column[0] if columns[0] is None else []
    ranked = [column for column in by_column if column is not first] or by_column
    order = _sorted(methods, ranked)
    if budgets:  # methods that have only their own size are sorted by that
        order = [
            *(method for method in _sorted(methods, [first] if first else []) if method in of_one_size),
            *(method for method in order if method not in of_one_size),
        ]
    lines = []
    for method in order:
        line = [cells.get((method, budget)) for budget in columns]
        said = ["" if row is None else told(row) for row in line]
        is_best = [row is not None and row is top for row, top in zip(line, tops, strict=True)]
        lines.append([method, *(f"**{text}**" if bold else text for text, bold in zip(said, is_best, strict=True))])
    return [["method", *(_OWN if budget is None else f"{budget:g}" for budget in columns)], *lines]


def _sorted(methods: Sequence[str], by_column: Sequence[Sequence[Row | None]]) -> list[str]:
    """Methods by falling mean AUC over the columns; see `CHOICE`. One that is in none comes last."""
    scores: dict[str, list[float]] = {method: [] for method in methods}
    figures = dict.fromkeys(methods, 0)
    for column in by_column:
        aucs = [None if row is None else row.auc for row in column]
        known = [auc for auc in aucs if auc is not None]
        for method, auc in zip(methods, aucs, strict=True):
            scores[method] += [min(known) if auc is None else auc] if known else []
            figures[method] += auc is not None
    return sorted(methods, key=lambda method: (-mean(scores[method] or [0.0]), -figures[method], method))


def _quality(row: Row) -> str:
    if row.auc is None:
        floor = row.note.removeprefix(f"{INFEASIBLE}: ")
        return floor if row.status == INFEASIBLE and floor.startswith("floor ") else row.status
    share = row.serving_ratio
    is_told = share is not None and (row.budget is None or abs(log(share / row.budget)) > EQUAL)
    return f"{_with_sd(row.auc, row.auc_sd, '.4f')}{f' ({share:.3g})' if is_told else ''}"


def _difference(row: Row) -> str:
    if row.minus_best_baseline is None:
        return ""
    ratio = row.minus_best_baseline_bytes_ratio
    size = "" if ratio in (None, 1) else f", {ratio:.2g} times the bytes"
    return f"{_with_sd(row.minus_best_baseline, row.minus_best_baseline_sd, SIGNED)} ({row.best_baseline}{size})"


def _composition_of(row: Row | None, top: Row | None) -> str:
    return _composition(row, bold=row is not None and row is top)


def _composition(row: Row | None, *, name: bool = False, bold: bool = False) -> str:
    if row is None or row.auc is None:
        return ""
    parts = [row.method if name else "", "" if row.budget is None else f"{row.budget:g}"]
    source = " ".join(part for part in parts if part)
    coded = "" if row.is_alone else f"+ {row.codec}"
    told = f"{_with_sd(row.auc, row.auc_sd, '.4f')}"
    about = ", ".join(part for part in (" ".join(p for p in (source, coded) if p), f"{row.serving_ratio:.3g}") if part)
    return f"**{told}** ({about})" if bold else f"{told} ({about})"


def _with_sd(value: float, deviation: float | None, form: str) -> str:
    return format(value, form) if deviation is None else f"{format(value, form)} ± {deviation:.4f}"


def markdown(matrix: Matrix) -> list[str]:
    """Lines of a table."""
    head, *lines = matrix
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(line)} |" for line in lines)]
