"""From the answers of `benchmarks/lm_facts.py` to its tables."""

import statistics
from collections.abc import Sequence
from typing import Any

import lm_report


def _mean(runs: Sequence[dict[str, Any]], arm: str, *keys: str) -> float:
    values = []
    for run in runs:
        if run["arm"] == arm:
            value: Any = run
            for key in keys:
                value = value[key]
            values.append(float(value))
    return statistics.mean(values)


def bars(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was asked, and whether it holds, by means over seeds."""
    asked = [
        ("Engram answers pairs of tokens in trained templates, at least", 0.8, "Engram", ("two tokens", "trained"), 1),
        ("the dense decoder does so at most", 0.2, "dense", ("two tokens", "trained"), -1),
        ("STEM edits succeed in trained templates, at least", 0.95, "STEM 1/2", ("edits", "seen"), 1),
        ("STEM edits succeed in unseen templates, at least", 0.8, "STEM 1/2", ("edits", "unseen"), 1),
        ("a control's rows give the answer at most", 0.1, "STEM 1/2", ("edits", "control"), -1),
        ("another fact in the prompt is kept, at least", 0.95, "STEM 1/2", ("edits", "other fact kept"), 1),
        ("edits are taken back bit for bit", 1.0, "STEM 1/2", ("edits", "undone"), 1),
    ]
    found = []
    for what, bound, arm, keys, sign in asked:
        value = _mean(runs, arm, *keys)
        found.append({"what": what, "bound": bound, "value": value, "holds": sign * value >= sign * bound})
    return found


def page(report: dict[str, Any]) -> str:
    """The table in Markdown."""
    runs = report["runs"]
    rows = [
        [
            arm,
            *(
                lm_report.number(_mean(runs, arm, kind, how), 2)
                for kind in ("one token", "two tokens")
                for how in ("trained", "unseen")
            ),
        ]
        for arm in dict.fromkeys(run["arm"] for run in runs)
    ]
    columns = ["decoder", "one token, trained", "one token, unseen", "two tokens, trained", "two tokens, unseen"]
    tried = [
        [
            bar["what"],
            lm_report.number(bar["bound"], 2),
            lm_report.number(bar["value"], 3),
            "yes" if bar["holds"] else "**no**",
        ]
        for bar in report["bars"]
    ]
    wrote = [
        [name, lm_report.number(_mean(runs, "Engram", "written", name), 2)]
        for name in next(run for run in runs if run["arm"] == "Engram")["written"]
    ]
    return f"""# Facts in a small language model

Written by `{report["command"]}` on {report["machine"]["cores"]} cores ({report["machine"]["cpu"]}); means over
{len({run["seed"] for run in runs})} seeds. {report["facts"]} facts about one token and as many about pairs, each
{report["repeats"]} and {report["pair_repeats"]} times in seven of eight templates, read {report["epochs"]} times.
`benchmarks/lm_facts.py` says how.

Share of facts answered, in trained templates and in the one that was not trained with the entity:

{lm_report.table(columns, rows)}

What was asked:

{lm_report.table(["bar", "bound", "measured", "holds"], tried)}

New answers for pairs, written into the Engram rows at a prompt's end:

{lm_report.table(["", "share"], wrote)}
"""
