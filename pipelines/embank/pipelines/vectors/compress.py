"""Vectors of any origin, held by a codec: tried, chosen, written, told of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from embank.pipelines.reporting import Reporter
from embank.pipelines.vectors.encoding import encoded
from embank.pipelines.vectors.files import VectorFile, open_vectors
from embank.pipelines.vectors.matrix import as_matrix
from embank.pipelines.vectors.neighbours import METRICS
from embank.pipelines.vectors.store import write_vectors
from embank.pipelines.vectors.trials import Comparison, Trial, best_of, sample_of
from embank.tables import CheckpointError, Coded, ConfigError
from embank.tables.serving.codecs.registry import row_codec
from embank.tables.storage.new_folder import new_folder
from embank.tables.wording import nearest_or_all

AUTO = "auto"
_SCRATCH = "scratch"


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What `compress_vectors` has done.

    Args:
        source: the file, as it was given.
        num_rows, dim: of the vectors.
        dtype: of a number in the source.
        codec: that was chosen.
        chosen: what it keeps of all vectors.
        trials: what each codec that was tried keeps.
        refused: codecs that can't hold these vectors, and why.
        budget: share of the fp32 bytes that was allowed.
        metric: that the choice is by.
        num_queries: of validation, and as many of test.
        seed: of the draws.
        key_column: of the source.
    """

    source: str
    num_rows: int
    dim: int
    dtype: str
    codec: str
    chosen: Trial
    trials: Sequence[Trial]
    refused: dict[str, str]
    budget: float | None
    metric: str
    num_queries: int
    seed: int
    key_column: str | None


@torch.no_grad()
def compress_vectors(
    path: str | Path,
    out: str | Path,
    *,
    codec: str | Sequence[str] = AUTO,
    budget: float | None = None,
    column: str | None = None,
    id_column: str | None = None,
    tensor: str | None = None,
    metric: str = "cosine",
    num_queries: int = 512,
    sample_rows: int = 100_000,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Compressed:
    """Writes vectors in the form of a codec, with a report of what it keeps: a folder that `load_vectors` and
    `load_bundle` read.

    With a budget, the codec is chosen that keeps recall@10 best on validation queries, among those that fit. Queries
    of another draw are what the report tells of. Where there are more vectors than `sample_rows`, codecs are tried on
    so many of them; the one that is chosen is compared on all.

    Args:
        path: .parquet, .npy or .safetensors.
        out: the folder; must not exist.
        codec: names of codecs, of which several need a budget; "auto" for a ladder of them.
        budget: share of the fp32 bytes.
        column, id_column, tensor: where the vectors and their keys are, see `open_vectors`.
        metric: "cosine" or "inner_product", what the choice is by.
        num_queries: drawn from the vectors for validation, and as many for test.
        sample_rows: vectors that codecs are tried on at most.
        seed: of the draws.
        reporter: of the work.

    Raises:
        DataError: the file, a column or a vector can't be used; names it.
        ConfigError: no such codec or metric, a wrong budget or number, or none where one is needed.
        BudgetError: no codec fits.
        CheckpointError: `out` exists.
        WorkError: it can't be written; nothing is left behind.

    Example:
        >>> import numpy
        >>> numpy.save("words.npy", numpy.random.default_rng(0).normal(size=(500, 32)).astype("float32"))
        >>> made = compress_vectors("words.npy", "words", codec=["int8", "int4", "binary"], budget=0.2)
        >>> made.codec, made.chosen.nbytes, load_vectors("words").nbytes()
        ('int4', 9000, 9000)
    """
    asked = _Asked.of(codec, budget=budget, metric=metric, num_queries=num_queries, sample_rows=sample_rows)
    reporter, folder = reporter or Reporter(), Path(out)
    if folder.exists():
        raise CheckpointError(f"'{folder}' exists already, and nothing is written over anything; choose another folder")
    source = open_vectors(path, column=column, id_column=id_column, tensor=tensor)
    codecs = asked.codecs if asked.codecs != (AUTO,) else ladder(source.dim)
    keys = source.keys()
    with new_folder(folder, kind="folder of vectors") as temporary:
        scratch = temporary / _SCRATCH
        scratch.mkdir()
        rows_RD = as_matrix(source, scratch / "rows", reporter=reporter)
        sample = sample_of(rows_RD, num_rows=sample_rows, seed=seed)
        comparison = Comparison(sample, num_queries=num_queries, seed=seed, reporter=reporter)
        trials, refused = comparison.tried(codecs, scratch, num_rows=len(rows_RD))
        chosen, coded = _chosen(list(trials.values()), comparison, rows_RD, scratch, asked=asked, seed=seed)
        made = Compressed(
            source=str(path),
            num_rows=len(rows_RD),
            dim=source.dim,
            dtype=source.dtype,
            codec=chosen.codec,
            chosen=chosen,
            trials=list(trials.values()),
            refused=refused,
            budget=budget,
            metric=metric,
            num_queries=comparison.num_queries,
            seed=seed,
            key_column=source.key_column,
        )
        _write(temporary, made, rows_RD, coded, source, keys=keys)
        return made


def ladder(dim: int) -> tuple[str, ...]:
    """What "auto" tries: affine codes of 8 to 2 bits, and principal components in them."""
    half, quarter = max(1, dim // 2), max(1, dim // 4)
    projected = [f"pca{width}+{inner}" for width in (half, quarter) for inner in ("int8", "int4")]
    return ("fp16", "int8", "int6", "int4", "int3", "int2", "binary", *dict.fromkeys(projected))


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What was asked for, checked before anything is read."""

    codecs: tuple[str, ...]
    budget: float | None
    metric: str

    @classmethod
    def of(
        cls, codec: str | Sequence[str], *, budget: float | None, metric: str, num_queries: int, sample_rows: int
    ) -> _Asked:
        names = codec.split(",") if isinstance(codec, str) else list(codec)
        codecs = tuple(dict.fromkeys(name.strip() for name in names))
        for name in codecs:
            if name != AUTO:
                row_codec(name, also=[AUTO])
        if not codecs:
            raise ConfigError("no codec is given; give one, several and a budget, or 'auto' and a budget")
        if AUTO in codecs and len(codecs) > 1:
            raise ConfigError("codec 'auto' stands for several; give it alone, or name all")
        if budget is None and (len(codecs) != 1 or codecs == (AUTO,)):
            raise ConfigError(
                f"codec '{','.join(codecs)}' is several; give one, or a budget to choose by (--budget 0.1: a tenth of "
                "the fp32 bytes)"
            )
        if budget is not None and not 0 < budget <= 1:
            raise ConfigError(f"budget {budget} is no share of the fp32 bytes; give more than 0 and at most 1")
        if metric not in METRICS:
            raise ConfigError(f"there is no metric '{metric}'; {nearest_or_all(metric, METRICS, label='metrics')}")
        for what, number, least in (("queries", num_queries, 1), ("sampled rows", sample_rows, 2)):
            if number < least:
                raise ConfigError(f"the number of {what} is {number}; give at least {least}")
        return cls(codecs=codecs, budget=budget, metric=metric)


def _chosen(
    trials: list[Trial], comparison: Comparison, rows_RD: torch.Tensor, scratch: Path, *, asked: _Asked, seed: int
) -> tuple[Trial, Coded]:
    """The best codec and all vectors in its form. Bytes that were an estimate are exact now, so another may be best."""
    is_whole = len(comparison.rows_RD) == len(rows_RD)
    while True:
        best = best_of(trials, budget=asked.budget, metric=asked.metric)
        kept = comparison.coded.get(best.codec) if is_whole else None
        coded = encoded(rows_RD, best.codec, scratch / "all") if kept is None else kept
        if is_whole:
            return best, coded
        exact = coded.nbytes() / (4 * rows_RD.numel())
        if asked.budget is None or exact <= asked.budget:
            num = max(1, comparison.num_queries)
            whole = Comparison(rows_RD, num_queries=num, seed=seed, reporter=comparison.reporter)
            return whole.of(coded, best.codec, num_rows=len(rows_RD), seconds=best.seconds), coded
        trials = [replace(t, share=exact, nbytes=coded.nbytes()) if t is best else t for t in trials]


def _write(
    folder: Path, made: Compressed, rows_RD: torch.Tensor, coded: Coded, source: VectorFile, *, keys: Any
) -> None:
    from embank.pipelines.vectors.report import report_files  # matplotlib takes a second to import

    facts = {
        "source": source.path.name,
        "column": source.column,
        "key_column": made.key_column,
        "budget": made.budget,
        "metric": made.metric,
        "seed": made.seed,
    }
    write_vectors(
        folder,
        rows_RD,
        coded,
        codec=made.codec,
        keys=keys,
        facts=facts,
        files=report_files(made),
        scratch=folder / _SCRATCH,
    )
