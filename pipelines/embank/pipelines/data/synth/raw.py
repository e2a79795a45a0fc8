"""Synthetic logs in the layout of Criteo's Kaggle data."""

import contextlib
from pathlib import Path

from embank.pipelines.data.synth.fields import CRITEO_FIELDS, table_sizes
from embank.pipelines.data.synth.model import DEFAULT_ALPHA, DEFAULT_CLICK_RATE, UNIT_ROWS, PlantedModel
from embank.pipelines.data.synth.report import Observer, SynthReport, write_json
from embank.pipelines.data.synth.text import render
from embank.pipelines.reporting import Phase, Reporter
from embank.tables.errors import ConfigError, DataError
from embank.tables.storage.atomic import publish_file, temporary_beside
from embank.tables.storage.refusals import cause_of, fitting, refused

RAW_STREAM = 1


def synth(
    like: str = "criteo",
    *,
    rows: int,
    out: str | Path,
    seed: int = 0,
    alpha: float = DEFAULT_ALPHA,
    scale: float = 1.0,
    click_rate: float = DEFAULT_CLICK_RATE,
    chunk_rows: int = 2048,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> SynthReport:
    """Write a synthetic click log as text, and the report beside it as `OUT.json`.

    Lines are as in Criteo's Kaggle data: label, 13 integer counts, 26 tokens of 8 hex digits, separated by tabs,
    without a header, missing cells empty. The content depends on (rows, seed, alpha, scale, click_rate) alone, and
    fewer rows are a prefix of more. Model and distributions: see `embank.pipelines.data.synth.model`.

    Args:
        like: "criteo".
        rows: number of lines.
        out: the file; it appears under its name when it is complete.
        alpha: exponent of the Zipf distribution of every field's ids.
        scale: total size of the id spaces relative to the published 33,762,577 (0.03 gives about 1 M); small fields
            keep their size, see `table_sizes`.
        click_rate: expected share of label 1.
        chunk_rows: lines rendered at once; no effect on the content.
        overwrite: replace an existing file.

    Raises:
        ConfigError: an argument out of range.
        DataError: the file exists.
    """
    _check(like, rows, scale, chunk_rows)
    out = Path(out)
    described = out.with_name(f"{out.name}.json")
    for path in (out, described):
        if path.is_dir():
            raise DataError(f"{path} is a folder. Give --out the name of a file.")
        if path.exists() and not overwrite:
            raise DataError(f"{path} exists. Give another name, or overwrite it with --overwrite.")
    sizes = table_sizes(round(scale * sum(field.cardinality for field in CRITEO_FIELDS)))
    num_tokens = [size - (field.missing > 0) for size, field in zip(sizes, CRITEO_FIELDS, strict=True)]
    model = PlantedModel(num_tokens=num_tokens, seed=seed, alpha=alpha, click_rate=click_rate)
    observer = Observer(num_tokens)
    phase = Phase(reporter or Reporter(), "write rows", total=rows, unit="rows")
    temporary, described_temporary = temporary_beside(out), temporary_beside(described)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for index, first in enumerate(range(0, rows, UNIT_ROWS)):
                num_rows = min(UNIT_ROWS, rows - first)
                unit = model.draw(RAW_STREAM, index)
                for start in range(0, num_rows, chunk_rows):
                    file.write(render(unit, start, min(start + chunk_rows, num_rows), seed=seed))
                observer.add(unit, num_rows)
                phase.advance(num_rows, rows=num_rows)
        report = observer.report(model, num_bytes=temporary.stat().st_size, table_sizes=sizes)
        write_json(described_temporary, report)
        _publish(temporary, out, overwrite=overwrite)
        publish_file(described_temporary, described, overwrite=True)
    except OSError as error:
        cure = fitting("make room or give another --out", error)
        raise refused(error)(f"{out} can't be written: {cause_of(error)}. Nothing was left behind; {cure}.") from error
    finally:
        for path in (temporary, described_temporary):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return report


def _publish(temporary: Path, out: Path, *, overwrite: bool) -> None:
    """Gives the file its name; one that has appeared in the meantime is left alone."""
    try:
        publish_file(temporary, out, overwrite=overwrite)
    except FileExistsError as error:
        raise DataError(f"{out} has appeared in the meantime and was left alone. Give another name.") from error


def _check(like: str, rows: int, scale: float, chunk_rows: int) -> None:
    if like != "criteo":
        raise ConfigError(f"there is no synthetic log like {like!r}; use 'criteo'.")
    if rows < 1:
        raise ConfigError(f"rows is {rows}; use 1 or more.")
    if not 0 < scale <= 30:
        raise ConfigError(f"scale is {scale}; use a number above 0 (1 is the published size, 30 the most).")
    if chunk_rows < 1:
        raise ConfigError(f"chunk_rows is {chunk_rows}; use 1 or more.")
