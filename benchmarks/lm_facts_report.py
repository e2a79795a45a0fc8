"""From the answers of `benchmarks/lm_facts.py` to its records."""

import statistics
from collections.abc import Sequence
from typing import Any

import records


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


def recorded(report: dict[str, Any]) -> list[records.Record]:
    """Shares of facts answered, by means over seeds; edits, written answers, and the bars."""
    runs, found = report["runs"], []
    num_seeds = len({run["seed"] for run in runs})

    def share(metric: str, case: records.Case, value: float) -> records.Record:
        return records.record(metric, "", case=case, value=value, statistic="mean", rounds=num_seeds)

    for arm in dict.fromkeys(run["arm"] for run in runs):
        for kind in ("one token", "two tokens"):
            for how in ("trained", "unseen"):
                value = _mean(runs, arm, kind, how)
                found.append(share(f"answered, {kind}, {how} templates", {"decoder": arm}, value))
    for arm, key in (("Engram", "written"), ("STEM 1/2", "edits")):
        for name in next((run[key] for run in runs if run["arm"] == arm), {}):
            found += [share(name, {"decoder": arm, "part": key}, _mean(runs, arm, key, name))]
    return found


TITLE = "Facts in a small language model"
ABOUT = (
    "Share of facts answered, about one token and about pairs, in trained templates and in the one that was not "
    "trained with the entity; edits of STEM rows; answers written into Engram rows. The bars are in the file's detail."
)
