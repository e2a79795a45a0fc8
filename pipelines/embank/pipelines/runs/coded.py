"""A complete run under other codecs: the rows of its bundle coded anew and scored, without training and without
writing a bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embank.pipelines.runs.codecs import AUTO
from embank.pipelines.runs.evaluate import evaluate_scorer
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.records import read_record, write_record
from embank.pipelines.runs.scoring import Scorer
from embank.tables import Bundle, CheckpointError, ConfigError
from embank.tables.serving.bundle import is_bundle
from embank.tables.serving.codecs.registry import row_codec
from embank.tables.serving.recoding import recode_collection
from embank.tables.storage.checksums import CHECKSUMS, file_digest

UNCODED = "fp32"
"""The codec of a run as it was trained."""


def refuse_choice(codec: str) -> None:
    """Raises ConfigError for a name that is not that of a codec of rows alone."""
    if codec == AUTO:
        raise ConfigError(
            "codec 'auto' is chosen for each table of one run, by `embank export RUN --codec auto`; name codecs here"
        )
    row_codec(codec)


def coded_file(run: RunFolder, codec: str) -> Path:
    """Where the figures of a run under a codec are."""
    return run.path / "codecs" / f"{codec}.json"


def coded_figures(run: RunFolder, codec: str) -> dict[str, Any] | None:
    """What `evaluate_codecs` has found; None where that is missing, damaged or of another bundle.

    Returns:
        `valid` and `test`, see `evaluate`, and `serving_bytes`; or `refusal`, why the codec can't hold the run's rows.
    """
    path = coded_file(run, codec)
    if not path.is_file():
        return None
    try:
        record = read_record(path)
    except CheckpointError:  # it is made again from the bundle
        return None
    return record if not is_bundle(run.bundle) or record.get("bundle") == _digest(run) else None


def evaluate_codecs(path: Path, *, data: Path, codecs: Sequence[str]) -> None:
    """Scores validation and test rows by a run's bundle under each codec, and records the figures, codec by codec.

    Args:
        path: a complete run.
        data: its prepared folder.
        codecs: names.

    Raises:
        CheckpointError: the run's bundle is gone or damaged.
        WorkError, ConfigError: a record can't be written, see `refused`.
    """
    run = RunFolder(path)
    if not is_bundle(run.bundle):
        raise CheckpointError(
            f"run '{path}' has no bundle any more, whose rows could be coded; write it again with `embank export "
            f"{path} --out {run.bundle}`"
        )
    bundle = Bundle(run.bundle)
    plain, digest = bundle.tables(), _digest(run)
    for codec in codecs:
        record: dict[str, Any] = {"codec": codec, "bundle": digest}
        try:
            scorer = Scorer(bundle, tables=recode_collection(plain, codec=codec))
        except ConfigError as error:
            record["refusal"] = str(error)
        else:
            record |= {split: evaluate_scorer(scorer, data, split) for split in ("valid", "test")}
            record["serving_bytes"] = scorer.nbytes()
        file = coded_file(run, codec)
        file.parent.mkdir(exist_ok=True)
        write_record(file, record)


def _digest(run: RunFolder) -> str:
    """Stands for all files of the run's bundle."""
    return str(file_digest(run.bundle / CHECKSUMS)["sha256"])
