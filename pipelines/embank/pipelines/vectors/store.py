"""Compressed vectors as a folder: a bundle of one table, and the keys of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from embank.pipelines.runs.model import VECTORS
from embank.tables import Bundle, Coded, PackedCollection, PackedTable, TableSpec, Vocabulary, build_method
from embank.tables.errors import CheckpointError, ConfigError, DataError
from embank.tables.ids.token_hash import token_ids
from embank.tables.ids.vocabulary_index import VocabularyIndex
from embank.tables.method.base import own_table
from embank.tables.serving.bundle import Verify
from embank.tables.serving.saving import write_packed
from embank.tables.storage.refusals import cause_of
from embank.tables.wording import listing, shown

TABLE, FACTS = "vectors", VECTORS
KEYS, KEY_INDEX = "keys.parquet", "keys.safetensors"
Keys: TypeAlias = Sequence[Any] | pl.Series | npt.NDArray[Any] | pa.Array | pa.ChunkedArray
_TEXT = (pl.String, pl.Categorical, pl.Enum)


class StoredVectors:
    """What `compress_vectors` has written, ready to look up. Vectors are mapped from their file.

    Args:
        path: of the folder.
        verify: see `load_bundle`.

    Attributes:
        path: of the folder.
        bundle: its files and facts.
        num_rows, dim: of the vectors.
        codec: that holds them.

    Raises:
        CheckpointError: no such folder, or one that is damaged or of another version.
    """

    def __init__(self, path: str | Path, *, verify: Verify = "small") -> None:
        self.path = Path(path)
        self.bundle = Bundle(path, verify=verify)
        if FACTS not in self.bundle.facts:
            raise CheckpointError(
                f"'{path}' is a bundle of tables, not one that embank compress wrote, or embank import of one table; "
                "read it with load_bundle"
            )
        facts = self.bundle.facts[FACTS]
        self.collection = self.bundle.tables()
        ((spec, self.table),) = self.collection.packed_tables()
        self.num_rows, self.dim, self.codec = spec.num_embeddings, spec.embedding_dim, str(facts["codec"])
        self._index_facts: list[Mapping[str, Any]] | None = facts["keys"]
        self._are_numbers = bool(facts["keys_are_numbers"])

    def __len__(self) -> int:
        return self.num_rows

    @torch.no_grad()
    def take(self, rows: Sequence[int] | Tensor | npt.NDArray[np.integer[Any]]) -> Tensor:
        """Vectors fp32 [N, D] of N rows, numbered as in the file that was compressed.

        Raises:
            DataError: there is no such row, or what is given are no whole numbers.
        """
        try:
            given = torch.as_tensor(rows).reshape(-1)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise DataError(
                f"rows of '{self.path}' are asked for by {_some(rows)}; give whole numbers, 0 to {self.num_rows - 1:,}"
            ) from error
        if given.numel() and (given.dtype == torch.bool or given.is_floating_point() or given.is_complex()):
            raise DataError(
                f"rows of '{self.path}' are asked for by {str(given.dtype).removeprefix('torch.')} numbers; give whole "
                "ones (of a mask, `mask.nonzero()`)"
            )
        rows_N = given.long()
        outside_N = (rows_N < 0) | (rows_N >= self.num_rows)
        if given.dtype == torch.uint64 and bool((rows_N < 0).any()):
            raise DataError(f"there is no row beyond int64; '{self.path}' has the rows 0 to {self.num_rows - 1:,}")
        if bool(outside_N.any()):
            raise DataError(
                f"there is no row {int(rows_N[outside_N][0]):,}; '{self.path}' has the rows 0 to {self.num_rows - 1:,}"
            )
        return self.table.lookup(rows_N)

    def lookup(self, keys: Keys) -> Tensor:
        """Vectors fp32 [N, D] of N keys.

        Raises:
            DataError: there is no such key.
            ConfigError: the vectors have no keys.
        """
        return self.take(self.rows_of(keys))

    def rows_of(self, keys: Keys) -> Tensor:
        """Rows int64 [N] of N keys, see `lookup`."""
        index = self._index
        asked = keys if isinstance(keys, pl.Series) else self._series(self._several(keys))
        kind = "whole numbers" if self._are_numbers else "text"
        if asked.null_count():
            raise DataError(
                f"the keys of '{self.path}' are {kind}, and key {asked.is_null().arg_max()} of those asked for is "
                "missing"
            )
        is_kind = asked.dtype.is_integer() if self._are_numbers else asked.dtype in _TEXT
        if len(asked) and not is_kind:
            raise DataError(f"the keys of '{self.path}' are {kind}, and {shown(asked.head(1).to_list()[0])} is not")
        # An index has no row 0: that of a vector is its id less one, and what is not found is -1.
        rows_N = index.find(TABLE, token_ids(asked.cast(pl.String))) - 1
        if (rows_N < 0).any():
            raise DataError(f"there is no key {shown(asked[int(np.argmax(rows_N < 0))])} in '{self.path}'")
        return torch.from_numpy(rows_N)

    def _several(self, keys: Any) -> Any:
        """Keys as a list, or as the Arrow array that they are; refuses a single one, also in an array of no dimension,
        which can't be iterated over."""
        if isinstance(keys, (pa.Array, pa.ChunkedArray)):
            return keys
        try:
            each = None if isinstance(keys, (str, bytes)) else iter(keys)
        except TypeError:
            each = None
        if each is None:
            raise DataError(f"the keys of '{self.path}' are asked for by {shown(keys)}; give a list of keys")
        return list(each)

    def _series(self, keys: Any) -> pl.Series:
        try:
            return pl.Series(keys)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"the keys that are asked for of '{self.path}' are of several types, or beyond 64 bits: "
                f"{listing(map(shown, keys[:3]))}; give all as text, or all as whole numbers"
            ) from error

    @cached_property
    def keys(self) -> pl.Series | None:
        """The key of each row; None where the vectors have none."""
        return None if self._index_facts is None else pl.read_parquet(self.path / KEYS, glob=False)["key"]

    def nbytes(self) -> int:
        """Bytes of the coded vectors; keys not counted."""
        return self.collection.nbytes()

    @cached_property
    def _index(self) -> VocabularyIndex:
        if self._index_facts is None:
            raise ConfigError(f"the vectors of '{self.path}' have no keys; take them by row")
        try:
            with safe_open(self.path / KEY_INDEX, framework="pt") as file:
                arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
            return VocabularyIndex.from_json(self._index_facts, arrays)
        except (KeyError, TypeError, OSError, SafetensorError) as error:
            cause = cause_of(error) if isinstance(error, OSError) else error
            raise CheckpointError(f"the keys of '{self.path}' are damaged ({cause}). Copy the folder again") from error


def _some(given: Any) -> str:
    """The first of what was given, for a message."""
    return listing(map(shown, list(given)[:3])) if isinstance(given, Sequence) else shown(given)


def load_vectors(path: str | Path, *, verify: Verify = "small") -> StoredVectors:
    """What `embank compress` or `compress_vectors` has written.

    Args:
        path: of the folder.
        verify: "small" compares the SHA-256 of all files but the vectors, and the sizes of those; True of all.

    Raises:
        CheckpointError: no such folder, or one that is damaged or of another version.

    Example:
        >>> import numpy
        >>> numpy.save("words.npy", numpy.eye(3, 4, dtype="float32"))
        >>> _ = compress_vectors("words.npy", "words", codec="int8")
        >>> stored = load_vectors("words")
        >>> stored.num_rows, stored.dim, stored.codec, stored.nbytes()
        (3, 4, 'int8', 16)
        >>> torch.allclose(stored.take([2]), torch.tensor([[0.0, 0.0, 1.0, 0.0]]), atol=1e-3)
        True
    """
    return StoredVectors(path, verify=verify)


def write_vectors(
    folder: Path,
    rows_RD: Tensor,
    coded: Coded,
    *,
    codec: str,
    keys: pl.Series | None,
    facts: Mapping[str, Any],
    files: Mapping[str, Callable[[Path], None]],
    scratch: Path,
) -> None:
    """Writes coded vectors into a folder, see `new_folder`.

    Args:
        folder: is there.
        rows_RD: the vectors.
        coded: their form.
        codec: its name.
        keys: of the rows.
        facts: what else is said of them, as JSON.
        files: what else is written, after the keys; see `save_bundle`.
        scratch: a folder in it that goes once the vectors are written.
    """
    spec = TableSpec(name=TABLE, num_embeddings=len(rows_RD), embedding_dim=rows_RD.shape[1], feature_names=[TABLE])
    served = build_method(spec).served({own_table(spec).name: rows_RD})
    collection = PackedCollection([spec], [PackedTable.of(served, coded=lambda _: coded)])
    said, more = key_facts(keys)
    told = {"codec": codec, **said, **facts}
    write_packed(folder, collection, facts={FACTS: told}, files=more | dict(files), scratch=scratch)


def key_facts(keys: pl.Series | None) -> tuple[dict[str, Any], dict[str, Callable[[Path], None]]]:
    """What a folder that `load_vectors` reads says of the keys of its rows, and the files that hold them."""
    if keys is None:
        return {"keys": None, "keys_are_numbers": False}, {}
    tokens = pl.concat([pl.Series("key", [None], dtype=pl.String), keys.cast(pl.String).alias("key")])
    index = VocabularyIndex.of([Vocabulary(TABLE, tokens, np.zeros(len(tokens), dtype=np.int64))])
    return {"keys": index.to_json(), "keys_are_numbers": keys.dtype.is_integer()}, {
        KEYS: lambda path: keys.to_frame("key").write_parquet(path),
        KEY_INDEX: lambda path: _write_index(index, path),
    }


def _write_index(index: VocabularyIndex, path: Path) -> None:
    save_file({name: torch.from_numpy(array) for name, array in index.arrays().items()}, path)
    path.chmod(path.parent.stat().st_mode & 0o666)
