"""`embank predict`: raw rows in files to a file of scores, in the order of the input and in bounded memory.

Rows are encoded on one thread and scored on another. Every `PART_ROWS` rows a part is written into a folder beside the
output; the parts become the output when all rows are scored. A run that was stopped goes on after its last part.
"""

from __future__ import annotations

import hashlib
import json
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow.parquet as pq

from embank.pipelines.data.loading.ahead import Clock, run_ahead
from embank.pipelines.data.preprocessing.encode import RowEncoder
from embank.pipelines.data.preprocessing.encoded import Encoded
from embank.pipelines.data.sources.formats.base import Source
from embank.pipelines.data.sources.formats.partitions import is_hidden
from embank.pipelines.locks import hold_lock
from embank.pipelines.reporting import Phase, Reporter
from embank.pipelines.runs.kept import KeptColumns
from embank.pipelines.runs.model import BATCH_ROWS, ServedModel, bundle_of, load_model, refuse_non_finite
from embank.tables.errors import ConfigError, DataError, WorkError
from embank.tables.storage.atomic import publish_file, remove_folder, replace_text, temporary_beside
from embank.tables.storage.json_text import read_json
from embank.tables.storage.refusals import cause_of, is_full, refused

SCORE = "score"
PART_ROWS = 64 * BATCH_ROWS
_STATE = "state.json"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was predicted.

    Attributes:
        out: the file of scores.
        num_rows: of it.
        num_unknown: feature to how many of its values training did not have.
        seconds: that it took; of a resumed one, since it was resumed.
        seconds_scoring: of them, those that tables and network took.
        rows_scored: rows of those seconds.
        version: of the bundle.
    """

    out: Path
    num_rows: int
    num_unknown: dict[str, int]
    seconds: float
    seconds_scoring: float
    rows_scored: int
    version: str


@dataclass(frozen=True, kw_only=True)
class _Done:
    """How far the parts are."""

    rows: int = 0
    parts: int = 0
    unknown: dict[str, int]


def predict(
    path: str | Path,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    keep: Sequence[str] = (),
    format: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Prediction:
    """Scores raw rows.

    Args:
        path: a bundle, or a run directory.
        inputs: raw files in the layout of the training data (labels may be absent), or Parquet with the same columns.
        out: `.parquet` or `.csv`; a column `score`, the probability of a positive label, in the order of the input.
        keep: raw columns that are written too, before the score.
        format: of the files, where it is not that of the training data.
        resume: go on with what a stopped call has left.
        overwrite: replace an existing file.
        reporter: is told how far the work is.

    Raises:
        ConfigError, CheckpointError: the bundle can't score raw rows, or a file of it is damaged.
        DataError: the input or the output can't be used; the message names file, line, column and value.
        WorkError, ConfigError: the scores can't be written, see `refused`; what was done is kept for `resume`.
    """
    paths = [Path(one) for one in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    out = Path(out).absolute()
    model = load_model(path, verify=True)
    source = model.rules.open(paths, format=format)
    if SCORE in keep:
        raise ConfigError(f"a column {SCORE!r} can't be kept: it is the name of the scores. Rename it in the input.")
    kept = KeptColumns(source, keep, is_csv=out.suffix == ".csv")
    _refuse_out(out, source, paths, overwrite=overwrite)
    _refuse_within(out, bundle_of(path))
    parts = _Parts(out, identity=_identity(model, source, kept.names, format), overwrite=overwrite)
    held = f"another process is writing {out}. Wait for it, or give another --out."
    with hold_lock(out.with_name(f".{out.name}.lock"), held=held, error=DataError):
        try:
            return _predict(model, source, parts, kept=kept, resume=resume, reporter=reporter or Reporter())
        except (DataError, pl.exceptions.PolarsError):
            parts.abandon()
            raise
        except OSError as error:
            raise refused(error)(
                f"{error.filename or out}: {cause_of(error)}. {'Free some space' if is_full(error) else 'Mend it'} and "
                "give the same command with --resume: what was scored is kept."
            ) from error
        finally:
            out.with_name(f".{out.name}.lock").unlink(missing_ok=True)


def _predict(
    model: ServedModel, source: Source, parts: _Parts, *, kept: KeptColumns, resume: bool, reporter: Reporter
) -> Prediction:
    began = time.monotonic()
    done = parts.begin(resume=resume)
    if done.rows:
        reporter.note(f"going on after {done.rows:,} rows that are scored")
    phase = Phase(reporter, "scoring", total=source.total_bytes, unit="bytes")
    unknown, rows, first, scoring = Counter(done.unknown), 0, done.rows, 0.0
    part = _Part()
    with closing(_batches(model, source, kept, skip=done.rows, phase=phase)) as batches:
        for encoded, beside, where in batches:
            started = time.monotonic()
            scores = model.score_encoded(encoded)
            scoring += time.monotonic() - started
            refuse_non_finite(scores, where=where)
            part.add(beside, scores)
            unknown.update(encoded.unknown)
            rows += encoded.num_rows
            if part.num_rows >= PART_ROWS:
                parts.write(part.frame(), rows=first + rows, unknown=dict(unknown))
                part = _Part()
    if part.num_rows or first + rows == 0:
        parts.write(part.frame(), rows=first + rows, unknown=dict(unknown))
    if first + rows < done.rows or (first and rows == 0 and not parts.count):
        raise DataError(f"{source.name} has fewer rows than when it was begun to be scored. Score it again.")
    parts.join()
    return Prediction(
        out=parts.out,
        num_rows=first + rows,
        num_unknown={name: int(unknown[name]) for name in model.rules.index.facts},
        seconds=time.monotonic() - began,
        seconds_scoring=scoring,
        rows_scored=rows,
        version=model.version,
    )


class _Rows(NamedTuple):
    """Rows that wait to be scored.

    Args:
        encoded: them.
        beside: what is written too.
        where: a row to its place in words.
    """

    encoded: Encoded
    beside: pl.DataFrame
    where: Callable[[int], str]


class _Part:
    """Scored rows that are not written yet."""

    def __init__(self) -> None:
        self._frames, self.num_rows = list[pl.DataFrame](), 0

    def add(self, kept: pl.DataFrame, scores: Any) -> None:
        self._frames.append(kept.with_columns(pl.Series(SCORE, scores)))
        self.num_rows += len(scores)

    def frame(self) -> pl.DataFrame:
        if not self._frames:
            return pl.DataFrame({SCORE: []}, schema={SCORE: pl.Float64})
        return pl.concat(self._frames)


def _batches(
    model: ServedModel, source: Source, kept: KeptColumns, *, skip: int, phase: Phase
) -> Generator[_Rows, None, None]:
    """All rows but the first `skip`, in batches of BATCH_ROWS, as `embank evaluate` scores them."""
    waiting: list[_Rows] = []
    num_waiting = 0
    for rows, num_bytes in run_ahead(_encoded(model, source, kept, skip), depth=2, clock=Clock()):
        waiting.append(rows)
        num_waiting += rows.encoded.num_rows
        phase.advance(num_bytes, rows=rows.encoded.num_rows)
        if num_waiting >= BATCH_ROWS:
            joined = _joined(waiting)
            end = num_waiting - num_waiting % BATCH_ROWS
            for start in range(0, end, BATCH_ROWS):
                yield _cut(joined, start, start + BATCH_ROWS)
            waiting, num_waiting = [_cut(rows, end - num_waiting + rows.encoded.num_rows)], num_waiting - end
    if num_waiting:
        yield _joined(waiting)


def _joined(waiting: Sequence[_Rows]) -> _Rows:
    if len(waiting) == 1:
        return waiting[0]
    ends = list(accumulate(rows.encoded.num_rows for rows in waiting))
    places = [rows.where for rows in waiting]

    def where(row: int) -> str:
        place = bisect_right(ends, row)
        return places[place](row - (ends[place - 1] if place else 0))

    return _Rows(
        Encoded.concatenate([rows.encoded for rows in waiting]), pl.concat([rows.beside for rows in waiting]), where
    )


def _cut(rows: _Rows, start: int, stop: int | None = None) -> _Rows:
    """Rows `start` to `stop`, or to the last one."""
    encoded = rows.encoded.slice(start, rows.encoded.num_rows if stop is None else stop)
    return _Rows(encoded, rows.beside.slice(start, encoded.num_rows), lambda row: rows.where(start + row))


def _encoded(
    model: ServedModel, source: Source, kept: KeptColumns, skip: int
) -> Generator[tuple[_Rows, int], None, None]:
    encoder = RowEncoder(model.rules)
    wanted = list(dict.fromkeys([*model.rules.columns, *kept.names]))
    for chunk in source.chunks(wanted):
        height = chunk.frame.height
        if skip >= height:
            skip -= height
            continue
        if skip:
            before, where = skip, chunk.where
            chunk = replace(chunk, frame=chunk.frame.slice(skip), where=lambda row: where(row + before))  # noqa: B023
            skip = 0
        yield _Rows(encoder.encode(chunk), kept.of(chunk), chunk.where), chunk.num_bytes


def parts_of(out: Path) -> Path:
    """The folder of parts beside an output: hidden, so that a folder of inputs does not read it."""
    return out.with_name(f".{out.name}.parts")


class _Parts:
    """The folder of parts beside the output."""

    def __init__(self, out: Path, *, identity: dict[str, Any], overwrite: bool) -> None:
        self.out, self.folder, self._overwrite = out, parts_of(out), overwrite
        self.count, self.is_csv = 0, out.suffix == ".csv"
        self._identity, self._is_mine = identity, False

    def begin(self, *, resume: bool) -> _Done:
        """What is done already.

        Raises:
            DataError: there are parts and they are not to be gone on with, or are of other inputs or another model.
        """
        if not self.folder.exists() or not any(self.folder.iterdir()):
            self.folder.mkdir(exist_ok=True)
            self._is_mine = True
            self._save(_Done(unknown={}))
            return _Done(unknown={})
        if not (self.folder / _STATE).is_file():
            raise DataError(f"{self.folder} is in the way, and is none of ours. Move it, or give another --out.")
        state = read_json(self.folder / _STATE)
        if not resume:
            raise DataError(
                f"{self.folder} holds {state['done']['rows']:,} scored rows of a call that was stopped. Go on with "
                "--resume, or delete the folder."
            )
        for name, value in self._identity.items():
            if state["of"].get(name) != value:
                raise DataError(
                    f"{self.folder} was begun with another {name} ({state['of'].get(name)}, now {value}). Delete the "
                    "folder to begin again, or give what it was begun with."
                )
        done = _Done(**state["done"])
        self.count, self._is_mine = done.parts, True
        return done

    def abandon(self) -> None:
        """Removes what this call has begun: input that is mended is other input."""
        if self._is_mine:
            remove_folder(self.folder)

    def write(self, frame: pl.DataFrame, *, rows: int, unknown: dict[str, int]) -> None:
        path = self.folder / f"part-{self.count:05d}.parquet"
        temporary = temporary_beside(path)
        pq.write_table(frame.to_arrow(), temporary, compression="zstd")
        publish_file(temporary, path, overwrite=True)
        self.count += 1
        self._save(_Done(rows=rows, parts=self.count, unknown=unknown))

    def _save(self, done: _Done) -> None:
        text = json.dumps({"of": self._identity, "done": asdict(done)})
        replace_text(self.folder / _STATE, text, cure="make room and give the command again with --resume")

    def join(self) -> None:
        """The parts as one file, in place."""
        temporary = temporary_beside(self.out)
        try:
            if self.is_csv:
                with temporary.open("wb") as file:
                    for number, frame in enumerate(self._frames()):
                        frame.write_csv(file, include_header=number == 0)
            else:
                _write_parquet(temporary, self._frames())
            publish_file(temporary, self.out, overwrite=self._overwrite)
        except FileExistsError as error:
            raise WorkError(
                f"{self.out} has appeared in the meantime and was left alone. What was scored is kept: move the file "
                "and give the same command with --resume, or replace it by --resume --overwrite."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        remove_folder(self.folder)

    def _frames(self) -> Iterator[pl.DataFrame]:
        for number in range(self.count):
            path = self.folder / f"part-{number:05d}.parquet"
            try:
                yield pl.read_parquet(path, glob=False)
            except (OSError, pl.exceptions.PolarsError) as error:
                raise DataError(f"{path} is damaged, so all parts were removed. Score the input again.") from error


def _write_parquet(path: Path, frames: Iterator[pl.DataFrame]) -> None:
    first = next(frames).to_arrow()
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for frame in frames:
            writer.write_table(frame.to_arrow().cast(first.schema))


def _identity(model: ServedModel, source: Source, keep: Sequence[str], format: str | None) -> dict[str, Any]:
    """What decides the rows of a part."""
    files = [[str(file.absolute()), *_stamp(file)] for file in source.files]
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
    return {"bundle": model.checksum, "input": digest, "keep": list(keep), "format": format}


def _stamp(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _refuse_within(out: Path, bundle: Path) -> None:
    """Raises DataError for an output among the files of the model."""
    if out.resolve().is_relative_to(bundle.resolve()):
        raise DataError(f"{out} lies in {bundle}, the bundle that scores the rows. Give another --out.")


def _refuse_out(out: Path, source: Source, paths: Sequence[Path], *, overwrite: bool) -> None:
    if out.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"{out.name} ends neither in .parquet nor in .csv; give --out a name that does.")
    if out.is_dir():
        raise DataError(f"{out} is a folder. Give --out the name of a file.")
    if out.exists() and any(out.samefile(file) for file in source.files):
        raise DataError(f"{out} is an input too. Give another --out.")
    folder = next((path for path in paths if path.is_dir() and _is_read_from(path, out, source)), None)
    if folder is not None:
        raise DataError(
            f"{out} lies in the folder {folder}, whose *{out.suffix} files are the input: it would be one the next "
            "time. Give another --out."
        )
    if out.exists() and not overwrite:
        raise DataError(f"{out} exists already. Give another --out, or --overwrite to replace it.")
    if not out.parent.is_dir():
        raise DataError(f"there is no folder {out.parent} to write {out.name} into. Make it, or give another --out.")


def _is_read_from(folder: Path, out: Path, source: Source) -> bool:
    """Whether a folder of inputs would have an output among its files: in itself, or by way of a partition that is a
    link."""
    if not out.name.lower().endswith(tuple(source.suffixes)):
        return False
    place, root = out.resolve(), folder.resolve()
    if place.is_relative_to(root) and not is_hidden(place.relative_to(root)):
        return True
    listed = [file for file in source.files if file.is_relative_to(folder) and not is_hidden(file.relative_to(folder))]
    return place.parent in {file.parent.resolve() for file in listed} and not is_hidden(Path(out.name))
