"""The commands `embank prepare` and `embank drift`."""

from pathlib import Path
from typing import Annotated

import typer

from embank.pipelines.cli import show


def prepare(
    input: Annotated[list[Path], typer.Option(help="A raw file; repeat for several, in time order.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    format: Annotated[
        str | None,
        typer.Option(help="criteo, avazu, kdd12, movielens, csv, tsv or parquet; with --like, that of its data."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML: columns, label rule, split. Needed for csv, tsv, parquet; with --like, label and split only."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    like: Annotated[
        Path | None,
        typer.Option(help="A run, bundle or prepared folder whose vocabularies and transforms the rows are given."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="With --like: train, valid or test, for all rows.")] = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="With --like: the rows have no labels.")] = False,
) -> None:
    """Turn raw logs into training data: Parquet with bounded row groups, vocabularies, counts.

    Vocabularies and statistics are fitted on the training part only. Several inputs: repeat --input.

    Example: `embank prepare --format csv --input clicks.csv --config columns.yaml --out data/clicks`

    A new day, so that ids mean what they meant to a run: `embank prepare --like runs/first --input monday.csv --split
    test --out data/monday`
    """
    from embank.pipelines.data.prepare.prepare import prepare_from_cli

    with show.preparing() as reporter:
        schema = prepare_from_cli(
            format, input, out, config, overwrite, reporter, like=like, split=split, labelled=not unlabelled
        )
    show.prepared(out, schema)


def drift(
    path: Annotated[Path, typer.Argument(help="A run directory or a bundle.")],
    data: Annotated[Path, typer.Option(help="New rows, as `embank prepare --like` wrote them.")],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    by: Annotated[
        str | None,
        typer.Option(help="Calibration by the values of this feature; by default by day, where rows have times."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for drift.json, CSV files and a picture.")] = None,
) -> None:
    """Compare new rows with those that a model was trained on: unknown and missing values, shifts of each feature
    (population stability index), and calibration overall and by day.

    Example: `embank drift runs/first --data data/monday --out drift/monday`
    """
    from embank.pipelines.cli import show_diagnosis
    from embank.pipelines.diagnosis.drift import drift_report

    show_diagnosis.drift(drift_report(path, data=data, split=split, by=by, out=out))
