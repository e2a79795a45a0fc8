"""Vectors of two trainings by key: files of vectors, folders of `embank compress`, tables of bundles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from embank.pipelines.data.preprocessing.rules import PREPROCESS, TOKENS, Preprocessing, token_files
from embank.pipelines.vectors.files import VectorFile, open_vectors
from embank.pipelines.vectors.store import FACTS, load_vectors
from embank.tables import Bundle, ConfigError, DataError, PackedTable
from embank.tables.ids.token_space import NUM_TOKEN_IDS
from embank.tables.serving.bundle import is_bundle
from embank.tables.wording import listing, nearest_or_all


class TableVectors(VectorFile):
    """The logical rows of a table of a bundle, as they are served.

    Args:
        path: of the bundle, or a folder of `embank compress`.
        table: its name; needless where the bundle has one.
    """

    dtype = "float32"

    def __init__(self, path: Path, *, table: str | None) -> None:
        self.path = path
        self.bundle = Bundle(path, verify="small")
        by_name: dict[str, PackedTable] = {}
        for spec, pack in self.bundle.tables().packed_tables():
            by_name[spec.name] = pack
        if table is None and len(by_name) != 1:
            raise ConfigError(f"bundle '{path}' has {len(by_name)} tables ({listing(by_name)}); name one with --table")
        self.table = next(iter(by_name)) if table is None else table
        if self.table not in by_name:
            raise ConfigError(
                f"bundle '{path}' has no table '{table}'; {nearest_or_all(self.table, by_name, label='tables')}"
            )
        self.pack = by_name[self.table]
        self.entry = next(entry for entry in self.bundle.entries if entry.name == self.table)
        self.column = f"table '{self.table}'"
        if self.entry.num_embeddings >= NUM_TOKEN_IDS:
            raise ConfigError(
                f"the ids of table '{self.table}' of bundle '{path}' are hashes of tokens, 2**63 of them, whose rows "
                "can't be listed; name a table with a vocabulary"
            )
        self.num_rows, self.dim = self.entry.num_embeddings, self.entry.embedding_dim

    @torch.no_grad()
    def chunks(self) -> Iterator[Tensor]:
        for start in range(0, self.num_rows, self.rows_per_chunk):
            rows_rD = self.pack.lookup(torch.arange(start, min(self.num_rows, start + self.rows_per_chunk)))
            self.refuse_non_finite(rows_rD, start=start)
            yield rows_rD

    def keys(self) -> pl.Series | None:
        if FACTS in self.bundle.facts:  # of its only table
            return load_vectors(self.path).keys
        if not (self.path / PREPROCESS).is_file():
            return self._imported_tokens()
        rules = Preprocessing.load(self.path)
        for feature in self.entry.feature_names:
            if feature in rules.index.facts:
                return rules.vocabulary(feature).tokens  # null for what is unknown or missing
        return None

    def _imported_tokens(self) -> pl.Series | None:
        """What `embank import` has kept of the tokens of rows; null for one without."""
        files = token_files(feature for entry in self.bundle.entries for feature in entry.feature_names)
        file = self.path / TOKENS / files.get(self.table, "")
        if not file.is_file():
            return None
        tokens = pl.read_parquet(file, columns=["token"], glob=False)["token"].alias("key")
        return tokens if len(tokens) == self.num_rows else None


def open_source(
    path: str | Path, *, table: str | None, column: str | None, id_column: str | None, tensor: str | None
) -> VectorFile:
    """A bundle's table, or a file of vectors.

    Raises:
        DataError, ConfigError, CheckpointError: it can't be used; names it.
    """
    path = Path(path)
    bundle = next((folder for folder in (path, path / "bundle") if is_bundle(folder)), None)
    if bundle is not None:
        return TableVectors(bundle, table=table)
    if path.is_dir():
        raise DataError(f"'{path}' is no bundle, and no file of vectors; give one of them")
    suffix = path.suffix
    return open_vectors(
        path,
        column=column if suffix == ".parquet" else None,
        id_column=id_column if suffix == ".parquet" else None,
        tensor=tensor if suffix == ".safetensors" else None,
    )


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Which rows of two sources are of the same id.

    Args:
        old_N, new_N: rows, int64 [N], in the order of the old source.
        only_old, only_new: how many ids are in one source alone.
        by: "keys" or "rows".
    """

    old_N: Tensor
    new_N: Tensor
    only_old: int
    only_new: int
    by: str


def matched(old: VectorFile, new: VectorFile) -> Matched:
    """Rows of two sources, by key; by row number where neither has keys.

    Raises:
        DataError: one alone has keys, or text here and whole numbers there.
    """
    keys = old.keys(), new.keys()
    if keys[0] is None and keys[1] is None:
        both = min(old.num_rows, new.num_rows)
        rows_N = torch.arange(both)
        return Matched(
            old_N=rows_N, new_N=rows_N, only_old=old.num_rows - both, only_new=new.num_rows - both, by="rows"
        )
    if keys[0] is None or keys[1] is None:
        lacking, other = (old, new) if keys[0] is None else (new, old)
        raise DataError(
            f"'{lacking.path}' has no keys and '{other.path}' has, so their vectors can't be matched; give both keys, "
            'or neither (--id-column "")'
        )
    frames = [_by_key(series, name) for series, name in zip(keys, ("old", "new"), strict=True) if series is not None]
    if frames[0]["key"].dtype != frames[1]["key"].dtype:
        kinds = ["whole numbers" if frame["key"].dtype == pl.Int128 else "text" for frame in frames]
        raise DataError(
            f"the keys of '{old.path}' are {kinds[0]}, those of '{new.path}' {kinds[1]}; give both the same"
        )
    both_frame = frames[0].join(frames[1], on="key", how="inner").sort("old")
    old_N, new_N = (torch.from_numpy(both_frame[name].to_numpy().copy()) for name in ("old", "new"))
    num = len(both_frame)
    return Matched(old_N=old_N, new_N=new_N, only_old=len(frames[0]) - num, only_new=len(frames[1]) - num, by="keys")


def _by_key(keys: pl.Series, name: str) -> pl.DataFrame:
    kind = pl.Int128 if keys.dtype.is_integer() else pl.String
    rows = pl.Series(name, np.arange(len(keys)), dtype=pl.Int64)
    return pl.DataFrame([keys.cast(kind).alias("key"), rows]).drop_nulls("key")
