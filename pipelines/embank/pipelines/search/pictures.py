"""Pictures of studies: the front, the history, what matters, and each parameter's values."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import optuna
from optuna.trial import FrozenTrial, TrialState

from embank.pipelines.runs.plots import COLORS, style
from embank.pipelines.search.retrain import Entry
from embank.tables.wording import human_bytes

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

_MOST_PANELS = 24


def complete(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that have a score."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def keeps_budget(trial: FrozenTrial) -> bool:
    """Whether a trial's constraints hold."""
    return all(value <= 0 for value in (trial.constraints or {}).values())


def plot_pareto(
    studies: Mapping[str, optuna.Study], entries: Sequence[Entry], path: Path, *, title: str, score: str
) -> None:
    """Every trial's score against its bytes, the front they make, and the candidates that were trained anew."""
    figure, axes = plt.subplots(figsize=(7.4, 4.8), layout="constrained")
    style(axes)
    points: list[tuple[int, float]] = []
    for color, (name, study) in zip(_cycled(len(studies)), studies.items(), strict=True):
        own = [(t.user_attrs["nbytes"], t.values[0]) for t in complete(study)]
        points += own
        axes.plot(*_columns(own), "o", color=color, markersize=3, alpha=0.35, label=f"{name} ({len(own)} trials)")
    best: list[tuple[int, float]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    axes.step(*_columns(best), where="post", color="#f0b429", linewidth=3, alpha=0.7, label="front")
    trained = [(e.nbytes, e.validation) for e in entries if e.validation is not None]
    if trained:
        axes.plot(*_columns(trained), "*", color=COLORS[1], markersize=10, label="trained anew")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
    axes.set(xlabel="serving bytes of all tables (log scale)", ylabel=score)
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _save(figure, path)


def plot_history(studies: Mapping[str, optuna.Study], path: Path, *, title: str, score: str) -> None:
    """Score by trial, and the best so far of those that keep the budget."""
    figure, axes = plt.subplots(figsize=(7.4, 4.2), layout="constrained")
    style(axes)
    for color, (name, study) in zip(_cycled(len(studies)), studies.items(), strict=True):
        trials = complete(study)
        best: list[tuple[float, float]] = []
        for trial in trials:
            if keeps_budget(trial):
                best.append((trial.number, max([trial.values[0], *(value for _, value in best[-1:])])))
        axes.plot(*_columns([(t.number, t.values[0]) for t in trials]), "o", color=color, markersize=3, alpha=0.3)
        axes.step(*_columns(best), where="post", color=color, linewidth=1.8, label=name)
    axes.set(xlabel="trial", ylabel=score)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _save(figure, path)


def plot_importance(studies: Mapping[str, optuna.Study], path: Path, *, title: str) -> None:
    """How much each parameter decides whether a trial is among the best tenth of those that keep the budget
    (PED-ANOVA), the most important ones."""
    found = {name: _importances(study) for name, study in studies.items()}
    found = {name: values for name, values in found.items() if values}
    names = sorted({n for v in found.values() for n in v}, key=lambda n: -sum(v.get(n, 0.0) for v in found.values()))
    names = names[:_MOST_PANELS]
    figure, axes = plt.subplots(
        figsize=(7.4, 1.2 + 0.26 * max(1, len(names)) * max(1, len(found))), layout="constrained"
    )
    style(axes)
    axes.set_title(title, fontsize=11)
    if not names:
        axes.text(0.5, 0.5, "too few trials", ha="center", transform=axes.transAxes)
        _save(figure, path)
        return
    height = 0.8 / len(found)
    for place, (color, (name, values)) in enumerate(zip(_cycled(len(found)), found.items(), strict=True)):
        at = [row + place * height for row in range(len(names))]
        axes.barh(at, [values.get(n, 0.0) for n in names], height=height, color=color, label=name)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(names))], names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("importance for being among the best tenth of those that keep the budget (shares)", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _save(figure, path)


def _importances(study: optuna.Study) -> dict[str, float]:
    """PED-ANOVA of the score of trials that keep the budget, of which the shares sum to 1; empty where they are too
    few, or none differ."""
    values = [t.values[0] for t in complete(study) if keeps_budget(t)]
    if len(values) < 4 or len(set(values)) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it looks for small targets, which is why they are negative
        return optuna.importance.get_param_importances(study, evaluator=evaluator, target=_to_be_small)


def _to_be_small(trial: FrozenTrial) -> float:
    """Minus the score; infinite over the budget, which Optuna leaves out."""
    return -trial.values[0] if keeps_budget(trial) else float("inf")


def plot_slices(studies: Mapping[str, optuna.Study], path: Path, *, title: str, score: str) -> None:
    """A panel for each parameter: the score of every trial against its value."""
    names = list(dict.fromkeys(n for s in studies.values() for t in complete(s) for n in t.user_attrs["candidate"]))
    important = {n: sum(_importances(s).get(n, 0.0) for s in studies.values()) for n in names}
    if len(names) > _MOST_PANELS:
        names = sorted(names, key=lambda n: -important[n])[:_MOST_PANELS]
    num_columns = min(4, max(1, len(names)))
    num_rows = -(-max(1, len(names)) // num_columns)
    figure, panels = plt.subplots(
        num_rows, num_columns, figsize=(3.1 * num_columns, 2.5 * num_rows + 0.4), squeeze=False, layout="constrained"
    )
    figure.suptitle(title, fontsize=11)
    for axes, name in zip(panels.flat, names, strict=False):
        _slice(axes, name, studies)
    for axes in list(panels.flat)[len(names) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(score, fontsize=8)
    _save(figure, path)


def _slice(axes: Any, name: str, studies: Mapping[str, optuna.Study]) -> None:
    style(axes)
    axes.set_title(name, fontsize=8.5)
    axes.tick_params(labelsize=7)
    places: dict[Any, int] = {}
    values = [t.user_attrs["candidate"].get(name) for s in studies.values() for t in complete(s)]
    is_text = any(isinstance(value, str) for value in values)
    if is_text:
        places = {value: place for place, value in enumerate(dict.fromkeys(v for v in values if v is not None))}
        axes.set_xticks(range(len(places)), list(places), rotation=60, fontsize=6.5)
    numbers = [value for value in values if isinstance(value, int | float)]
    if not is_text and numbers and min(numbers) > 0 and max(numbers) / min(numbers) > 20:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif not is_text and all(isinstance(value, int) for value in numbers):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for color, study in zip(_cycled(len(studies)), studies.values(), strict=True):
        trials = [t for t in complete(study) if name in t.user_attrs["candidate"]]
        at = [places.get(t.user_attrs["candidate"][name], t.user_attrs["candidate"][name]) for t in trials]
        axes.plot(at, [t.values[0] for t in trials], "o", color=color, markersize=2.5, alpha=0.35)


def _cycled(num: int) -> list[str]:
    return [COLORS[place % len(COLORS)] for place in range(num)]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [p[0] for p in points], [p[1] for p in points]


def _save(figure: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
    temporary.replace(path)
