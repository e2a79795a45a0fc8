"""`embank predict`."""

from pathlib import Path
from typing import Annotated

import typer

from embank.pipelines.cli import show


def predict(
    path: Annotated[Path, typer.Argument(help="A bundle or a run directory.")],
    input: Annotated[
        list[Path], typer.Option(help="A raw file in the layout of the training data, labels not needed; repeat.")
    ],
    out: Annotated[Path, typer.Option(help="The file of scores, .parquet or .csv.")],
    keep: Annotated[list[str] | None, typer.Option(help="A raw column to write beside the score; repeat.")] = None,
    format: Annotated[
        str | None,
        typer.Option(help="Of the input, where it is not that of the training data: csv, tsv, parquet, ..."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what a stopped call has left.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Score raw rows: a column `score`, the probability of a positive label, in the order of the input.

    Values that training did not have are counted. Scores equal those of `embank evaluate` for the same rows.

    Example: `embank predict runs/deepfm --input tomorrow.csv --keep user_id --out scores.parquet`
    """
    from embank.pipelines.runs.predict import predict as score_files

    with show.preparing() as reporter:
        done = score_files(
            path, input, out, keep=keep or [], format=format, resume=resume, overwrite=overwrite, reporter=reporter
        )
    show.predicted(done)
