"""The command `embank search`."""

from pathlib import Path
from typing import Annotated

import typer

from embank.pipelines.cli import show


def search(
    config: Annotated[Path, typer.Argument(help="The YAML configuration; what is searched replaces parts of it.")],
    out: Annotated[Path, typer.Option(help="The search's directory.")],
    space: Annotated[
        str,
        typer.Option(
            help="`widths` of each feature's rows, or `rows` (their number as well), on a supernet; `methods` of each "
            "feature, one `unified` table, or `full` configurations, by training; or a SPACE.yaml."
        ),
    ] = "widths",
    sampler: Annotated[str, typer.Option(help="ea, profile, nsga2, tpe, gp or random.")] = "ea",
    budget: Annotated[
        str | None, typer.Option(help="Serving bytes / bytes of the plain tables; several, separated by commas.")
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="One study for all budgets, with bytes as a second objective.")
    ] = False,
    trials: Annotated[int, typer.Option(help="Trials of each study, those that it has already included.")] = 600,
    metric: Annotated[str, typer.Option(help="auc or logloss, on validation.")] = "auc",
    max_rows: Annotated[int | None, typer.Option(help="Validation rows that a candidate is scored on, about.")] = None,
    retrain: Annotated[
        int, typer.Option(help="Candidates that are trained anew for each budget; 0 cuts the best from the supernet.")
    ] = 5,
    train_seeds: Annotated[str | None, typer.Option(help="Seeds that each of them is trained with.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    storage: Annotated[
        str | None, typer.Option(help="A journal file or a database's URL; by default OUT/study.journal.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the study in the storage; by default from data, model and space.")] = "",
    supernet: Annotated[Path | None, typer.Option(help="A supernet's run directory, instead of training one.")] = None,
    workers: Annotated[int, typer.Option(help="Processes on this machine.")] = 1,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the configuration.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped search, or with more trials.")] = False,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Serve Optuna's dashboard, during the search and after it.")
    ] = False,
    dashboard_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8080,
) -> None:
    """Search the shape of tables with Optuna, train the best candidates, and write the best configuration.

    Several machines share a study when each starts the command with the same --storage (and its own --out).

    Example: `embank search deepfm.yaml --space rows --sampler profile --budget 0.2 --trials 300 --out searches/first`

    Whole configurations: `embank search deepfm.yaml --space full --sampler tpe --budget 0.1 --trials 40 --out
    searches/full`
    """
    from embank.pipelines.config.file import read_config, told_origin
    from embank.pipelines.config.run import parse_config
    from embank.pipelines.search.read import make_plan
    from embank.pipelines.search.search import Search
    from embank.pipelines.sweep.plan import numbers

    raw = read_config(config, overrides=set_ or [])
    seeds = [parse_config(raw, origin=told_origin(config, set_ or [])).train.seed]
    plan = make_plan(
        raw,
        out=out,
        space=space,
        sampler=sampler,
        budgets=[] if budget is None else numbers(budget, option="--budget", kind=float),
        front=front,
        num_trials=trials,
        metric=metric,  # type: ignore[arg-type]
        max_rows=max_rows,
        num_retrained=retrain,
        train_seeds=seeds if train_seeds is None else numbers(train_seeds, option="--train-seeds", kind=int),
        seed=seed,
        storage=storage,
        name=name,
        supernet=None if supernet is None else str(supernet),
        workers=workers,
    )
    with show.dashboard(dashboard_port if dashboard else None) as opened, show.training() as reporter:
        task = Search(plan, out, reporter=reporter, opened=opened)
        task.run(resume=resume)
        show.search(task.folder, budgets=plan.budgets)
