"""`prepare`: raw files in, a prepared folder out, in two passes and bounded memory.

Pass one parses the input chunk by chunk, gives each token a provisional code and writes codes, numbers and labels to a
spool file beside the output. Then the splits are fixed, each code is counted in the training part, and codes are
ranked. Pass two maps the spool's codes to ids and writes the part files. Text is parsed once; in memory are the
dictionaries and a few blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from embank.pipelines.config.columns import PrepareConfig, merge, parse_config, read_columns
from embank.pipelines.data.loading.integrity import seal
from embank.pipelines.data.prepare.encode import Encoder
from embank.pipelines.data.prepare.like import (
    ORIGIN,
    Likeness,
    like_config,
    like_schema,
    like_source,
)
from embank.pipelines.data.prepare.numeric_fields import numeric_fields
from embank.pipelines.data.prepare.output import output_folder
from embank.pipelines.data.prepare.parts_writer import Finisher
from embank.pipelines.data.prepare.passes import (
    check_present,
    measure_moments,
    rank_features,
    spool_rows,
    write_parts,
    write_times,
)
from embank.pipelines.data.prepare.plan import SplitPlan, check_rows, check_splits, measure_splits
from embank.pipelines.data.prepare.profile import TrainingNumbers, shares_of, with_bins, with_profiles
from embank.pipelines.data.prepare.ranking import Fingerprint
from embank.pipelines.data.prepare.reference import Reference
from embank.pipelines.data.prepare.spool import SpoolReader
from embank.pipelines.data.schema import (
    CONFIG_FILE,
    VOCAB_FOLDER,
    CategoricalField,
    NumericField,
    Schema,
    Split,
    identity_of,
)
from embank.pipelines.data.sources.formats.base import Source, TextOptions, check_columns
from embank.pipelines.data.sources.formats.registry import FORMATS, find_format
from embank.pipelines.reporting import Phase, Reporter
from embank.tables.errors import ConfigError
from embank.tables.ids.token_space import NUM_TOKEN_IDS, TOKEN_HASH_VERSION
from embank.tables.wording import listing

_log = logging.getLogger(__name__)
_SPOOL_FILE = "spool.parquet"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done.

    Args:
        source: the opened input.
        config: settled.
        columns: raw columns to read.
        format: of the input.
        like: what to prepare like; None to fit everything on the training part.
        labelled: whether the rows have labels.
        time: a column of times whose values are kept.
    """

    source: Source
    config: PrepareConfig
    columns: Sequence[str]
    format: str
    like: Reference | None = None
    labelled: bool = True
    time: str | None = None


def prepare(
    config: PrepareConfig | Mapping[str, Any] | None,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    format: str | None = None,
    overwrite: bool = False,
    like: str | Path | None = None,
    split: str | None = None,
    labelled: bool = True,
    reporter: Reporter | None = None,
) -> Schema:
    """Prepare raw files for training, or like a run, a bundle or a prepared folder: with its columns, transforms and
    vocabularies, so that the rows mean the same to its model.

    Args:
        config: columns and rules; a mapping is merged over the format's own configuration, None takes that as it is.
            With `like` only label, split and the dialect of text files may be given.
        inputs: a raw file, or several in order; for csv, tsv and parquet folders will do.
        out: folder to make.
        format: criteo, avazu, kdd12, movielens, csv, tsv or parquet. By default csv; with `like` that of its data, or
            Parquet where the files' names say so.
        overwrite: replace `out` if it holds prepared data.
        like: what to prepare like. Values that it does not know become unknown; `like.json` counts them.
        split: with `like`, the split that all rows go to.
        labelled: with `like`, False for rows without labels, which `drift_report` takes and nothing else.
        reporter: is told how far the work is.

    Raises:
        ConfigError: the configuration can't be used.
        CheckpointError: `like` is nothing to prepare like.
        DataError: the input can't be used; the message names file, line, column and value.
        WorkError: the disk is full.
    """
    paths = [Path(path) for path in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    job = (
        _fitting(config, paths, format or "csv")
        if like is None
        else _like(like, config, paths, format, split, labelled)
    )
    if like is None and (split is not None or not labelled):
        raise ConfigError("one split for all rows, and rows without labels, are for data that is prepared like other")
    read = [*paths, *job.source.files, *([] if like is None else [Path(like)])]
    with output_folder(Path(out), overwrite=overwrite, inputs=read) as folder:
        schema = _prepare_into(folder, job, reporter or Reporter())
    for part in schema.splits[1:]:
        if schema.label is not None and part.num_rows and part.num_positive in (0, part.num_rows):
            _log.warning("%s: the %s split has one class only, so its AUC is undefined", out, part.name)
    return schema


def prepare_from_cli(
    format: str | None,
    inputs: Sequence[Path],
    out: Path,
    config_path: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    **like: Any,
) -> Schema:
    """`embank prepare`: as `prepare`, with the configuration in a YAML file."""
    if format is None and like.get("like") is None:
        raise ConfigError(
            f"--format is missing: give one of {listing(FORMATS)}, or --like to take that of a run's data"
        )
    config = None if config_path is None else {**read_columns(config_path), ORIGIN: str(config_path)}
    return prepare(config, inputs, out, format=format, overwrite=overwrite, reporter=reporter, **like)


def _fitting(config: PrepareConfig | Mapping[str, Any] | None, paths: list[Path], format: str) -> Job:
    source, resolved = _resolve(config, paths, format)
    return Job(source=source, config=resolved, columns=resolved.columns, format=format)


def _like(
    like: str | Path,
    config: PrepareConfig | Mapping[str, Any] | None,
    paths: list[Path],
    format: str | None,
    split: str | None,
    labelled: bool,
) -> Job:
    reference = Reference.open(like)
    given = config.model_dump(exclude_unset=True) if isinstance(config, PrepareConfig) else config
    resolved = like_config(reference, given, split=split)
    opened = like_source(reference, resolved, paths, format=format, labelled=labelled)
    return Job(
        source=opened.source,
        config=resolved,
        columns=opened.columns,
        format=opened.format,
        like=reference,
        labelled=labelled,
        time=opened.time,
    )


def _resolve(
    config: PrepareConfig | Mapping[str, Any] | None, paths: list[Path], format: str
) -> tuple[Source, PrepareConfig]:
    """Open the input and settle its configuration."""
    entry = find_format(format)
    if isinstance(config, PrepareConfig):
        resolved = config
        source = entry.open(paths, _text_options(resolved))
    elif entry.needs_config:
        if config is None:
            raise ConfigError(
                f"format {format!r} needs a configuration that names label, features and split. Write a YAML file and "
                "give "
                "it with --config; `embank prepare --help` shows an example."
            )
        resolved = _parse(None, config)
        source = entry.open(paths, _text_options(resolved))
    else:
        source = entry.open(paths, TextOptions())
        resolved = _parse(source.default, config or {})
    _refuse_other_dialect(resolved, format, needs_config=entry.needs_config)
    check_columns(source, resolved)
    return source, resolved


def _refuse_other_dialect(config: PrepareConfig, format: str, *, needs_config: bool) -> None:
    """Published layouts have separators and quotes of their own; others that are set would not be looked at.

    Raises:
        ConfigError: naming the key.
    """
    for key in ("separator", "quote", "escape"):
        if not needs_config and getattr(config, key) != PrepareConfig.model_fields[key].default:
            raise ConfigError(
                f"{key} is {getattr(config, key)!r}, but format {format!r} has separators and quotes of its own. "
                "Remove the key, or "
                "describe the file with --format csv or tsv."
            )


def _parse(default: Mapping[str, Any] | None, config: Mapping[str, Any]) -> PrepareConfig:
    values = dict(config)
    origin = values.pop(ORIGIN, "the configuration")
    return parse_config(merge(default, values), origin=origin)


def _text_options(config: PrepareConfig) -> TextOptions:
    return TextOptions(separator=config.separator, quote=config.quote, escape=config.escape)


def _prepare_into(folder: Path, job: Job, reporter: Reporter) -> Schema:
    encoder = Encoder(job.config, labelled=job.labelled, time_column=job.time)
    spool_path = folder / _SPOOL_FILE
    num_dropped = spool_rows(job.source, encoder, spool_path, job.columns, reporter)
    with closing(SpoolReader(spool_path)) as spool:
        plan = SplitPlan.build(job.config, encoder, spool.num_rows)
        splits = measure_splits(spool, plan)
        if job.like is None:
            schema = _fit(folder, job, encoder, spool, plan, splits, num_dropped, reporter)
        else:
            check_rows(splits, source=job.source.name, num_dropped=num_dropped)
            schema = _apply(folder, job, job.like, encoder, spool, plan, splits, reporter)
    spool_path.unlink()
    _write_config(folder, job.config)
    schema.save(folder)
    seal(folder)
    return schema


def _fit(
    folder: Path,
    job: Job,
    encoder: Encoder,
    spool: SpoolReader,
    plan: SplitPlan,
    splits: tuple[Split, ...],
    num_dropped: int,
    reporter: Reporter,
) -> Schema:
    """Fits vocabularies and moments on the training part, and writes the parts."""
    config, source = job.config, job.source.name
    check_splits(splits, source=source, num_dropped=num_dropped)
    fingerprint = Fingerprint()
    shares: dict[str, tuple[float, ...]] = {}
    id_of_code = _rank_all(folder, encoder, plan, config, fingerprint, shares, source, reporter)
    numeric = numeric_fields(config, measure_moments(config, spool, plan))
    numbers = TrainingNumbers(splits[0].num_rows)
    finisher = Finisher(config, id_of_code=id_of_code, numeric=numeric, numbers=numbers)
    write_parts(folder, spool, plan, finisher, row_group_rows=config.row_group_rows, reporter=reporter)
    check_present(finisher, source)
    sizes = {name: _vocabulary_size(ids) for name, ids in id_of_code.items()}
    distinct = {name: counter.count for name, counter in finisher.distinct.items()}
    schema = _schema(config, job.format, splits, sizes, distinct, numeric, fingerprint)
    tally = finisher.tally.to_json()
    return replace(
        schema,
        categorical=with_profiles(schema.categorical, tally=tally, shares=shares),
        numeric=with_bins(numeric, tally=tally, numbers=numbers),
    )


def _apply(
    folder: Path,
    job: Job,
    like: Reference,
    encoder: Encoder,
    spool: SpoolReader,
    plan: SplitPlan,
    splits: tuple[Split, ...],
    reporter: Reporter,
) -> Schema:
    """Writes the parts by the vocabularies and moments of what is prepared like, and what was unknown to it."""
    config = job.config
    phase = Phase(reporter, "looking up", total=len(config.with_vocabulary), unit="features")
    id_of_code = {}
    for name in config.with_vocabulary:
        id_of_code[name] = like.id_of_code(name, encoder.indexes.pop(name).tokens())
        phase.advance(1)
    finisher = Finisher(config, id_of_code=id_of_code, numeric=like.rules.schema.numeric)
    write_parts(folder, spool, plan, finisher, row_group_rows=config.row_group_rows, reporter=reporter)
    like.copy_vocabularies(folder)
    if job.time is not None:
        write_times(folder, spool, plan)
    Likeness(
        path=str(like.path),
        kind=like.kind,
        fingerprint=like.rules.schema.fingerprint,
        format=job.format,
        has_tokens=like.has_tokens,
        time=job.time,
        has_dates=encoder.has_dates,
        splits=finisher.tally.to_json(),
    ).save(folder)
    return like_schema(like, config, splits=splits, labelled=job.labelled)


def _rank_all(
    folder: Path,
    encoder: Encoder,
    plan: SplitPlan,
    config: PrepareConfig,
    fingerprint: Fingerprint,
    shares: dict[str, tuple[float, ...]],
    source: str,
    reporter: Reporter,
) -> dict[str, npt.NDArray[np.int32]]:
    """Rank every feature that is not hashed and write its vocabulary; `shares` is given those of its first ids."""
    (folder / VOCAB_FOLDER).mkdir()
    phase = Phase(reporter, "ranking", total=len(config.with_vocabulary), unit="features")
    id_of_code = {}
    with closing(rank_features(encoder, folder / _SPOOL_FILE, plan, config, source)) as ranking:
        for name, ranked in ranking:
            ranked.vocabulary.save(folder / VOCAB_FOLDER / f"{name}.parquet")
            fingerprint.add_vocabulary(ranked.vocabulary)
            shares[name] = shares_of(ranked.vocabulary.counts)
            id_of_code[name] = ranked.id_of_code
            phase.advance(1)
    return id_of_code


def _vocabulary_size(id_of_code: npt.NDArray[np.int32]) -> int:
    """Ids run without gaps from 0, so the largest one tells their number."""
    return int(id_of_code.max()) + 1


def _schema(
    config: PrepareConfig,
    format: str,
    splits: tuple[Split, ...],
    sizes: Mapping[str, int],
    distinct: Mapping[str, int],
    numeric: tuple[NumericField, ...],
    fingerprint: Fingerprint,
) -> Schema:
    categorical = tuple(
        CategoricalField(
            name=name,
            num_embeddings=sizes.get(name, NUM_TOKEN_IDS),
            multivalued=name in config.multivalued,
            min_count=config.min_count_of(name),
            num_values=distinct.get(name),
        )
        for name in config.features
    )
    version = TOKEN_HASH_VERSION if config.hashed else None
    fields = [_identity(field, version) for field in categorical] + [identity_of(field) for field in numeric]
    return Schema(
        source=format,
        label=config.label.column,
        categorical=categorical,
        numeric=numeric,
        group=config.group,
        splits=splits,
        row_group_rows=config.row_group_rows,
        fingerprint=fingerprint.finish(fields),
        token_hash_version=version,
    )


def _identity(field: CategoricalField, token_hash_version: int | None) -> dict[str, Any]:
    """What decides a feature's ids besides its vocabulary. How many values hashed tokens have does not."""
    values = identity_of(field)
    del values["num_values"]
    return values if field.has_vocabulary else {**values, "token_hash_version": token_hash_version}


def _write_config(folder: Path, config: PrepareConfig) -> None:
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    (folder / CONFIG_FILE).write_text("# What `embank prepare` did, in the form that --config takes.\n" + text, "utf-8")
