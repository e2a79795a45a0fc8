"""Tables alone: from a source to a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from embank.compression.budget.coded import refuse_unknown_nbytes, share_coded
from embank.pipelines.data.preprocessing.rules import TOKENS, token_files
from embank.pipelines.importing.matching import Matching, match
from embank.pipelines.importing.report import Imported, ImportedTable, imported_table
from embank.pipelines.importing.rows import matched_rows
from embank.pipelines.importing.sources import Source
from embank.pipelines.importing.vocabularies import TokenSources
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.coarse_parts import coarse_parts
from embank.pipelines.vectors.encoding import encoded
from embank.pipelines.vectors.store import FACTS, key_facts
from embank.tables import Coded, ConfigError, PackedCollection, PackedTable, TableSpec, build_method, method_class
from embank.tables.ids.vocabulary import MISSING, TOKEN, UNKNOWN, UNKNOWN_ID, Vocabulary
from embank.tables.method.base import own_table
from embank.tables.serving.codecs.registry import codecs_by_table
from embank.tables.serving.saving import write_packed
from embank.tables.serving.table import codec_of
from embank.tables.specs import Pooling
from embank.tables.storage.new_folder import new_folder

PLAIN = "full"
PLAIN_BELOW = 100
"""Tables of fewer ids stay plain under a budget that several share, as in a configuration."""


def import_tables(
    source: Source,
    out: str | Path,
    *,
    vocabularies: TokenSources,
    method: str = PLAIN,
    budget: float | None = None,
    codec: str = "fp32",
    pooling: Pooling = "sum",
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Imported:
    """Writes the tables of a source as a bundle.

    Plain tables are mapped and written in blocks, whatever their size. Those of other methods are fitted to the
    source's rows, in memory.

    Args:
        source: see `open_source`.
        out: the bundle's folder; must not exist yet.
        vocabularies: what rows stand for, see `embank.pipelines.importing.matching`.
        method: that stores the tables.
        budget: serving bytes / bytes of the plain fp32 tables, of all of them together.
        codec: that holds rows.
        pooling: how the rows of a bag become one.
        seed: of the fits.
        reporter: of the work.

    Raises:
        DataError, ConfigError, BudgetError: what can't be imported.
        CheckpointError: `out` exists.
        WorkError: it can't be written; nothing is left behind.
    """
    out, told = Path(out), reporter or Reporter()
    _refuse_size(method, budget)
    vocabularies.refuse_unknown(source.tables)
    sources = (source.path,) if source.path.is_dir() else ()
    with new_folder(out, kind="bundle", sources=sources) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        specs, rows, matchings = [], {}, {}
        for number, (name, table) in enumerate(source.tables.items()):
            ours = _our_vocabulary(vocabularies, name, has_keys=table.vectors.keys() is not None)
            tokens = None if ours is not None else vocabularies.tokens(name)
            matching = match(table, tokens=tokens, vocabulary=ours, num_ids=None)
            rows[name] = matched_rows(table.vectors, matching, scratch / str(number), reporter=told)
            matchings[name] = matching
            counts = None if ours is None else torch.from_numpy(ours.counts.astype(np.int64))
            specs.append(
                TableSpec(
                    name=name,
                    num_embeddings=matching.num_ids,
                    embedding_dim=table.vectors.dim,
                    feature_names=[name],
                    pooling=pooling,
                    method=method,
                    counts=counts,
                )
            )
        codecs = codecs_by_table(codec, list(rows))
        if budget is not None:
            refuse_unknown_nbytes(codec, where="--codec")
        if budget is not None:
            specs = share_coded(specs, budget=budget, codecs=codecs, plain_below=PLAIN_BELOW if len(specs) > 1 else 0)
        for spec in specs:
            held = codec_of(codecs[spec.name], rows[spec.name])
            said = coarse_parts(held, num_rows=spec.num_embeddings, dim=spec.embedding_dim)
            if spec.method == PLAIN and said is not None:
                told.note(f"table '{spec.name}': {said}")
        collection = _packed(specs, rows, matchings, codecs=codecs, seed=seed, scratch=scratch, reporter=told)
        tables = [
            imported_table(
                spec,
                pack,
                rows[spec.name],
                matchings[spec.name],
                codec=_codec_held(spec, rows[spec.name], codecs[spec.name]),
                reporter=told,
            )
            for spec, pack in collection.packed_tables()
        ]
        done = Imported(out=out, kind=source.kind, path=source.path, tables=tables)
        facts, files = _token_files(matchings, codec=tables[0].codec)
        write_packed(folder, collection, facts={"imported": done.to_json(), **facts}, files=files, scratch=scratch)
    return done


def _refuse_size(method: str, budget: float | None) -> None:
    if budget is not None and not 0 < budget <= 1:
        raise ConfigError(
            f"--budget is {budget}; it is serving bytes / bytes of the plain fp32 tables, in (0, 1]. Give such a one, "
            "or leave it out"
        )
    if method != PLAIN and budget is None:
        method_class(method)  # an unknown one is refused first
        raise ConfigError(f"--method {method} needs a size; give --budget, for example --budget 0.25")


def _our_vocabulary(vocabularies: TokenSources, name: str, *, has_keys: bool) -> Vocabulary | None:
    """Our vocabulary of a table whose source names its own rows; else `--vocab` says what rows stand for."""
    if not has_keys or not vocabularies.is_ours(name):
        return None
    found = vocabularies.vocabulary(name)
    if found is None:
        raise ConfigError(
            f"'{vocabularies.path_of(name)}' has no vocabulary of '{name}'; name the table by its feature: --table "
            f"FEATURE={name}"
        )
    return found


def _packed(
    specs: Sequence[TableSpec],
    rows: Mapping[str, Tensor],
    matchings: Mapping[str, Matching],
    *,
    codecs: Mapping[str, str],
    seed: int,
    scratch: Path,
    reporter: Reporter,
) -> PackedCollection:
    """Tables as they are served: the source's rows, or what was fitted to them."""
    packs: dict[str, PackedTable] = {}
    fitted = [spec for spec in specs if spec.method != PLAIN]
    if fitted:
        from embank.pipelines.importing.fits import fitted_packs

        packs = fitted_packs(fitted, rows, matchings, codecs=codecs, seed=seed, reporter=reporter)
    for number, spec in enumerate(specs):
        if spec.name not in packs:
            served = build_method(spec).served({own_table(spec).name: rows[spec.name]})
            place = scratch / f"coded-{number}"
            coded = partial(_coded, codec=codecs[spec.name], scratch=place)
            packs[spec.name] = PackedTable.of(served, coded=coded)
    return PackedCollection(specs, [packs[spec.name] for spec in specs])


def _coded(rows_RD: Tensor, *, codec: str, scratch: Path) -> Coded:
    """Rows in the form of a codec, in little memory where it codes rows on their own."""
    return encoded(rows_RD, codec_of(codec, rows_RD), scratch)


def _codec_held(spec: TableSpec, rows_RD: Tensor, codec: str) -> str:
    """The codec that rows are in: small ones stay in fp32. That of a fitted table is said as it was asked for."""
    return codec_of(codec, rows_RD) if spec.method == PLAIN else codec


def _token_files(
    matchings: Mapping[str, Matching], *, codec: str
) -> tuple[dict[str, Any], dict[str, Callable[[Path], None]]]:
    """What a bundle holds of the tokens of its rows: facts and files. `load_vectors` finds rows by them where there is
    one table."""
    facts: dict[str, Any] = {}
    files: dict[str, Callable[[Path], None]] = {}
    for name, file in token_files(matchings).items():
        tokens = matchings[name].tokens
        if tokens is not None:
            files[f"{TOKENS}/{file}"] = lambda path, tokens=tokens: _write(path, tokens)  # type: ignore[misc]
    if len(matchings) == 1:
        (only,) = matchings.values()
        is_named = only.tokens is not None and not only.tokens.null_count()
        said, more = key_facts(only.tokens if is_named else None)
        facts[FACTS] = {"codec": codec, **said}
        files |= more
    return facts, files


def _write(path: Path, tokens: pl.Series) -> None:
    """As `Vocabulary.save`: the first row without a token is that of unknown values."""
    kinds = [UNKNOWN if row == UNKNOWN_ID else MISSING for row in np.flatnonzero(tokens.is_null().to_numpy())]
    places = pl.Series(np.flatnonzero(tokens.is_null().to_numpy()), dtype=pl.UInt32)
    kind = pl.repeat(TOKEN, len(tokens), eager=True).scatter(places, kinds)
    counts = pl.repeat(0, len(tokens), dtype=pl.Int64, eager=True)
    pl.DataFrame({"token": tokens.cast(pl.String), "kind": kind, "count": counts}).write_parquet(path)


__all__ = ["ImportedTable", "import_tables"]
