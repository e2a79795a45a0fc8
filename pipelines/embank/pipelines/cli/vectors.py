"""The commands `embank compress` and `embank align`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embank.pipelines.cli import show
from embank.tables.wording import human_bytes

if TYPE_CHECKING:
    from embank.pipelines.vectors.align import AlignReport
    from embank.pipelines.vectors.compress import Compressed
    from embank.pipelines.vectors.trials import Trial


def compress(
    vectors: Annotated[Path, typer.Argument(help="A file of vectors: .parquet, .npy or .safetensors.")],
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist.")],
    codec: Annotated[
        str, typer.Option(help="How vectors are held, see `embank codecs`; auto, and several by commas, need --budget.")
    ] = "auto",
    budget: Annotated[
        float | None, typer.Option(help="Share of the fp32 bytes; the codec that keeps recall@10 best is taken.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Of Parquet: the column of vectors, where several may be.")] = None,
    id_column: Annotated[
        str | None, typer.Option(help='Of Parquet: the column of keys, where several may be; "" for none.')
    ] = None,
    tensor: Annotated[str | None, typer.Option(help="Of safetensors: the matrix, where there are several.")] = None,
    metric: Annotated[str, typer.Option(help="What the choice is by: cosine or inner_product.")] = "cosine",
    queries: Annotated[int, typer.Option(help="Queries to choose by, and as many others to report.")] = 512,
    sample_rows: Annotated[int, typer.Option(help="Codecs are tried on at most so many vectors.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Of the draws of queries and vectors.")] = 0,
) -> None:
    """Write vectors of any origin in fewer bytes, with a report of what is kept: recall@1, 10 and 100 by cosine and
    inner product, and a picture of bytes against recall.

    `load_vectors` reads the folder, by row or by key; so does `load_bundle`.

    Example: `embank compress chunks.parquet --codec int8,int4,pca96+int8 --budget 0.15 --out chunks-small`
    """
    from embank.pipelines.vectors.compress import compress_vectors

    with show.preparing() as reporter:
        made = compress_vectors(
            vectors,
            out,
            codec=codec,
            budget=budget,
            column=column,
            id_column=id_column,
            tensor=tensor,
            metric=metric,
            num_queries=queries,
            sample_rows=sample_rows,
            seed=seed,
            reporter=reporter,
        )
    _compressed(out, made)


def align(
    paths: Annotated[
        list[Path], typer.Argument(help="OLD NEW: bundles, runs or files of vectors. With --apply: MAP, made before.")
    ],
    out: Annotated[Path, typer.Option(help="The map's folder; with --apply a .npy or .parquet file. Must not exist.")],
    apply: Annotated[Path | None, typer.Option(help="New vectors to map into the old space, by MAP.")] = None,
    kind: Annotated[str, typer.Option(help="orthogonal, affine, or auto: the better one on validation ids.")] = "auto",
    table: Annotated[str | None, typer.Option(help="Of bundles that have several.")] = None,
    column: Annotated[str | None, typer.Option(help="Of Parquet: the column of vectors, where several may be.")] = None,
    id_column: Annotated[
        str | None, typer.Option(help='Of Parquet: the column of keys, where several may be; "" for none.')
    ] = None,
    tensor: Annotated[str | None, typer.Option(help="Of safetensors: the matrix, where there are several.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of ids that are held out.")] = 0,
) -> None:
    """Fit the map from a new training's vectors to the old one's, so that what was built on the old ones goes on
    working with new ones; or apply one.

    Example: `embank align runs/monday runs/tuesday --table item_id --out maps/tuesday`
    """
    from embank.pipelines.vectors.align import align_vectors
    from embank.pipelines.vectors.mapping import apply_alignment
    from embank.tables.errors import ConfigError

    where = {"table": table, "column": column, "id_column": id_column, "tensor": tensor}
    if len(paths) != (2 if apply is None else 1):
        raise ConfigError(
            f"{len(paths)} paths were given; give OLD NEW --out MAP, or MAP --apply VECTORS --out FILE to use a map"
        )
    with show.preparing() as reporter:
        if apply is not None:
            num = apply_alignment(paths[0], apply, out, **where, reporter=reporter)
            report = None
        else:
            report = align_vectors(paths[0], paths[1], out, kind=kind, seed=seed, **where, reporter=reporter)  # type: ignore[arg-type]
    if report is None:
        _say(f"{out}: {num:,} vectors")
    else:
        _aligned(out, report)


def _aligned(out: Path, report: "AlignReport") -> None:
    rows = []
    if report.before is not None:
        rows.append(["as they are", "-", f"{report.before.recall:.4f}", f"{report.before.cosine:.4f}"])
    for name, after in report.after.items():
        shown = f"{name} *" if name == report.kind else name
        rows.append([shown, f"{report.valid[name].recall:.4f}", f"{after.recall:.4f}", f"{after.cosine:.4f}"])
    show.table(["new vectors", "valid recall@10", "test recall@10", "test cosine"], rows)
    _say(
        f"{report.num_matched:,} ids in both, by {report.by}; {report.only_old:,} in the old source alone, "
        f"{report.only_new:,} in the new one"
    )
    _say(f"{out}: {report.kind} map from {report.new_dim} to {report.old_dim} numbers; see {out / 'report.md'}")


def _compressed(out: Path, made: "Compressed") -> None:
    """What was tried, and what was written."""
    from embank.pipelines.vectors.neighbours import recall_at

    def cells(trial: "Trial", name: str) -> list[str]:
        told = (recall_at(part, made.metric) for part in (trial.valid, trial.test))
        recalls = ["-" if value is None else f"{value:.4f}" for value in told]
        return [name, f"{trial.nbytes:,}", f"{trial.share:.4f}", f"{trial.lost:.4f}", f"{trial.cosine:.4f}", *recalls]

    trials = sorted(made.trials, key=lambda trial: -trial.share)
    show.table(
        ["codec", "bytes", "of fp32", "lost", "cosine", "valid recall@10", "test recall@10"],
        [cells(trial, f"{trial.codec} *" if trial.codec == made.codec else trial.codec) for trial in trials],
    )
    for name, why in made.refused.items():
        _say(f"{name}: {why}")
    tried, chosen = made.trials[0].num_rows, made.chosen
    if tried < made.num_rows:
        recall = recall_at(chosen.test, made.metric) or 0.0
        _say(f"tried on {tried:,} vectors; {made.codec} on all {made.num_rows:,} has test recall@10 {recall:.4f}")
    _say(
        f"{out}: {made.num_rows:,} vectors of {made.dim:,} in {made.codec}, {chosen.nbytes:,} bytes "
        f"({human_bytes(chosen.nbytes)}), {chosen.share:.4f} of fp32; see {out / 'report.md'}"
    )


def _say(text: str) -> None:
    show.out.print(text, markup=False)
