"""The map from a new training's vectors to the old one's, fitted, chosen, told of, saved, applied."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from embank.compression import Alignment, fit_alignment
from embank.pipelines.reporting import Phase, Reporter
from embank.pipelines.vectors.files import VectorFile
from embank.pipelines.vectors.matrix import as_matrix
from embank.pipelines.vectors.neighbours import Queries, Recalls, nearest_of, recall_at, recalls, row_slices
from embank.pipelines.vectors.sources import Matched, matched, open_source
from embank.tables import ConfigError, DataError
from embank.tables.ids.hashing import generator_of
from embank.tables.storage.checksums import write_checksums
from embank.tables.storage.new_folder import new_folder
from embank.tables.version import embank_version
from embank.tables.wording import nearest_or_all

FORMAT, FORMAT_VERSION = "embank alignment", 1
MANIFEST, MAP, PAGE = "manifest.json", "map.safetensors", "report.md"
KINDS = ("orthogonal", "affine")
_SHARE, _MOST_HELD_OUT, _LEAST_PAIRS = 0.1, 2000, 10


@dataclass(frozen=True, kw_only=True)
class AlignedBy:
    """What a map does to vectors that it was not fitted to.

    Args:
        recall: of the old vector's 10 nearest old vectors, the share that the new vector finds among the old ones;
            by cosine.
        cosine: mean, between the new vector and the old one of the same id.
    """

    recall: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class AlignReport:
    """What `align_vectors` has done.

    Args:
        kind: of the map that was chosen.
        old_dim, new_dim: of the vectors.
        num_matched: ids in both sources.
        only_old, only_new: ids in one of them alone.
        by: what ids were matched by, "keys" or "rows".
        num_fitted, num_valid, num_test: ids that maps were fitted to, chosen by, and told of.
        valid: what each map does, on validation ids.
        before: of test ids without a map; None where the widths differ, so that there is nothing to compare.
        after: of test ids, each map.
        seed: of the draw.
    """

    kind: str
    old_dim: int
    new_dim: int
    num_matched: int
    only_old: int
    only_new: int
    by: str
    num_fitted: int
    num_valid: int
    num_test: int
    valid: dict[str, AlignedBy]
    before: AlignedBy | None
    after: dict[str, AlignedBy]
    seed: int


@torch.no_grad()
def align_vectors(
    old: str | Path,
    new: str | Path,
    out: str | Path,
    *,
    kind: Literal["auto", "orthogonal", "affine"] = "auto",
    table: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
    tensor: str | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> AlignReport:
    """Fits the map from a new training's vectors to the old one's, so that what was built on the old ones (an index, a
    ranker) goes on working with new vectors.

    Ids are matched by key, or by row where neither source has keys. A tenth of them, at most 2,000, is kept for
    choosing the map, and another tenth for telling of it.

    Args:
        old, new: bundles, runs, folders of `embank compress`, or files of vectors.
        out: the map's folder; must not exist.
        kind: of the map; "auto" takes the one with the better recall@10 on validation ids.
        table: of bundles that have several.
        column, id_column, tensor: of files of vectors, see `compress_vectors`; for both.
        seed: of the draw of ids.
        reporter: of the work.

    Raises:
        ConfigError: no such kind or table, or an orthogonal map between unlike widths.
        DataError: a source can't be used, too few ids are in both, or keys of one source alone.
        CheckpointError: a bundle is damaged, or `out` exists.

    Example:
        >>> import numpy
        >>> old = numpy.random.default_rng(0).normal(size=(500, 8)).astype("float32")
        >>> turn, _ = numpy.linalg.qr(numpy.random.default_rng(1).normal(size=(8, 8)))
        >>> numpy.save("old.npy", old)
        >>> numpy.save("new.npy", (old @ turn).astype("float32"))
        >>> report = align_vectors("old.npy", "new.npy", "map")
        >>> report.kind, report.after["orthogonal"].recall
        ('orthogonal', 1.0)
        >>> numpy.allclose(load_alignment("map").apply(old @ turn), old, atol=1e-5)
        True
    """
    if kind not in ("auto", *KINDS):
        raise ConfigError(f"there is no map '{kind}'; {nearest_or_all(kind, ('auto', *KINDS), label='maps')}")
    reporter, folder = reporter or Reporter(), Path(out)
    with new_folder(folder, kind="map") as temporary:
        sources = [
            open_source(path, table=table, column=column, id_column=id_column, tensor=tensor) for path in (old, new)
        ]
        kinds = _kinds(kind, *sources)
        pairs = matched(*sources)
        parts = _parts(pairs, *sources, seed=seed)
        kinds = _fitting(kinds, kind, len(parts["fit"]), *sources)
        with tempfile.TemporaryDirectory(dir=temporary.parent, prefix=f".{folder.name}.tmp-rows-") as scratch:
            old_RD, new_RM = (
                as_matrix(source, Path(scratch) / name, reporter=reporter)
                for source, name in zip(sources, ("old", "new"), strict=True)
            )
            for source, rows in zip(sources, (old_RD, new_RM), strict=True):
                _refuse_equal(source, rows)
            held_out = _HeldOut(old_RD, new_RM, pairs, reporter=reporter)
            maps = {}
            for one in kinds:
                phase = Phase(reporter, f"fitting {one}", total=len(parts["fit"]), unit="rows")
                maps[one] = fit_alignment(_pairs(old_RD, new_RM, pairs, parts["fit"], phase), kind=one)
            valid = held_out.of(parts["valid"], maps)
            test = held_out.of(parts["test"], maps)
        best = max(kinds, key=lambda one: (valid[one].recall, one == "orthogonal"))
        report = AlignReport(
            kind=best,
            old_dim=sources[0].dim,
            new_dim=sources[1].dim,
            num_matched=len(pairs.old_N),
            only_old=pairs.only_old,
            only_new=pairs.only_new,
            by=pairs.by,
            num_fitted=len(parts["fit"]),
            num_valid=len(parts["valid"]),
            num_test=len(parts["test"]),
            valid={name: found for name, found in valid.items() if name in maps},
            before=test.get("none"),
            after={name: found for name, found in test.items() if name in maps},
            seed=seed,
        )
        _write(temporary, maps[best], report, old=str(old), new=str(new))
    return report


def _kinds(kind: str, old: VectorFile, new: VectorFile) -> list[Any]:
    if kind != "auto":
        kinds = [kind]
    elif old.dim == new.dim:
        kinds = list(KINDS)
    else:
        kinds = ["affine"]
    if kind == "orthogonal" and old.dim != new.dim:
        raise ConfigError(
            f"'{new.path}' has vectors of {new.dim} numbers and '{old.path}' of {old.dim}: no orthogonal map leads "
            "from one to the other; use --kind affine"
        )
    return kinds


def _fitting(kinds: list[Any], kind: str, num: int, old: VectorFile, new: VectorFile) -> list[Any]:
    """Without an affine map that has more numbers than there are pairs to tell them: it would fit anything."""
    if "affine" not in kinds or num > new.dim:
        return kinds
    if kind == "auto" and len(kinds) > 1:
        return ["orthogonal"]
    raise DataError(
        f"an affine map from {new.dim} numbers needs more than {new.dim} ids to be fitted to, and there are {num} in "
        f"both '{old.path}' and '{new.path}' besides those held out; give more ids, or --kind orthogonal"
    )


def _parts(pairs: Matched, old: VectorFile, new: VectorFile, *, seed: int) -> dict[str, Tensor]:
    """Places among the matched ids: fitted to, chosen by, told of."""
    num = len(pairs.old_N)
    if num < _LEAST_PAIRS:
        cure = "Are the keys of one kind?" if pairs.by == "keys" else "Give files of more rows"
        raise DataError(
            f"{num} ids are both in '{old.path}' and in '{new.path}' (by {pairs.by}); a map needs at least "
            f"{_LEAST_PAIRS}. {cure}"
        )
    drawn = torch.randperm(num, generator=generator_of(seed, "alignment"))
    held_out = min(_MOST_HELD_OUT, max(1, round(num * _SHARE)))
    valid, test, fit = drawn[:held_out], drawn[held_out : 2 * held_out], drawn[2 * held_out :]
    return {"fit": fit.sort().values, "valid": valid, "test": test}


def _refuse_equal(source: VectorFile, rows_RD: Tensor) -> None:
    """Raises DataError where no vector is nearer to one than the others are."""
    if all(bool((rows_RD[part] == rows_RD[0]).all()) for part in row_slices(*rows_RD.shape)):
        raise source.refused("all vectors are equal, so that no map to or from them can be told; give trained ones")


def _pairs(
    old_RD: Tensor, new_RM: Tensor, pairs: Matched, chosen: Tensor, phase: Phase
) -> Iterator[tuple[Tensor, Tensor]]:
    for part in row_slices(len(chosen), max(old_RD.shape[1], new_RM.shape[1])):
        some = chosen[part]
        yield new_RM[pairs.new_N[some]], old_RD[pairs.old_N[some]]
        phase.advance(len(some), rows=len(some))


class _HeldOut:
    """Maps on ids that they were not fitted to: their new vectors look among all old ones but their own."""

    def __init__(self, old_RD: Tensor, new_RM: Tensor, pairs: Matched, *, reporter: Reporter) -> None:
        self.old_RD, self.new_RM, self.pairs, self.reporter = old_RD, new_RM, pairs, reporter

    def of(self, places: Tensor, maps: dict[Any, Alignment]) -> dict[str, AlignedBy]:
        """What each map does; "none" where vectors can be compared as they are."""
        old_QD, new_QM = self.old_RD[self.pairs.old_N[places]], self.new_RM[self.pairs.new_N[places]]
        own_Q = self.pairs.old_N[places]
        true = nearest_of(self.old_RD, Queries(rows_QD=old_QD, own_Q=own_Q))
        mapped: dict[str, Tensor] = {name: one(new_QM) for name, one in maps.items()}
        if old_QD.shape == new_QM.shape:
            mapped["none"] = new_QM
        told = {}
        for name, rows_QD in mapped.items():
            phase = Phase(self.reporter, f"comparing {name}", total=len(self.old_RD), unit="rows")
            found = nearest_of(
                self.old_RD,
                Queries(rows_QD=rows_QD, own_Q=own_Q),
                met=lambda rows, phase=phase: phase.advance(rows, rows=rows),  # type: ignore[misc]
            )
            recall: Recalls = recalls(self.old_RD, true, found)
            cosine = torch.nn.functional.cosine_similarity(rows_QD, old_QD, dim=1, eps=1e-30)
            told[name] = AlignedBy(recall=recall_at(recall, "cosine") or 0.0, cosine=float(cosine.double().mean()))
        return told


def _write(folder: Path, alignment: Alignment, report: AlignReport, *, old: str, new: str) -> None:
    save_file({"matrix": alignment.matrix_MD, "offset": alignment.offset_D}, folder / MAP)
    (folder / MAP).chmod(folder.stat().st_mode & 0o666)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "embank_version": embank_version(),
        "kind": alignment.kind,
        "old": Path(old).name,
        "new": Path(new).name,
        "report": asdict(report),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page(report, old=old, new=new), encoding="utf-8")
    write_checksums(folder)


def page(report: AlignReport, *, old: str, new: str) -> str:
    """The report as Markdown."""
    lines = [
        f"# From {Path(new).name} to {Path(old).name}: {report.kind}",
        "",
        f"{report.num_matched:,} ids are in both, by {report.by}; {report.only_old:,} in the old source alone, "
        f"{report.only_new:,} in the new one alone. Maps were fitted to {report.num_fitted:,} of them, chosen by "
        f"{report.num_valid:,} others (validation), and are told of by {report.num_test:,} others (test), drawn with "
        f"seed {report.seed}.",
        "",
        "| new vectors | valid recall@10 | test recall@10 | test cosine |",
        "|---|---|---|---|",
    ]
    if report.before is not None:
        lines.append(f"| as they are | - | {report.before.recall:.4f} | {report.before.cosine:.4f} |")
    for name, after in report.after.items():
        shown = f"**{name}**" if name == report.kind else name
        lines.append(f"| {shown} | {report.valid[name].recall:.4f} | {after.recall:.4f} | {after.cosine:.4f} |")
    lines += [
        "",
        "Recall@10: of the 10 old vectors nearest to an id's old vector, the share that are among the 10 nearest to "
        "its new vector, by cosine. Cosine: between the id's new and old vector.",
    ]
    return "\n".join(lines) + "\n"
