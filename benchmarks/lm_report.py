"""From the scores of `benchmarks/lm.py` to its table: bits per byte, paired differences, and what the bars say."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import records

CONTEXTS = ("trigram", "bigram", "unseen")
SEEN = {"trigram": "trigram seen", "bigram": "bigram only", "unseen": "neither"}
BASE = "dense"


def by_context(nats: np.ndarray, *, sizes: np.ndarray, contexts: np.ndarray) -> dict[str, Any]:
    """Bits per byte of all tokens, and of those of each context.

    Args:
        nats: minus the log probability of each token.
        sizes: its bytes.
        contexts: what training has seen before it, as `seen_contexts` says.
    """
    found: dict[str, Any] = {"bits_per_byte": _bits(nats, sizes), "contexts": {}}
    for number, name in enumerate(CONTEXTS):
        here = contexts == number
        bits = _bits(nats[here], sizes[here]) if here.any() else None
        found["contexts"][name] = {"bits_per_byte": bits, "share": float(here.mean())}
    return found


def _bits(nats: np.ndarray, sizes: np.ndarray) -> float:
    return float(nats.sum()) / math.log(2) / max(1, int(sizes.sum()))


def select(scores: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    """The scores whose keys have these values, by seed."""
    found = [s for s in scores if all(s[key] == value for key, value in wanted.items())]
    return sorted(found, key=lambda s: -1 if s["seed"] is None else s["seed"])


def paired(
    scores: Sequence[Mapping[str, Any]], arm: str, other: str, *, context: str | None = None, **where: Any
) -> list[float]:
    """Differences in bits per byte of two arms, seed by seed; one without seeds is compared with each."""

    def values(name: str) -> dict[Any, float]:
        own = select(scores, arm=name, **where)
        return {
            s["seed"]: s["bits_per_byte"] if context is None else s["contexts"][context]["bits_per_byte"] for s in own
        }

    mine, theirs = values(arm), values(other)
    fixed = theirs.get(None)
    return [
        mine[seed] - theirs.get(seed, fixed)
        for seed in mine
        if mine[seed] is not None and theirs.get(seed, fixed) is not None
    ]


def spread(values: Sequence[float]) -> float:
    """The deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def bars(scores: Sequence[Mapping[str, Any]], *, tokens: int) -> list[dict[str, Any]]:
    """What was asked of Engram at the longest training, and whether it holds, by corpus."""
    found: list[dict[str, Any]] = []
    for corpus in sorted({s["corpus"] for s in scores}):
        where = {"corpus": corpus, "tokens": tokens}
        for other in (BASE, "dense, iso-FLOP", "Engram, shuffled"):
            gains = [-d for d in paired(scores, "Engram", other, **where)]
            if gains:
                mean, sd = statistics.mean(gains), spread(gains)
                what = f"Engram below {other} by .05 and by 3 deviations of the differences"
                found.append({**where, "what": what, "mean": mean, "sd": sd, "holds": mean >= max(0.05, 3 * sd)})
        control = paired(scores, "Engram, shuffled", BASE, **where)
        if control:
            mean = statistics.mean(control)
            what = "Engram with shuffled ids within .03 of dense"
            found.append({**where, "what": what, "mean": mean, "sd": spread(control), "holds": abs(mean) <= 0.03})
        gains = {c: [-d for d in paired(scores, "Engram", BASE, context=c, **where)] for c in CONTEXTS}
        if gains["trigram"] and gains["unseen"]:
            more = [a - b for a, b in zip(gains["trigram"], gains["unseen"], strict=True)]
            mean = statistics.mean(more)
            what = "Engram gains more after trigrams that training has seen than after others"
            found.append({**where, "what": what, "mean": mean, "sd": spread(more), "holds": mean > 0})
    return found


def number(value: float | None, digits: int = 3) -> str:
    """Without the zero before the point."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def mean_sd(values: Sequence[float], digits: int = 3) -> str:
    """Mean and deviation."""
    if not values:
        return "-"
    if len(values) == 1:
        return number(values[0], digits)
    return f"{number(statistics.mean(values), digits)} ± {number(spread(values), digits)}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def recorded(report: Mapping[str, Any]) -> list[records.Record]:
    """Bits per byte of each corpus, number of training tokens and arm."""
    found, scores = [], report["scores"]
    keys = dict.fromkeys((s["corpus"], s["tokens"], s["arm"]) for s in scores)
    for corpus, tokens, arm in keys:
        where = {"corpus": corpus, "tokens": tokens}
        peers = []
        if arm != BASE and (less := paired(scores, arm, BASE, **where)):
            peers.append(records.peer(BASE, records.figures(less, statistic="mean"), kind="difference"))
        values = records.figures(_values(scores, arm, where), statistic="mean")
        case = {**where, "arm": arm}
        found.append(records.record("test", "bits per byte", case=case, better="lower", peers=peers, **values))
    return found


def page(report: Mapping[str, Any]) -> str:
    """docs/results/lm.md."""
    parts = [_head(report)]
    parts += [_corpus(report, corpus) for corpus in report["corpora"]]
    parts += [_bars(report), _rates(report), _limits(report)]
    return "\n\n".join(parts) + "\n"


def _head(report: Mapping[str, Any]) -> str:
    model, machine = report["model"], report["machine"]
    commands = report["command"].replace(" && ", "\n    ")
    seeds = len(report["seeds"])
    return f"""# Memory tables in a small language model

Bits per byte on the test split (lower is better), mean ± deviation over {seeds} seeds. Written by

    {commands}

on {machine["cores"]} cores ({machine["cpu"]}, torch {machine["packages"]["torch"]}); all figures are in
`benchmarks/results/lm.json`. The decoder has {model["num_layers"]} blocks of width {model["dim"]}, feed-forward layers
of {model["hidden"]}, a context of {model["context"]} tokens, and a byte-level BPE tokenizer that was trained on the
training split only. `benchmarks/lm.py` says what each arm is.

Rates are climbed on validation for each arm and corpus, rows apart from the dense part, until no neighbour is better.
Arms of one seed share initial values, sequences and their order, so differences are paired by seed. The last three
columns are of tokens that follow three tokens which training has seen in this order, two only, or neither; their shares
in brackets."""


def _corpus(report: Mapping[str, Any], corpus: str) -> str:
    facts = report["corpora"][corpus]["splits"]
    scores = report["scores"]
    arms = list(dict.fromkeys(s["arm"] for s in scores if s["corpus"] == corpus))
    blocks = [
        f"## {corpus.capitalize()}\n\n{facts['train']['bytes'] / 1e6:.1f} MB of training text in "
        f"{facts['train']['documents']:,} documents, {facts['train']['tokens']:,} tokens."
    ]
    for tokens in report["tokens"]:
        where = {"corpus": corpus, "tokens": tokens}
        rows = []
        for arm in sorted(arms, key=lambda a: statistics.mean(_values(scores, a, where))):
            differences = [] if arm == BASE else paired(scores, arm, BASE, **where)
            size = _sizes(report, arm, where)
            cells = [_values(scores, arm, where, context=c) for c in CONTEXTS]
            rows.append([arm, mean_sd(_values(scores, arm, where)), mean_sd(differences), *size, *map(mean_sd, cells)])
        share = select(scores, arm=arms[0], **where)[0]["contexts"]
        names = [f"{SEEN[c]} ({share[c]['share']:.0%})" for c in CONTEXTS]
        columns = ["arm", "bits per byte", "against dense", "k params: dense, rows", *names]
        blocks.append(f"{tokens:,} training tokens:\n\n{table(columns, rows)}")
    return "\n\n".join(blocks)


def _values(
    scores: Sequence[Mapping[str, Any]], arm: str, where: Mapping[str, Any], *, context: str | None = None
) -> list[float]:
    own = select(scores, arm=arm, **where)
    found = [s["bits_per_byte"] if context is None else s["contexts"][context]["bits_per_byte"] for s in own]
    return [value for value in found if value is not None]


def _sizes(report: Mapping[str, Any], arm: str, where: Mapping[str, Any]) -> list[str]:
    runs = [r for r in report["runs"] if r["arm"] == arm and r["corpus"] == where["corpus"]]
    if not runs:
        return ["-"]
    return [f"{runs[0]['dense_parameters'] / 1000:,.0f}, {runs[0]['row_parameters'] / 1000:,.0f}"]


def _bars(report: Mapping[str, Any]) -> str:
    rows = [
        [b["corpus"], b["what"], f"{number(b['mean'])} ± {number(b['sd'])}", "yes" if b["holds"] else "**no**"]
        for b in report["bars"]
    ]
    return f"## What was asked, at {max(report['tokens']):,} tokens\n\n" + table(
        ["corpus", "bar", "measured", "holds"], rows
    )


def _rates(report: Mapping[str, Any]) -> str:
    chosen = report["tuned"]["chosen"]
    rows = []
    for entry in chosen:
        tried = [t for t in report["tuned"]["tried"] if (t["arm"], t["corpus"]) == (entry["arm"], entry["corpus"])]
        dense = sorted({t["lr"] for t in tried})
        own_rows = sorted({t["row_lr"] for t in tried})
        rows.append(
            [
                entry["corpus"],
                entry["arm"],
                f"{entry['lr']:g} of {', '.join(f'{v:g}' for v in dense)}",
                "-" if entry["row_lr"] is None else f"{entry['row_lr']:g} of {', '.join(f'{v:g}' for v in own_rows)}",
            ]
        )
    head = f"## Rates\n\nChosen on validation at {min(report['tokens']):,} tokens with seed {report['seeds'][0]}:\n\n"
    return head + table(["corpus", "arm", "dense rate", "row rate"], rows)


def _limits(report: Mapping[str, Any]) -> str:
    """What this scale can and cannot show."""
    return f"""## What this can and cannot show

It shows that the tables learn, through this code, what they are meant to learn: the sign and the rough size of the
change in bits per byte at equal tokens on these corpora, that the gain comes from the ids (the control with shuffled
ids has the same rows and does the same work) and where it falls (after n-grams that training has seen).

It does not show how the methods rank in a model of use. The decoder has a few hundred thousand dense parameters and the
tables have millions: an equal number of *parameters* is out of reach here, only equal work per token is compared. A
Kneser-Ney model of 1998 is a serious rival at this size and is none of a large model. Text of a few megabytes flatters
n-gram memory, the more so where a corpus is read more than once. There is nothing here about tasks, long contexts,
reasoning, or the speed of a GPU; and {len(report["seeds"])} seeds tell a deviation only roughly. MemoryFormer replaces
feed-forward layers only, and its paper compares at much larger widths."""
