"""benchmarks/results/README.md from the result files beside it.

    python benchmarks/page.py [--out FOLDER]

One section a benchmark: its command and machine, and tables of its figures with their spreads, their ratio to each peer
and their distance from the floor. Cases that have the same metrics are lines of one table; the others are listed.
"""

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import records
from records import Record, Results, Run

NAME = "README.md"
WIDEST = 8
"""Metrics of a table; with more each figure has a line of its own."""
LEAST_CASES = 3
"""Lines of a table; fewer cases with the same metrics are listed figure by figure."""
HEAD = """\
# What was measured

Written by `python benchmarks/page.py` from the JSON files beside it, whose form `benchmarks/records.py` describes.
`python benchmarks/run.py --size full` measures most of it anew; `make bench` does so at short sizes, in half an hour,
and writes its page to runs/bench/short. How to read them:

- A figure is the median over rounds, its range in brackets; ± is one standard deviation around a mean, or one standard
  error where the text says so. "(best)" is the best of several rounds, "(once)" a single measurement. Counts, which are
  the same on every machine, have no mark.
- "of X" is the figure divided by that of X, taken round by round where both took turns; "minus X" is a difference.
- "floor" says how many times worse a figure is than its work at this machine's own rates: bytes at measured bandwidth,
  operations at the measured rate of matrix products. What is counted stands below the table. Only what caches hold can
  bring a figure below 1.
- A load near or above the number of cores means that other work ran: trust the ratios, not the speeds.
- "-" is what a file does not hold. Older ones have no date, and floors only where their rates were measured.
"""


def page(files: Sequence[Results]) -> str:
    """The whole page."""
    machines = list(dict.fromkeys(machine_line(run) for file in files for run in file.runs))
    letters = {line: chr(ord("A") + number) for number, line in enumerate(machines)}
    lines = [HEAD, "| benchmark | what | runs on | load at the start | date | commit |", "|---|---|---|---|---|---|"]
    for file in files:
        lines += [summary_line(file, run, letters) for run in file.runs]
    lines += ["", "Machines:", ""]
    lines += [line for text, letter in letters.items() for line in wrapped(f"- {letter}: {text}", indent="  ")]
    for file in files:
        lines += ["", *section(file, letters)]
    return "\n".join(lines) + "\n"


def machine_line(run: Run) -> str:
    """A machine in words."""
    m = run.machine
    if m.cpu is None and m.device is None:
        told = [f"{m.cores} cores" if m.cores else "not noted"]
    else:
        told = [f"{m.cpu}, {m.cores} cores" + (f", {m.memory_gib} GiB" if m.memory_gib else "")]
        told += [", ".join(m.instruction_set)] if m.instruction_set else []
        told += [m.device] if m.device else []
    told += [", ".join(f"{name} {number}" for name, number in m.packages.items() if number)] if m.packages else []
    return "; ".join(told)


def summary_line(file: Results, run: Run, letters: dict[str, str]) -> str:
    load = "-" if run.machine.load_at_start is None else f"{run.machine.load_at_start:.1f}"
    date = "-" if run.date is None else f"{run.date:%Y-%m-%d}"
    commit = "-" if run.commit is None else run.commit[:9] + ("-dirty" if run.commit.endswith("-dirty") else "")
    where = letters[machine_line(run)]
    return f"| [{file.benchmark}](#{file.benchmark}) | {file.title} | {where} | {load} | {date} | {commit} |"


def section(file: Results, letters: dict[str, str]) -> list[str]:
    """A benchmark's."""
    lines = [f"## {file.benchmark}", "", *wrapped(f"{file.title}. {file.about}")]
    if file.picture is not None:
        lines += ["", f"![{file.title}]({file.picture})"]
    for run in file.runs:
        command = "The file does not hold the command" if run.command is None else f"`{run.command}`"
        lines += ["", *wrapped(f"{command} ({letters[machine_line(run)]}).")]
        lines += tables(run.records)
    return lines


def tables(found: Sequence[Record]) -> list[str]:
    """All records of a run."""
    wide, rest = [], []
    for group in grouped(found):
        own = [record for case in group for record in case]
        metrics = dict.fromkeys(map(headed, own))
        is_dense = 2 * len(own) >= len(group) * len(metrics)
        if len(group) >= LEAST_CASES and len(metrics) <= WIDEST and is_dense:
            wide.append(wide_table(group, list(metrics)))
        else:
            rest += own
    lines = [line for table in wide for line in ("", *table)]
    return lines + (["", *long_table(rest)] if rest else []) + footnotes(found)


def grouped(found: Iterable[Record]) -> list[list[list[Record]]]:
    """Records of one case together, and cases with the same settings together."""
    cases: dict[str, list[Record]] = {}
    for record in found:
        cases.setdefault(repr(record.case), []).append(record)
    groups: dict[tuple[str, ...], list[list[Record]]] = {}
    for own in cases.values():
        groups.setdefault(tuple(own[0].case), []).append(own)
    return list(groups.values())


def wide_table(group: Sequence[Sequence[Record]], metrics: Sequence[str]) -> list[str]:
    """A line a case, a column a metric; peers and floors have columns of their own. Columns without figures go."""
    heads, rows = list(group[0][0].case), [[_plain(value) for value in own[0].case.values()] for own in group]
    for metric in metrics:
        column = [next((r for r in own if headed(r) == metric), None) for own in group]
        present = [r for r in column if r is not None]
        heads.append(metric)
        cells = [["-" if r is None else figure(r) for r in column]]
        for name, kind in dict.fromkeys((p.name, p.kind) for r in present for p in r.peers):
            heads.append(_peer_head(name, kind))
            cells.append(["-" if r is None else _peer_cell(r, name, kind) for r in column])
        for unit in dict.fromkeys(f.unit for r in present for f in r.floors):
            heads.append(f"floor ({unit})")
            cells.append(["-" if r is None else _floor_cell(r, unit) for r in column])
        for row, *more in zip(rows, *cells, strict=True):
            row += more
    kept = [k for k in range(len(heads)) if any(row[k] != "-" for row in rows)]
    return table([heads[k] for k in kept], [[row[k] for k in kept] for row in rows])


def long_table(found: Sequence[Record]) -> list[str]:
    """A line a record."""
    rows = []
    for record in found:
        case = ", ".join(_setting(name, value) for name, value in record.case.items())
        against = "; ".join(f"{_peer_head(p.name, p.kind)} {_peer_figure(record, p)}" for p in record.peers)
        floor = "; ".join(f"{f.times:,.2f} ({f.unit})" for f in record.floors)
        rows.append([case, record.metric, f"{figure(record)} {record.unit}".strip(), against or "-", floor or "-"])
    heads = ["case", "what", "figure", "against", "floor"]
    kept = [k for k in range(len(heads)) if any(row[k] not in ("-", "") for row in rows)]
    return table([heads[k] for k in kept], [[row[k] for k in kept] for row in rows])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in rows)]


def footnotes(found: Sequence[Record]) -> list[str]:
    """What the floors count."""
    notes = dict.fromkeys(
        f"- {f.unit}: {f.counts}" + ("" if f.rate is None else f"; at {_rate(f)} ({f.rate_of})")
        for r in found
        for f in r.floors
    )
    return ["", "Floors:", "", *(line for note in notes for line in wrapped(note + ".", indent="  "))] if notes else []


def _rate(floor: records.Floor) -> str:
    assert floor.rate is not None
    if floor.unit == "reads":
        return f"{floor.rate:,.0f} reads/s"
    return f"{floor.rate / 1e9:,.1f} {'GB' if floor.unit == 'bytes' else 'GFLOP'}/s"


def headed(record: Record) -> str:
    is_told = record.unit in ("", "AUC", "log loss")  # by the metric's name
    return record.metric if is_told else f"{record.metric}, {record.unit}"


def figure(record: Record) -> str:
    """The value with its spread."""

    def shown(value: float) -> str:
        return number(value, record.unit)

    value = shown(record.value)
    if record.spread in ("deviation", "error"):
        assert record.high is not None
        return f"{value} ± {shown(record.high - record.value)}"
    if record.statistic in ("best", "once"):
        return f"{value} ({record.statistic})"
    if record.low is None or record.high is None:
        return value
    return f"{value} ({shown(record.low)} to {shown(record.high)})"


def number(value: float, unit: str = "") -> str:
    """Three digits, or all of a whole number."""
    size = abs(value)
    if unit in ("AUC", "log loss"):
        return f"{value:.4f}"
    if unit.endswith("/s") and size >= 1e6:
        return f"{value / 1e6:,.1f} M"
    if value == int(value) and size < 1e15:
        return f"{int(value):,}"
    if size < 1e-3:
        return f"{value:.1e}"
    limits = ((0.1, 4), (1, 3), (10, 2), (100, 1))
    digits = next((digits for limit, digits in limits if size < limit), 0)
    return f"{value:,.{digits}f}"


def _setting(name: str, value: Any) -> str:
    return f"{name} {_plain(value)}"


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _peer_head(name: str, kind: str) -> str:
    return f"{'of' if kind == 'ratio' else 'minus'} {name}"


def _peer_cell(record: Record, name: str, kind: str) -> str:
    return next((_peer_figure(record, p) for p in record.peers if (p.name, p.kind) == (name, kind)), "-")


def _peer_figure(record: Record, found: records.Peer) -> str:
    def shown(value: float) -> str:
        if found.kind == "difference":
            return f"{value:+.4f}"
        return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"

    if found.low is None or found.high is None:
        return shown(found.value)
    if record.spread == "deviation":
        return f"{shown(found.value)} ± {shown(found.high - found.value).lstrip('+')}"
    return f"{shown(found.value)} ({shown(found.low)} to {shown(found.high)})"


def _floor_cell(record: Record, unit: str) -> str:
    return next((f"{f.times:,.2f}" for f in record.floors if f.unit == unit), "-")


def wrapped(text: str, *, indent: str = "") -> list[str]:
    """Lines of at most 120 characters; a command is broken between its words."""
    return textwrap.wrap(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Reads, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    records.argument(parser)
    args = parser.parse_args()
    write(args.out)


def write(folder: Path) -> Path:
    """The page of a folder of result files.

    Raises:
        SystemExit: there is none, or one of another form.
    """
    try:
        files = [records.load(path) for path in sorted(folder.glob("*.json"))]
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if not files:
        raise SystemExit(f"'{folder}' has no result file; run a benchmark with --out {folder} first")
    (folder / NAME).write_text(page(files))
    return folder / NAME


if __name__ == "__main__":
    main()
