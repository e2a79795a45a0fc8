"""The commands `embank delta` and `embank apply`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embank.pipelines.cli import show
from embank.tables.wording import human_bytes

if TYPE_CHECKING:
    from embank.pipelines.deltas.deltas import DeltaReport


def delta(
    old: Annotated[Path, typer.Argument(help="The bundle that is served.")],
    new: Annotated[Path, typer.Argument(help="The bundle that takes its place.")],
    out: Annotated[Path, typer.Option(help="The delta's folder; must not exist.")],
    tolerance: Annotated[
        float, typer.Option(help="A row of which no number moved by more keeps its old numbers; 0 takes every bit.")
    ] = 0.0,
) -> None:
    """Write what changed from one bundle to the next: rows, the network, vocabularies.

    Example: `embank delta bundles/monday bundles/tuesday --out deltas/tuesday`
    """
    from embank.pipelines.deltas.deltas import make_delta

    report = make_delta(old, new, out, tolerance=tolerance)
    changed = [change for change in report.tables if change.num_changed or change.num_appended]
    if changed:
        show.table(
            ["table", "rows", "changed", "appended", "bytes"],
            [
                [c.name, f"{c.num_rows:,}", f"{c.num_changed:,}", f"{c.num_appended:,}", f"{c.nbytes:,}"]
                for c in changed
            ],
        )
    if len(changed) < len(report.tables):
        show.out.print(f"{len(report.tables) - len(changed)} of {len(report.tables)} tables did not change")
    tokens = [change for change in report.vocabularies if change.num_added or change.num_evicted or change.num_moved]
    if tokens:
        show.table(
            ["vocabulary", "tokens", "added", "evicted", "other id"],
            [
                [c.name, f"{c.num_tokens:,}", f"{c.num_added:,}", f"{c.num_evicted:,}", f"{c.num_moved:,}"]
                for c in tokens
            ],
        )
    if any(change.num_moved for change in tokens):
        show.line(
            "tokens have other ids than before, so that their rows moved too; prepare new data with --like, and deltas "
            "get small"
        )
    _sum_up(out, report)


def apply(
    bundle: Annotated[Path, typer.Argument(help="The bundle that the first delta was made from; it stays as it is.")],
    deltas: Annotated[list[Path], typer.Argument(help="Deltas, in the order in which they were made.")],
    out: Annotated[Path, typer.Option(help="The new bundle's folder; must not exist.")],
) -> None:
    """Write the bundle that deltas lead to: to the bit the one that they were made for, or nothing.

    Example: `embank apply bundles/monday deltas/tuesday deltas/wednesday --out bundles/wednesday`
    """
    from embank.pipelines.deltas.deltas import apply_delta

    _sum_up(out, apply_delta(bundle, deltas, out))


def _sum_up(out: Path, report: "DeltaReport") -> None:
    """Versions, sizes and time."""
    show.out.print(
        f"{out}: version {report.start} to {report.end}; delta {report.nbytes:,} bytes "
        f"({human_bytes(report.nbytes)}), {report.nbytes / report.bundle_nbytes:.1%} of the bundle's "
        f"{report.bundle_nbytes:,}; {report.seconds:.1f} s",
        markup=False,
    )
