"""A trained language model from its run directory."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embank.pipelines.lm.config import LmConfig, parse_lm_config
from embank.pipelines.lm.corpus import read_documents
from embank.pipelines.lm.evaluation import evaluate, figures, predict
from embank.pipelines.lm.model import LanguageModel, build_model
from embank.pipelines.lm.state import SavedLm
from embank.pipelines.lm.tokens import Corpus, corpus_of_run, stream_of
from embank.pipelines.runs.folder import RunFolder
from embank.tables.errors import CheckpointError
from embank.tables.memory import apply_overlay
from embank.tables.storage.checksums import verify_checksums


@dataclass(frozen=True, kw_only=True)
class OpenedLm:
    """A language model with what it came from.

    Args:
        model: in evaluation mode.
        corpus: with its tokenizer.
        config: of the run.
        step: of the checkpoint.
    """

    model: LanguageModel
    corpus: Corpus
    config: LmConfig
    step: int


@contextmanager
def opened_lm(run: str | Path, *, overlay: Path | None = None) -> Iterator[OpenedLm]:
    """The best checkpoint of a run; of an unfinished one without evaluation the last.

    Args:
        run: a run directory.
        overlay: edited rows that are written over the run's.

    Raises:
        CheckpointError: no run, no checkpoint, damaged, or an overlay of other rows.
    """
    folder = RunFolder(run)
    if not folder.is_run:
        raise CheckpointError(f"'{run}' holds no run; give the folder that `embank lm train --out` wrote")
    raw = folder.read_config()
    if "corpus" not in raw:
        raise CheckpointError(f"'{run}' is a run of `embank train`; give one of `embank lm train`")
    config = parse_lm_config(raw)
    corpus = _corpus(folder, config)
    saved = folder.saved()
    if not saved:
        raise CheckpointError(f"'{run}' has no checkpoint yet; train it first")
    last = SavedLm(saved[-1])
    best = last.progress.best_step
    chosen = last if best is None else SavedLm(folder.checkpoints / f"step-{best:09d}")
    with tempfile.TemporaryDirectory() as rows:  # a copy of the disk tier's files, apart from those of training
        config = replace(config, rows=replace(config.rows, directory=None))
        model = build_model(config, corpus, rows_folder=Path(rows))
        chosen.load_model(model)
        if overlay is not None:
            _apply(overlay, model)
        yield OpenedLm(model=model.train(False), corpus=corpus, config=config, step=chosen.progress.step)


def _apply(overlay: Path, model: LanguageModel) -> None:
    if model.tables is None:
        raise CheckpointError(f"'{overlay}' holds rows of a memory, and the run has none; give the run that was edited")
    apply_overlay(model.tables, overlay)


def _corpus(run: RunFolder, config: LmConfig) -> Corpus:
    folder = config.corpus.folder
    corpus = corpus_of_run(run.path) if folder is None else _shared_corpus(Path(folder), run)
    if run.fingerprint != corpus.fingerprint:
        raise CheckpointError(
            f"'{run.path}' was trained on a corpus with fingerprint {run.fingerprint}, '{corpus.folder}' has "
            f"{corpus.fingerprint}; restore it, or train again"
        )
    return corpus


def _shared_corpus(folder: Path, run: RunFolder) -> Corpus:
    """The corpus in a folder of its own."""
    if not folder.is_dir():
        raise CheckpointError(
            f"'{run.path}' was trained on the corpus in '{folder}' (corpus.folder), which is not there; restore it, "
            "or go to the directory in which the run was trained"
        )
    verify_checksums(folder, kind="corpus", cure="Restore it, or train again on another corpus.folder")
    return Corpus(folder)


def evaluate_run(
    run: str | Path,
    *,
    split: str,
    paths: Sequence[str | Path] | None = None,
    most: int | None = None,
    overlay: Path | None = None,
) -> dict[str, Any]:
    """Bits per byte of a run's best checkpoint.

    Args:
        run: a run directory.
        split: of its corpus.
        paths: text files and folders to read instead.
        most: tokens to read at most.
        overlay: edited rows that are written over the run's.

    Raises:
        CheckpointError, DataError: no run, no text.
    """
    with opened_lm(run, overlay=overlay) as lm:
        if paths is None:
            found = evaluate(lm.model, lm.corpus, split, most=most)
        else:
            stream = stream_of(lm.corpus.tokenizer, read_documents(paths, setting="--input"))
            found = figures(predict(lm.model, stream, most=most), lm.corpus.token_bytes_V)
        return {"split": split if paths is None else "given text", "step": lm.step, **found}
