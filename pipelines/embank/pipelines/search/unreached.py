"""Studies none of whose candidates could be trained: the smallest budget that one of them would keep."""

from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from embank.compression.budget.floors import share_text
from embank.pipelines.config.run import Config
from embank.pipelines.search.configspace import ConfigSpace, TrainedSpace
from embank.pipelines.sweep.feasible import Feasibility
from embank.search.spaces import Candidate
from embank.tables import BudgetError, ConfigError

INFEASIBLE = "infeasible"
"""User attribute of a trial that was not trained: why its tables can't keep the budget."""

CLASH = "clash"
"""User attribute of a trial that was not trained: why its values can't be together."""


def is_unreached(study: optuna.Study) -> bool:
    """Whether candidates were tried, and none of them keeps the budget or has values that can be together."""
    done = _done(study)
    return bool(done) and all(INFEASIBLE in trial.user_attrs or CLASH in trial.user_attrs for trial in done)


def unreached(
    study: optuna.Study, space: TrainedSpace, *, config: Config, budget: float | None
) -> BudgetError | ConfigError:
    """What to raise of a study none of whose candidates could be trained.

    Args:
        study: whose trials.
        space: of the study.
        config: the search's.
        budget: of the study, or with several objectives one of its budgets.
    """
    done = [trial for trial in _done(study) if CLASH not in trial.user_attrs]
    if not done:
        return _clashing(study)
    feasibility = Feasibility(Path(config.data.path))
    candidates = [trial.user_attrs["candidate"] for trial in done]
    floors = [_floor_nbytes(candidate, space, feasibility) for candidate in candidates]
    floor_nbytes, place = min((nbytes, place) for place, nbytes in enumerate(floors))
    text = share_text(floor_nbytes, space.plain_nbytes)
    own = [f"{key} {value}" for key, value in candidates[place].items() if key.startswith("tables.")]
    tables = f" ({', '.join(own)})" if own else ""
    return BudgetError(
        f"no trial of study '{study.study_name}' was scored: none of its {len(done)} candidates keeps budget "
        f"{candidates[place].get('budget', budget)}. The smallest floor among them is budget {text}, "
        f"{floor_nbytes:,} bytes{tables}. Search in another --out with a larger --budget, or with methods, dims or "
        "codecs of fewer bytes",
        floor=floor_nbytes / space.plain_nbytes,
    )


def _clashing(study: optuna.Study) -> ConfigError:
    first, *others = _done(study)
    return ConfigError(
        f"no trial of study '{study.study_name}' was scored: none of its {1 + len(others)} candidates has values that "
        f"can be together; of the first, {first.user_attrs[CLASH].rstrip('.')}. Search in another --out with other "
        "values in the space or the configuration"
    )


def _done(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _floor_nbytes(candidate: Candidate, space: TrainedSpace, feasibility: Feasibility) -> int:
    """The fewest bytes of a candidate's tables; those of plain ones where its method has one size."""
    if not isinstance(space, ConfigSpace):
        return space.nbytes(candidate)
    try:
        config = space.config(candidate)
    except BudgetError:
        return space.plain_nbytes
    share = feasibility.floor(config)
    return space.plain_nbytes if share is None else space.served_floor(config, share)
