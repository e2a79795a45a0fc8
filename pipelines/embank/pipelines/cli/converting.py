"""`embank convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embank.pipelines.cli import show
from embank.tables.wording import human_bytes

if TYPE_CHECKING:
    from embank.pipelines.convert.convert import Conversion


def convert(
    bundle: Annotated[Path, typer.Argument(help="A bundle or a run directory.")],
    to: Annotated[str, typer.Option(help="What others read: pt2, onnx, torchrec, parquet, safetensors or nve.")],
    out: Annotated[Path, typer.Option(help="The folder; must not exist.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A prepared folder with the vocabularies of the training data: its labelled rows compare AUC."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Of --data: train, valid or test.")] = "test",
    dtype: Annotated[
        str | None,
        typer.Option(help="Of rows: fp32 or fp16 for safetensors and nve; int8 and int4, too, for torchrec."),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(help="A table to write, without the network; repeat. All by default."),
    ] = None,
    tokens: Annotated[
        bool, typer.Option(help="In Parquet: write tokens beside ids, where the bundle has them.")
    ] = True,
) -> None:
    """Write a bundle as other systems read it. A second process that knows nothing of embank reads it, and has to give
    the same.

    The folder holds what was written, `read.py`, which reads it with the target's library alone, and `parity.json`:
    differences, AUC of both, bytes in memory, times.

    Example: `embank convert bundles/shop --to onnx --out onnx/shop --data data/shop`
    """
    from embank.pipelines.convert.convert import convert_bundle

    with show.preparing() as reporter:
        done = convert_bundle(
            bundle,
            to=to,
            out=out,
            data=data,
            split=split,
            dtype=dtype,
            tables=table or [],
            tokens=tokens,
            reporter=reporter,
        )
    _sum_up(done)


def _sum_up(done: "Conversion") -> None:
    """Differences, AUC, bytes."""
    report = done.report
    size = report["bytes"]
    kind = "numbers of rows" if report["compared"] == "rows" else report["compared"]
    rows = [[f"{kind} compared", f"{report['numbers']:,}"]]
    rows += [["largest difference", f"{report['max_difference']:.2g} (mean {report['mean_difference']:.2g})"]]
    if report["auc"] is not None:
        auc = report["auc"]
        told = " and ".join("undefined" if auc[key] is None else f"{auc[key]:.5f}" for key in ("bundle", "converted"))
        rows += [[f"AUC of the bundle and of it, {auc['rows']:,} rows", told]]
    rows += [["bytes written", f"{size['files_written']:,} ({human_bytes(size['files_written'])})"]]
    resident: dict[str, Any] = report["second_process"]["resident_bytes"]
    if resident:
        rows += [["bytes in memory of the second process", f"{resident['own']:,} and {resident['mapped']:,} mapped"]]
    rows += [
        [f"microseconds, {name}", f"{time:,.0f}"] for name, time in report["second_process"]["microseconds"].items()
    ]
    show.table(["", ""], rows)
    show.out.print(f"{done.path}: {done.target}; read.py reads it, parity.json has the figures", markup=False)
