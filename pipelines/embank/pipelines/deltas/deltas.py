"""What changed from one bundle to the next, as a delta; and the bundle that deltas lead to."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embank.pipelines.deltas.vocabularies import CHANGED_TOKENS, VocabularyChange, VocabularyChanges
from embank.tables.errors import CheckpointError
from embank.tables.serving.bundle import version_of
from embank.tables.serving.deltas.apply import write_applied
from embank.tables.serving.deltas.format import Delta, TableChange
from embank.tables.serving.deltas.make import write_delta


@dataclass(frozen=True, kw_only=True)
class DeltaReport:
    """What a delta, or several, do.

    Args:
        start, end: versions of the bundles that they lead from and to: the first digits of their checksums.
        nbytes: bytes of the deltas.
        bundle_nbytes: bytes of the bundle that they lead to.
        tables: what changes in each table; for several deltas those of the last.
        vocabularies: what changes in each vocabulary, likewise.
        seconds: that it took.
    """

    start: str
    end: str
    nbytes: int
    bundle_nbytes: int
    tables: list[TableChange]
    vocabularies: list[VocabularyChange]
    seconds: float


def make_delta(old: str | Path, new: str | Path, out: str | Path, *, tolerance: float = 0.0) -> DeltaReport:
    """Writes what leads from one bundle to another: changed and appended rows, the network, other files that changed.

    Rows are compared as they are served. A stored row of which no number has moved by more than the tolerance keeps its
    old numbers, and the delta then leads to a bundle that is `new` up to these rows: make the next delta from that one,
    which `apply_delta` writes. Only rows that stand alone have a tolerance; codes, scales, maps and the network are
    taken to the bit. Tokens that came or went are named in `tokens.parquet` of the delta: feature, hash, token, old and
    new id.

    Args:
        old, new: bundles whose tables have the same features.
        out: the delta's folder; must not exist yet.
        tolerance: 0 takes every bit that changed.

    Raises:
        CheckpointError: no bundle, a damaged one, or `out` exists.
        ConfigError: a wrong tolerance, bundles of different models, or nothing to send.
        WorkError: it can't be written; nothing is left behind.
    """
    began = time.perf_counter()
    made = write_delta(old, new, out, tolerance=tolerance, facts=_facts)
    return DeltaReport(
        start=version_of(made.start),
        end=version_of(made.end),
        nbytes=made.nbytes,
        bundle_nbytes=made.bundle_nbytes,
        tables=made.tables,
        vocabularies=_vocabularies(made),
        seconds=time.perf_counter() - began,
    )


def apply_delta(bundle: str | Path, delta: str | Path | Sequence[str | Path], out: str | Path) -> DeltaReport:
    """Writes the bundle that one or several deltas lead to, in one pass over its bytes. What is read stays as it is.

    The result is the bundle that the (last) delta was made for, to the bit, or nothing.

    Args:
        bundle: the one that the first delta was made from.
        delta: one or several, in the order in which they were made.
        out: must not exist yet.

    Raises:
        CheckpointError: no bundle, no delta, a damaged one, `out` exists, or a delta is missing, repeated, out of order
            or of another model.
        WorkError: it can't be written; nothing is left behind.
    """
    began = time.perf_counter()
    deltas = [Delta(path) for path in ([delta] if isinstance(delta, (str, Path)) else delta)]
    vocabularies = [_vocabularies(one) for one in deltas]  # what is damaged is refused before anything is written
    write_applied(bundle, deltas, out)
    return DeltaReport(
        start=version_of(deltas[0].start),
        end=version_of(deltas[-1].end),
        nbytes=sum(one.nbytes for one in deltas),
        bundle_nbytes=deltas[-1].bundle_nbytes,
        tables=deltas[-1].tables,
        vocabularies=vocabularies[-1],
        seconds=time.perf_counter() - began,
    )


def _facts(old: Path, new: Path) -> tuple[dict[str, Any], dict[str, Callable[[Path], None]]]:
    """What a delta says of vocabularies, and the file that names their tokens."""
    vocabularies = VocabularyChanges(old, new)
    facts = {"vocabularies": [asdict(change) for change in vocabularies.changes]}
    return facts, {CHANGED_TOKENS: vocabularies.write} if vocabularies.has_tokens else {}


def _vocabularies(delta: Delta) -> list[VocabularyChange]:
    try:
        return [VocabularyChange.from_json(values) for values in delta.facts.get("vocabularies", [])]
    except TypeError as error:
        raise CheckpointError(
            f"what delta '{delta.path}' says of vocabularies is damaged ({error}). Copy the delta again or make it "
            "again"
        ) from error
