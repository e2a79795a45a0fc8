"""`embank convert`: a bundle as other systems read it, with a report on whether it says the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embank.pipelines.convert.cases import Case, Original, generated, labelled
from embank.pipelines.convert.parity import Parity, compared_batches, compared_rows
from embank.pipelines.convert.targets import MANIFEST, PARITY, READER, Options, Target, target_of
from embank.pipelines.reporting import Phase, Reporter
from embank.pipelines.runs.model import bundle_of
from embank.tables import Bundle
from embank.tables.errors import ConfigError, WorkError
from embank.tables.serving.bundle import folder_nbytes
from embank.tables.storage.new_folder import new_folder
from embank.tables.version import embank_version

_READERS = Path(__file__).parent / "readers"


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was written.

    Args:
        path: the folder.
        target: as what.
        report: what `parity.json` in it says.
    """

    path: Path
    target: str
    report: Mapping[str, Any]


def convert_bundle(
    bundle: str | Path,
    *,
    to: str,
    out: str | Path,
    data: str | Path | None = None,
    split: str = "test",
    dtype: str | None = None,
    tables: Sequence[str] = (),
    tokens: bool = True,
    reporter: Reporter | None = None,
) -> Conversion:
    """Writes a bundle as another system reads it, reads that in a process without embank, and compares.

    Args:
        bundle: a bundle, or a run, whose bundle is taken.
        to: the target: parquet, safetensors, onnx, pt2, torchrec or nve.
        out: the folder; must not exist yet. It holds what was written, `manifest.json`, `read.py` (a script that reads
            it with the target's library alone) and `parity.json`.
        data: a prepared folder with the vocabularies of the training data, whose labelled rows are compared too.
        split: of it.
        dtype: of rows, for targets that have several.
        tables: that are written, without the network then; none takes all, and the network where the target has it.
        tokens: write tokens beside ids, where the bundle has them.
        reporter: is told how far the work is.

    Raises:
        CheckpointError: no bundle, a damaged one, or `out` exists.
        ConfigError: no such target or table, one that can't be written so, a library that is missing, data with other
            vocabularies.
        DataError: data without labels.
        WorkError: it can't be written, or does not say what its bundle says. Nothing is left behind.
    """
    target = target_of(to)
    if data is None and split != "test":
        raise ConfigError(f"split '{split}' is of labelled rows; name their prepared folder by --data")
    if not (tokens or target.takes_tokens):
        raise ConfigError(f"target '{to}' holds no tokens that could be left out; give --no-tokens with parquet only")
    dtype = _dtype_of(target, dtype)
    source, out = bundle_of(bundle), Path(out)
    reporter = reporter or Reporter()
    with new_folder(out, kind="conversion", sources=(source,)) as temporary:
        original = Original(Bundle(source), tables=tables)
        if data is not None and original.network is None:
            raise ConfigError(
                f"of bundle '{source}' tables are taken without a network, so labels tell nothing; leave --data out"
            )
        rows = labelled(original, Path(data), split=split) if data is not None else []
        phase = Phase(reporter, f"writing {to}", total=_num_rows(original), unit="rows")
        options = Options(dtype=dtype, tokens=tokens, written=lambda count: phase.advance(count, rows=count))
        facts = target.write(temporary, original, options)
        _write_json(temporary / MANIFEST, {**_origin(original, to), "dtype": dtype or None, **facts})
        shutil.copyfile(_READERS / target.reader, temporary / READER)
        phase = Phase(reporter, "reading it in a second process", total=1, unit="steps")
        parity = _compared(target, temporary, original, rows)
        _refuse_other(target, parity, dtype=dtype, original=original)
        report = {
            **_origin(original, to),
            "dtype": dtype or None,
            **parity.facts,
            "bytes": {
                "serving_tables_of_the_bundle": original.collection.nbytes(),
                "files_of_the_bundle": original.bundle.nbytes,
                "files_written": folder_nbytes(temporary),
            },
        }
        _write_json(temporary / PARITY, report)
        phase.advance(1)
    return Conversion(path=out, target=to, report=report)


def _dtype_of(target: Target, dtype: str | None) -> str:
    if dtype is None:
        return target.dtypes[0] if target.dtypes else ""
    if dtype not in target.dtypes:
        given = f"it takes {', '.join(target.dtypes)}" if target.dtypes else "it keeps what the bundle holds"
        raise ConfigError(f"target '{target.name}' has no dtype '{dtype}': {given}")
    return dtype


def _num_rows(original: Original) -> int:
    return sum(spec.num_embeddings for spec in original.collection.specs)


def _origin(original: Original, to: str) -> dict[str, Any]:
    bundle = original.bundle
    return {
        "format": f"embank {to}",
        "embank_version": embank_version(),
        "bundle": {"version": bundle.version, "checksum": bundle.checksum},
    }


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _compared(target: Target, folder: Path, original: Original, rows: Sequence[Case]) -> Parity:
    cases = generated(original)
    if target.gives == "rows":
        return compared_rows(folder, original, cases, rows)
    gives = "values" if original.network is None else target.gives
    return compared_batches(folder, original, cases, rows, gives=gives)


def _refuse_other(target: Target, parity: Parity, *, dtype: str, original: Original) -> None:
    """Raises WorkError where what was written is not what the bundle says."""
    cure = "Nothing was left behind; take another target, and report this as a mistake of embank"
    if "embank" in parity.facts["second_process"]["libraries"]:
        raise WorkError(f"the reader of target '{target.name}' has imported embank. {cure}")
    if not parity.finite:
        raise WorkError(
            f"some numbers that target '{target.name}' gives are not finite: dtype '{dtype or 'fp32'}' can't hold the "
            "rows. Nothing was left behind; take fp32"
        )
    most = target.tolerance.get(dtype)
    if original.precision == "bf16" and target.gives == "scores":
        most = 0.02  # what is written computes in fp32
    if most is not None and not parity.relative <= most:
        of = "" if parity.facts["compared"] == "scores" else " of the largest"
        raise WorkError(
            f"target '{target.name}' gives numbers that differ from the bundle's by up to {parity.relative:.2g}{of}, "
            f"where {most:.0e} is expected. {cure}"
        )
