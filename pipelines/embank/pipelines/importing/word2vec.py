"""Vectors in the formats of word2vec, text and binary, as gensim and word2vec's own program write them.

The first line has the number of vectors and their length. Then each vector follows its token: as numbers in text on
one line, or as fp32 behind a space.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
import torch
from torch import Tensor

from embank.pipelines.vectors.files import VectorFile
from embank.tables.errors import DataError
from embank.tables.storage.refusals import cause_of
from embank.tables.wording import shown

_MOST_TOKEN_BYTES = 1 << 16


class Word2VecVectors(VectorFile):
    """A file of word2vec.

    Args:
        path: of the file.

    Raises:
        DataError: no such file, or another format.
    """

    dtype = "float32"
    key_column = "token"

    def __init__(self, path: Path) -> None:
        self.path, self.column = path, "the vectors"
        try:
            with path.open("rb") as file:
                header = file.readline(200)
                self.start = file.tell()
                first = file.read(_MOST_TOKEN_BYTES)
        except OSError as error:
            raise DataError(f"'{path}' can't be read: {cause_of(error)}. Give a file of word2vec") from error
        numbers = header.removeprefix(BOM_UTF8).split()
        if not header:
            raise DataError(f"'{path}' is empty; give a file of word2vec")
        if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
            raise DataError(
                f"'{path}', line 1: {shown(header.decode(errors='replace').strip())} is not the number of vectors and "
                "their length, so this is no file of word2vec. Files of GloVe lack that line: put it in front"
            )
        self.num_rows, self.dim = map(int, numbers)
        self._refuse_no_rows()
        self.is_text = _is_text(first, self.dim)
        self._tokens: list[str] | None = None

    def chunks(self) -> Iterator[Tensor]:
        tokens: list[str] = []
        start = 0
        for names, rows_rD in self._text_blocks() if self.is_text else self._binary_blocks():
            self.refuse_non_finite(rows_rD, start=start)
            start += len(rows_rD)
            tokens += names
            yield rows_rD
        self._tokens = tokens

    def keys(self) -> pl.Series | None:
        if self._tokens is None:
            self._tokens = list(self._only_tokens())
        series = pl.Series("key", self._tokens, dtype=pl.String)
        twice = np.flatnonzero((~series.is_first_distinct()).to_numpy())
        if twice.size:
            row = int(twice[0])
            first = int(np.flatnonzero((series == series[row]).to_numpy())[0])
            raise DataError(
                f"'{self.path}', vectors {first:,} and {row:,}: both have the token {shown(series[row])}. Leave one "
                "out",
                row=row,
            )
        return series

    def _only_tokens(self) -> Iterator[str]:
        for names, _ in self._text_blocks() if self.is_text else self._binary_blocks():
            yield from names

    def _text_blocks(self) -> Iterator[tuple[list[str], Tensor]]:
        with self.path.open("rb") as file:
            file.seek(self.start)
            for start in range(0, self.num_rows, self.rows_per_chunk):
                count = min(self.num_rows - start, self.rows_per_chunk)
                lines = [file.readline() for _ in range(count)]
                parts = [line.rstrip().rsplit(b" ", self.dim) for line in lines]
                bad = next((i for i, part in enumerate(parts) if len(part) != self.dim + 1), None)
                if bad is not None:
                    raise self._bad_line(start + bad, lines[bad])
                text = b" ".join(b" ".join(part[1:]) for part in parts)
                try:
                    numbers = np.fromstring(text, dtype=np.float32, sep=" ")
                except ValueError as error:
                    raise self._bad_number(start, parts) from error
                if numbers.size != count * self.dim:
                    raise self._bad_number(start, parts)
                names = [self._decoded(part[0], start + i) for i, part in enumerate(parts)]
                yield names, torch.from_numpy(numbers).view(count, self.dim)
            rest = file.read(200).strip()
            if rest:
                raise DataError(
                    f"'{self.path}', line {self.num_rows + 2:,}: the first line says {self.num_rows:,} vectors, and "
                    "there are more. Correct it"
                )

    def _bad_line(self, row: int, line: bytes) -> DataError:
        found = len(line.split()) - 1
        said = "the file ends" if not line else f"{max(found, 0):,} numbers follow the token"
        return DataError(
            f"'{self.path}', line {row + 2:,}: {said}, and the first line says {self.num_rows:,} vectors of "
            f"{self.dim:,} numbers. Copy the file again, or correct its first line",
            row=row,
        )

    def _bad_number(self, start: int, parts: list[list[bytes]]) -> DataError:
        for i, part in enumerate(parts):
            for text in part[1:]:
                try:
                    float(text)
                except ValueError:
                    what = f"{shown(text.decode(errors='replace'))} is no number"
                    return DataError(f"'{self.path}', line {start + i + 2:,}: {what}. Mend it", row=start + i)
        return DataError(f"'{self.path}', lines {start + 2:,} to {start + len(parts) + 1:,}: numbers can't be read")

    def _binary_blocks(self) -> Iterator[tuple[list[str], Tensor]]:
        with self.path.open("rb") as file:
            file.seek(self.start)
            for start in range(0, self.num_rows, self.rows_per_chunk):
                count = min(self.num_rows - start, self.rows_per_chunk)
                rows_rD = np.empty((count, self.dim), dtype="<f4")
                names = []
                for i in range(count):
                    names.append(self._decoded(self._binary_token(file, start + i), start + i))
                    content = file.read(4 * self.dim)
                    if len(content) < 4 * self.dim:
                        raise self._ended(start + i)
                    rows_rD[i] = np.frombuffer(content, dtype="<f4")
                yield names, torch.from_numpy(rows_rD.astype(np.float32, copy=False))
            if file.read(200).strip():
                raise DataError(
                    f"'{self.path}': more bytes follow the last vector, and the first line says {self.num_rows:,} "
                    f"vectors of {self.dim:,} numbers. Copy the file again, or correct its first line"
                )

    def _binary_token(self, file: BinaryIO, row: int) -> bytes:
        """The bytes up to a space; a line feed in front belongs to the vector before."""
        token = bytearray()
        while (byte := file.read(1)) != b" ":
            if not byte or len(token) > _MOST_TOKEN_BYTES:
                raise self._ended(row)
            if byte != b"\n" or token:
                token += byte
        return bytes(token)

    def _ended(self, row: int) -> DataError:
        return DataError(
            f"'{self.path}', vector {row:,}: the file ends or has no token there, and its first line says "
            f"{self.num_rows:,} vectors of {self.dim:,} numbers. Copy it again",
            row=row,
        )

    def _decoded(self, token: bytes, row: int) -> str:
        if not token:
            where = f"line {row + 2:,}" if self.is_text else f"vector {row:,}"
            raise DataError(f"'{self.path}', {where}: the token is empty. Name it, or leave the vector out", row=row)
        try:
            return token.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"'{self.path}', vector {row:,}: its token {shown(token)} is not UTF-8 (byte {error.start}). Write the "
                "file again with tokens in UTF-8",
                row=row,
            ) from error


def _is_text(first: bytes, dim: int) -> bool:
    """Whether what follows the first line is text: a whole line of a token and numbers, or all that there is."""
    line = first.split(b"\n", 1)[0].rstrip()
    parts = line.rsplit(b" ", dim)
    try:
        return all(float(part) is not None for part in parts[1:]) and len(parts) > 1
    except ValueError:
        return False
