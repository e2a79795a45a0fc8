"""Vocabularies: tokens to ids and back, with the count of each id in the training part.

An id is a rank: 0 is the unknown value, the others go from the most to the least frequent token of the training part
(ties in the order of the tokens' UTF-8 bytes). A missing value is a value of its own, ranked among the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

from embank.tables.errors import DataError
from embank.tables.storage.resources import refuse_exhausted

UNKNOWN_ID = 0
UNKNOWN, MISSING, TOKEN = "unknown", "missing", "token"
_COLUMNS = ("token", "kind", "count")

Ids = npt.NDArray[np.int64]


class Vocabulary:
    """The ids of one feature.

    Args:
        name: the feature, for messages.
        tokens: String series [R]; null for the unknown and the missing value.
        counts: int64 [R], occurrences in the training part.
        missing_id: id of the missing value; None when it did not occur in training.

    Raises:
        DataError: the lengths differ, there is no row for the unknown value, or a token occurs twice.

    Example:
        >>> import polars
        >>> tokens = polars.Series([None, "Drama", "War"])  # id 0 is the unknown value
        >>> genres = Vocabulary("genre", tokens, [0, 7, 3])
        >>> genres.encode(["War", "Drama", "Western"]).tolist()
        [2, 1, 0]
        >>> genres.decode([2, 0])
        ['War', None]
    """

    def __init__(self, name: str, tokens: pl.Series, counts: Ids, *, missing_id: int | None = None) -> None:
        self.name = name
        self.tokens = tokens.cast(pl.String).alias("token")
        self.counts = np.asarray(counts, dtype=np.int64)
        self.missing_id = missing_id
        self._index: pl.DataFrame | None = None
        self._check()

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, values: pl.Series | Sequence[str | None]) -> Ids:
        """Ids of tokens, [N] int64; unseen tokens become 0, missing ones (null) the missing id or 0."""
        series = values if isinstance(values, pl.Series) else pl.Series(values, dtype=pl.String)
        if self._index is None:
            ids = pl.Series("id", np.arange(len(self)), dtype=pl.Int64)
            self._index = pl.DataFrame([self.tokens, ids]).drop_nulls("token")
        frame = series.cast(pl.String).alias("token").to_frame()
        found = frame.join(self._index, on="token", how="left", maintain_order="left")["id"]
        ids_N: Ids = found.fill_null(UNKNOWN_ID).to_numpy().copy()
        if self.missing_id is not None and series.null_count():
            ids_N[series.is_null().to_numpy()] = self.missing_id
        return ids_N

    def decode(self, ids_N: npt.ArrayLike) -> list[str | None]:
        """Tokens of ids; None for the unknown and the missing value.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        ids = np.asarray(ids_N, dtype=np.int64).reshape(-1)
        self.check_ids(ids)
        tokens: list[str | None] = self.tokens.gather(ids).to_list()
        return tokens

    def check_ids(self, ids_N: npt.ArrayLike) -> None:
        """Refuse ids that the vocabulary does not have.

        Raises:
            DataError: naming the first such id and the range.
        """
        ids = np.asarray(ids_N, dtype=np.int64).reshape(-1)
        outside_N = (ids < 0) | (ids >= len(self))
        if outside_N.any():
            position = int(np.argmax(outside_N))
            raise DataError(
                f"vocabulary {self.name!r} has ids 0 to {len(self) - 1}, but id {ids[position]} occurs (position "
                f"{position}). The data and the vocabulary come from different preparations; prepare the data again."
            )

    def save(self, path: str | Path) -> None:
        """Write a Parquet file: row i is id i, with columns token, kind, count.

        Raises:
            OSError: it can't be written, for example because the disk is full.
        """
        kinds = pl.repeat(TOKEN, len(self), eager=True).alias("kind").scatter(UNKNOWN_ID, UNKNOWN)
        if self.missing_id is not None:
            kinds = kinds.scatter(self.missing_id, MISSING)
        frame = pl.DataFrame([self.tokens, kinds, pl.Series("count", self.counts, dtype=pl.Int64)])
        try:
            frame.write_parquet(path, compression="lz4", row_group_size=2**20)
        except pl.exceptions.ComputeError as error:  # polars' way to say that the disk is full
            raise OSError(f"can't write {path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path, *, name: str | None = None) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, damaged, or no vocabulary.
        """
        path = Path(path)
        try:
            frame = pl.read_parquet(path, glob=False)
        except FileNotFoundError:
            raise DataError(f"there is no vocabulary {path}. Prepare the data again.") from None
        except (OSError, pl.exceptions.PolarsError) as error:
            refuse_exhausted(error, doing=f"reading {path}")
            raise DataError(f"vocabulary {path} is damaged ({error}). Prepare the data again.") from error
        if tuple(frame.columns) != _COLUMNS:
            raise DataError(
                f"{path} has columns {frame.columns}, a vocabulary has {list(_COLUMNS)}. Prepare the data again."
            )
        missing = np.flatnonzero((frame["kind"] == MISSING).to_numpy())
        return cls(
            name or path.stem,
            frame["token"],
            frame["count"].to_numpy(),
            missing_id=int(missing[0]) if missing.size else None,
        )

    def _check(self) -> None:
        if len(self.tokens) != len(self.counts):
            raise DataError(f"vocabulary {self.name!r} has {len(self.tokens)} tokens but {len(self.counts)} counts.")
        if len(self.tokens) == 0 or self.tokens[UNKNOWN_ID] is not None:
            raise DataError(f"vocabulary {self.name!r} has no id 0 for the unknown value. Prepare the data again.")
        if self.tokens.null_count() != 1 + (self.missing_id is not None):
            raise DataError(f"vocabulary {self.name!r} has ids without a token. Prepare the data again.")
