"""The command `embank serve`."""

from pathlib import Path
from typing import Annotated

import typer

from embank.pipelines.cli import show


def serve(
    bundle: Annotated[
        Path,
        typer.Argument(help="A bundle, a run directory, or a folder whose `current` names the bundle beside it."),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one per core.")] = None,
    max_rows: Annotated[int, typer.Option(help="Rows of a request.")] = 8192,
    max_body: Annotated[int, typer.Option(help="Bytes of a request.")] = 8 * 2**20,
    timeout: Annotated[float, typer.Option(help="Seconds for a request.")] = 10.0,
    batch_rows: Annotated[int, typer.Option(help="Rows that are scored together, if so many wait.")] = 1024,
    batch_wait_ms: Annotated[
        float, typer.Option(help="Milliseconds that a request waits for others while several clients ask.")
    ] = 1.0,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="EMBANK_SERVE_TOKEN",
            show_envvar=True,
            help="Needed by /reload from then on, from any machine; without it only this machine may reload.",
        ),
    ] = None,
) -> None:
    """Answer requests over HTTP with the scores of raw rows: /score, /embed, /health, /ready, /metrics, /reload, /docs.

    SIGTERM and Ctrl-C let requests end that have begun.

    Example: `embank serve runs/hash --port 8000`
    """
    from embank.pipelines.serve.server import serve as serve_bundle
    from embank.pipelines.serve.settings import Settings
    from embank.pipelines.sweep.children import num_cores

    settings = Settings(
        host=host,
        port=port,
        workers=num_cores() if workers is None else workers,
        max_rows=max_rows,
        max_body=max_body,
        timeout_s=timeout,
        batch_rows=batch_rows,
        batch_wait_ms=batch_wait_ms,
        token=token,
    )
    serve_bundle(bundle, settings, note=show.line)
