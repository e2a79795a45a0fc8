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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from embank.pipelines.config.columns import PrepareConfig, merge, parse_config, read_columns
from embank.pipelines.data.loading.integrity import seal
from embank.pipelines.data.prepare.encode import Encoder
from embank.pipelines.data.prepare.numeric_fields import numeric_fields
from embank.pipelines.data.prepare.output import output_folder
from embank.pipelines.data.prepare.parts_writer import Finisher
from embank.pipelines.data.prepare.passes import check_present, measure_moments, rank_features, spool_rows, write_parts
from embank.pipelines.data.prepare.plan import SplitPlan, check_splits, measure_splits
from embank.pipelines.data.prepare.ranking import Fingerprint
from embank.pipelines.data.prepare.spool import SpoolReader
from embank.pipelines.data.schema import CONFIG_FILE, VOCAB_FOLDER, CategoricalField, NumericField, Schema, Split
from embank.pipelines.data.sources.formats.base import Source, TextOptions, check_columns
from embank.pipelines.data.sources.formats.registry import find_format
from embank.pipelines.reporting import Phase, Reporter
from embank.tables.errors import ConfigError
from embank.tables.ids.token_space import NUM_TOKEN_IDS, TOKEN_HASH_VERSION

_log = logging.getLogger(__name__)
_SPOOL_FILE = "spool.parquet"


def prepare(
    config: PrepareConfig | Mapping[str, Any] | None,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    format: str = "csv",
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Schema:
    """Prepare raw files for training.

    Args:
        config: columns and rules; a mapping is merged over the format's own configuration, None takes that as it is.
        inputs: a raw file, or several in order; for csv, tsv and parquet folders will do.
        out: folder to make.
        format: criteo, avazu, kdd12, movielens, csv, tsv or parquet.
        overwrite: replace `out` if it holds prepared data.
        reporter: is told how far the work is.

    Raises:
        ConfigError: the configuration can't be used.
        DataError: the input can't be used; the message names file, line, column and value.
        WorkError: the disk is full.
    """
    paths = [Path(path) for path in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    source, resolved = _resolve(config, paths, format)
    with output_folder(Path(out), overwrite=overwrite, inputs=paths) as folder:
        schema = _prepare_into(folder, source, resolved, format, reporter or Reporter())
    for split in schema.splits[1:]:
        if split.num_positive in (0, split.num_rows):
            _log.warning("%s: the %s split has one class only, so its AUC is undefined", out, split.name)
    return schema


def prepare_from_cli(
    format: str,
    inputs: Sequence[Path],
    out: Path,
    config_path: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Schema:
    """`embank prepare`: as `prepare`, with the configuration in a YAML file."""
    config = None if config_path is None else {**read_columns(config_path), _ORIGIN: str(config_path)}
    return prepare(config, inputs, out, format=format, overwrite=overwrite, reporter=reporter)


_ORIGIN = "__origin__"


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
    origin = values.pop(_ORIGIN, "the configuration")
    return parse_config(merge(default, values), origin=origin)


def _text_options(config: PrepareConfig) -> TextOptions:
    return TextOptions(separator=config.separator, quote=config.quote, escape=config.escape)


def _prepare_into(folder: Path, source: Source, config: PrepareConfig, format: str, reporter: Reporter) -> Schema:
    encoder = Encoder(config)
    spool_path = folder / _SPOOL_FILE
    num_dropped = spool_rows(source, encoder, spool_path, config.columns, reporter)
    with closing(SpoolReader(spool_path)) as spool:
        plan = SplitPlan.build(config, encoder, spool.num_rows)
        splits = measure_splits(spool, plan)
        check_splits(splits, source=source.name, num_dropped=num_dropped)
        fingerprint = Fingerprint()
        id_of_code = _rank_all(folder, encoder, plan, config, fingerprint, source.name, reporter)
        numeric = numeric_fields(config, measure_moments(config, spool, plan))
        finisher = Finisher(config, id_of_code=id_of_code, numeric=numeric)
        write_parts(folder, spool, plan, finisher, row_group_rows=config.row_group_rows, reporter=reporter)
    check_present(finisher, source.name)
    spool_path.unlink()
    sizes = {name: _vocabulary_size(ids) for name, ids in id_of_code.items()}
    distinct = {name: counter.count for name, counter in finisher.distinct.items()}
    schema = _schema(config, format, splits, sizes, distinct, numeric, fingerprint)
    _write_config(folder, config)
    schema.save(folder)
    seal(folder)
    return schema


def _rank_all(
    folder: Path,
    encoder: Encoder,
    plan: SplitPlan,
    config: PrepareConfig,
    fingerprint: Fingerprint,
    source: str,
    reporter: Reporter,
) -> dict[str, npt.NDArray[np.int32]]:
    """Rank every feature that is not hashed and write its vocabulary."""
    (folder / VOCAB_FOLDER).mkdir()
    phase = Phase(reporter, "ranking", total=len(config.with_vocabulary), unit="features")
    id_of_code = {}
    with closing(rank_features(encoder, folder / _SPOOL_FILE, plan, config, source)) as ranking:
        for name, ranked in ranking:
            ranked.vocabulary.save(folder / VOCAB_FOLDER / f"{name}.parquet")
            fingerprint.add_vocabulary(ranked.vocabulary)
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
    fields = [_identity(field, version) for field in categorical] + [asdict(field) for field in numeric]
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
    values = asdict(field)
    del values["num_values"]
    return values if field.has_vocabulary else {**values, "token_hash_version": token_hash_version}


def _write_config(folder: Path, config: PrepareConfig) -> None:
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    (folder / CONFIG_FILE).write_text("# What `embank prepare` did, in the form that --config takes.\n" + text, "utf-8")
