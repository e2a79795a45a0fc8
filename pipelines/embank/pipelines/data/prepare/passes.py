"""The stages of a preparation: spool, rank, write."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from embank.pipelines.config.columns import PrepareConfig
from embank.pipelines.data.loading.ahead import Clock, run_ahead
from embank.pipelines.data.prepare.encode import TIME_SPOOL, Encoder, Spooled
from embank.pipelines.data.prepare.moments import Moments
from embank.pipelines.data.prepare.numeric_fields import needs_moments
from embank.pipelines.data.prepare.parts_writer import Finisher, SplitWriter, write_split_rows
from embank.pipelines.data.prepare.plan import Codes, SplitPlan
from embank.pipelines.data.prepare.ranking import Ranked, count_codes, rank
from embank.pipelines.data.prepare.spool import BlockWriter, SpoolReader
from embank.pipelines.data.prepare.tokens import TokenIndex
from embank.pipelines.data.schema import SPLIT_NAMES, TIME_COLUMN, TIMES_FOLDER
from embank.pipelines.data.sources.formats.base import Chunk, Source
from embank.pipelines.reporting import Phase, Reporter
from embank.tables.errors import DataError
from embank.tables.storage.resources import refuse_exhausted
from embank.tables.wording import listing

_log = logging.getLogger(__name__)

SPOOL_ROWS = 262_144
_COUNT_BLOCKS = 16
_RANK_THREADS = 2


def spool_rows(source: Source, encoder: Encoder, path: Path, columns: Sequence[str], reporter: Reporter) -> int:
    """Pass one: parse and encode everything into the spool file `path`.

    Returns:
        Number of rows that the label rules dropped; the reporter is told of it too.
    """
    phase = Phase(reporter, "reading", total=source.total_bytes, unit="bytes")
    num_dropped = 0
    with BlockWriter(path, encoder.schema, block_rows=SPOOL_ROWS) as writer:
        for chunk in source.chunks(columns):
            spooled = _encoded(encoder, chunk)
            writer.write(spooled.table)
            num_dropped += spooled.num_dropped
            phase.advance(chunk.num_bytes, rows=chunk.frame.height)
    if num_dropped:
        reporter.note(
            f"{source.name}: {num_dropped:,} of {phase.rows:,} rows are left out, as they match neither label.positive "
            "nor label.negative"
        )
    return num_dropped


def _encoded(encoder: Encoder, chunk: Chunk) -> Spooled:
    """The boundary to the libraries that do it: what they raise is said in terms of the input."""
    try:
        return encoder.encode(chunk)
    except (MemoryError, RuntimeError) as error:
        refuse_exhausted(error, doing=f"reading {chunk.where(0)} and the rows after it")
        raise
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException) as error:
        refuse_exhausted(error, doing=f"reading {chunk.where(0)} and the rows after it")
        columns = listing([f"{name} ({dtype})" for name, dtype in chunk.frame.schema.items()])
        raise DataError(
            f"{chunk.where(0)} and the {chunk.frame.height - 1:,} rows after it can't be read as the configuration "
            "says. Columns and their types: "
            f"{columns}. Convert those of unusual types to text or numbers."
        ) from error


def rank_features(
    encoder: Encoder, spool_path: Path, plan: SplitPlan, config: PrepareConfig, source: str
) -> Generator[tuple[str, Ranked], None, None]:
    """Rank all features with a vocabulary, in their order; each dictionary is let go of as soon as it is ranked.

    Raises:
        DataError: a feature has no value in the training part.
    """

    def one(name: str) -> Ranked:
        index = encoder.indexes.pop(name)
        with closing(SpoolReader(spool_path)) as spool:
            return _rank_feature(name, index, spool, plan, min_count=config.min_count_of(name), source=source)

    pool = ThreadPoolExecutor(max_workers=_RANK_THREADS, thread_name_prefix="embank-rank")
    try:
        tasks: deque[tuple[str, Future[Ranked]]] = deque()
        for name in config.with_vocabulary:
            tasks.append((name, pool.submit(one, name)))
            if len(tasks) > _RANK_THREADS:
                done, task = tasks.popleft()
                yield done, task.result()
        while tasks:
            done, task = tasks.popleft()
            yield done, task.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _rank_feature(
    name: str, index: TokenIndex, spool: SpoolReader, plan: SplitPlan, *, min_count: int, source: str
) -> Ranked:
    tokens = index.tokens()
    counts = np.zeros(len(tokens) + 1, dtype=np.int64)
    for block, splits_N in plan.blocks(spool, [name], blocks_at_once=_COUNT_BLOCKS):
        count_codes(_training_codes(block[name].chunk(0), splits_N), counts)
    if not counts[1:].any():
        raise DataError(no_values(name, source))
    if not (counts[1:] >= min_count).any():
        _log.warning(
            "%s: no value of column %r occurs %s times in training (min_count), so all of them are unknown; its "
            "commonest occurs %s times",
            source,
            name,
            f"{min_count:,}",
            f"{counts[1:].max():,}",
        )
    return rank(name, tokens, counts, min_count=min_count)


def _training_codes(column: pa.Array, splits_N: Codes) -> npt.NDArray[np.int32]:
    train_N = splits_N == 0
    if not train_N.all():
        column = column.filter(pa.array(train_N))
    flat = column.flatten() if pa.types.is_list(column.type) else column
    codes: npt.NDArray[np.int32] = flat.to_numpy()
    return codes


def no_values(name: str, source: str) -> str:
    """The message about a feature that is empty in the training part."""
    return (
        f"{source}: column {name!r} has no value in any training row (all cells are empty), so nothing can be learnt "
        "from it. "
        "Remove it from the configuration."
    )


def measure_moments(config: PrepareConfig, spool: SpoolReader, plan: SplitPlan) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over the training part of each numeric feature that needs one: for `standard`, or
    where numbers are missing.
    """
    moments = {name: Moments() for name, numeric in config.numeric.items() if needs_moments(numeric)}
    if moments:
        for block, splits_N in plan.blocks(spool, list(moments)):
            for name, moment in moments.items():
                moment.add(block[name].to_numpy()[splits_N == 0].astype(np.float64))
    return {name: (moment.mean, moment.std) for name, moment in moments.items()}


def write_parts(
    out: Path,
    spool: SpoolReader,
    plan: SplitPlan,
    finisher: Finisher,
    *,
    row_group_rows: int,
    reporter: Reporter,
) -> None:
    """Pass two: map codes to ids and write the part files of the three splits."""
    phase = Phase(reporter, "writing", total=spool.num_rows, unit="rows")
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                SplitWriter(out / name, finisher.schema, row_group_rows=row_group_rows, dictionary=finisher.dictionary)
            )
            for name in SPLIT_NAMES
        ]
        for table, splits_N in run_ahead(_finished(spool, plan, finisher), depth=2, clock=Clock()):
            write_split_rows(table, splits_N, writers)
            phase.advance(table.num_rows, rows=table.num_rows)


def write_times(out: Path, spool: SpoolReader, plan: SplitPlan) -> None:
    """The times of the rows of each split, in the order of their part files, in a folder beside these."""
    (out / TIMES_FOLDER).mkdir()
    schema = pa.schema([pa.field(TIME_COLUMN, pa.float64(), nullable=False)])
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                SplitWriter(out / TIMES_FOLDER / name, schema, row_group_rows=SPOOL_ROWS, dictionary=())
            )
            for name in SPLIT_NAMES
        ]
        for block, splits_N in plan.blocks(spool, [TIME_SPOOL]):
            write_split_rows(pa.table([block[TIME_SPOOL]], schema=schema), splits_N, writers)


def _finished(spool: SpoolReader, plan: SplitPlan, finisher: Finisher) -> Generator[tuple[pa.Table, Codes], None, None]:
    for block, splits_N in plan.blocks(spool, None):
        yield finisher.finish(block, splits_N), splits_N


def check_present(finisher: Finisher, source: str) -> None:
    """Refuse numeric and hashed features that are empty in the training part.

    Raises:
        DataError: naming the feature.
    """
    for name, num_present in finisher.num_present.items():
        if num_present == 0:
            raise DataError(no_values(name, source))
