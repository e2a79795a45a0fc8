"""The commands about what a training has left: `embank evaluate`, `embank inspect`, `embank export`."""

from pathlib import Path
from typing import Annotated

import typer

from embank.pipelines.cli import show


def evaluate(
    path: Annotated[Path, typer.Argument(help="A run directory or a bundle.")],
    data: Annotated[Path, typer.Option(help="A prepared folder with the vocabularies of the training data.")],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
) -> None:
    """Evaluate a bundle, or the best checkpoint of a run: AUC, log loss, group AUC if the data has groups, bytes.

    The figures are added to `evaluations.jsonl` in the run directory, or to `BUNDLE.evaluations.jsonl` beside the
    bundle; where these can't be written, that is said, and the exit code is 0 all the same.

    Example: `embank evaluate runs/hash --data data/ml-100k --split test`
    """
    from embank.pipelines.runs.evaluate import figures_of, record

    values = figures_of(path, data=data, split=split)
    show.evaluation(values, recorded=record(values, path=path))


def inspect(
    path: Annotated[Path, typer.Argument(help="A run directory or a bundle.")],
    data: Annotated[
        Path | None, typer.Option(help="The prepared folder of a run, if it has moved since training.")
    ] = None,
) -> None:
    """Show the tables of a run or a bundle, their methods, shapes and bytes, after verifying every checksum.

    Example: `embank inspect runs/hash`
    """
    from embank.pipelines.runs.inspect import inspect_saved

    show.inspection(inspect_saved(path, data=data))


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path, typer.Option(help="The bundle's folder; must not exist.")],
    data: Annotated[
        Path | None, typer.Option(help="The prepared folder of an unfinished run, if it has moved since training.")
    ] = None,
    tokens: Annotated[
        bool, typer.Option(help="Also write the tokens of the vocabularies, which give ids their names.")
    ] = True,
    codec: Annotated[
        str | None,
        typer.Option(
            help="How rows are held, see `embank codecs`; auto chooses for each table, on validation. By default as "
            "the run's configuration says."
        ),
    ] = None,
    max_auc_loss: Annotated[
        float | None, typer.Option(help="What --codec auto may cost, in AUC on validation; by default 0.0005.")
    ] = None,
) -> None:
    """Write a run's best checkpoint as a bundle: preprocessing, packed tables, network, checksums. `embank predict` and
    `embank serve` score raw rows with it.

    A complete run has one already, in `RUN/bundle`, which is copied. One that is not complete is packed from its best
    checkpoint, or from the last if none was evaluated; so is one whose rows are to be held by a codec.

    Example: `embank export runs/hash --out bundles/hash --codec int4`
    """
    from embank.pipelines.cli import show_codecs
    from embank.pipelines.runs.export import export_run

    bundle = export_run(run, out=out, data=data, tokens=tokens, codec=codec, max_auc_loss=max_auc_loss)
    show_codecs.exported(out, bundle)
