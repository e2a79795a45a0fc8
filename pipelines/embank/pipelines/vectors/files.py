"""Files of vectors: Parquet with a column of lists, npy, safetensors. They are read some rows at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from embank.tables.errors import DataError
from embank.tables.serving.stored import mapped_tensors
from embank.tables.storage.refusals import cause_of
from embank.tables.storage.resources import refuse_exhausted
from embank.tables.wording import listing, nearest_or_all, shown

NUMBERS_PER_CHUNK = 1 << 22
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class VectorFile(ABC):
    """Vectors in a file.

    Attributes:
        path: of the file.
        column: what holds them, for messages.
        num_rows, dim: how many there are, and their length.
        dtype: of a number, as the file has it.
        key_column: what holds a key of each vector; None where there are none.
    """

    path: Path
    column: str
    num_rows: int
    dim: int
    dtype: str
    key_column: str | None = None

    @abstractmethod
    def chunks(self) -> Iterator[Tensor]:
        """Consecutive vectors, fp32 [r, D].

        Raises:
            DataError: a vector is missing, of another length, or not finite; names its row and column.
        """

    def mapped(self) -> Tensor | None:
        """All vectors where they lie in the file as fp32, mapped; else None."""
        return None

    def keys(self) -> pl.Series | None:
        """The key of each vector: text or whole numbers.

        Raises:
            DataError: a key is missing or occurs twice.
        """
        return None

    @property
    def rows_per_chunk(self) -> int:
        """About as many as have `NUMBERS_PER_CHUNK` numbers."""
        return max(1, NUMBERS_PER_CHUNK // max(1, self.dim))

    def refuse_non_finite(self, rows_rD: Tensor, *, start: int) -> None:
        """Raises DataError for a number of a chunk that is none, or beyond fp32."""
        if not rows_rD.numel() or bool(torch.stack(rows_rD.aminmax()).isfinite().all()):
            return
        row, place = (~rows_rD.isfinite()).nonzero()[0].tolist()
        value = float(rows_rD[row, place])
        raise self.refused(
            f"number {place} is {value} (or beyond fp32); leave the vector out, or mend what made it", row=start + row
        )

    def refused(self, what: str, *, row: int | None = None) -> DataError:
        """An error about the file's vectors, or one of them."""
        where = "" if row is None else f", row {row:,}"
        return DataError(f"'{self.path}', {self.column}{where}: {what}", field=self.column, row=row)

    def _refuse_no_rows(self) -> None:
        if self.num_rows < 1 or self.dim < 1:
            raise self.refused(f"there are no vectors: {self.num_rows:,} rows of {self.dim:,} numbers")


def open_vectors(
    path: str | Path, *, column: str | None = None, id_column: str | None = None, tensor: str | None = None
) -> VectorFile:
    """A file of vectors, by its suffix.

    Args:
        path: .parquet, .npy or .safetensors.
        column: of a Parquet file, what holds the vectors; needless where one column alone is a list of floats.
        id_column: of a Parquet file, what holds their keys; needless where one column alone is text or whole numbers,
            or one alone is named id or key. "" for none.
        tensor: of a safetensors file, where it has several matrices of floats.

    Raises:
        DataError: no such file, column or tensor, several that may be meant, or no vectors.
    """
    path = Path(path)
    readers: dict[str, Any] = {".parquet": ParquetVectors, ".npy": NpyVectors, ".safetensors": SafetensorsVectors}
    if path.suffix not in readers:
        raise DataError(f"'{path}' is no file of vectors that can be read; give one of {listing(readers)}")
    if not path.is_file():
        raise DataError(f"there is no file '{path}'; give one of {listing(readers)}")
    takes = {".parquet": {"column", "id_column"}, ".safetensors": {"tensor"}}.get(path.suffix, set())
    given = {"column": column, "id_column": id_column, "tensor": tensor}
    for name, value in given.items():
        if value is not None and name not in takes:
            raise DataError(f"'{path}' has no {name.replace('_', ' ')}s, and {value!r} was given; leave it out")
    try:
        reader: VectorFile = readers[path.suffix](path, **{name: given[name] for name in sorted(takes)})
    except (OSError, ValueError, EOFError, pa.ArrowException, SafetensorError) as error:
        refuse_exhausted(error, doing=f"reading '{path}'")
        if "pickle" in str(error):  # what NumPy says of text, too, with advice that is not safe
            said = "it holds no array of numbers: it has Python's objects, or is no such file at all"
        else:
            said = cause_of(error).rstrip(".")
        raise DataError(f"'{path}' can't be read as {path.suffix[1:]}: {said}. Write it again") from error
    reader._refuse_no_rows()
    return reader


class _MappedVectors(VectorFile):
    """Vectors that lie in a file as one matrix of floats, mapped."""

    rows: Tensor

    def chunks(self) -> Iterator[Tensor]:
        for start in range(0, self.num_rows, self.rows_per_chunk):
            rows_rD = self.rows[start : start + self.rows_per_chunk].float()
            self.refuse_non_finite(rows_rD, start=start)
            yield rows_rD

    def mapped(self) -> Tensor | None:
        return self.rows if self.rows.dtype == torch.float32 and self.rows.is_contiguous() else None


class NpyVectors(_MappedVectors):
    """A matrix of numpy's own format."""

    def __init__(self, path: Path) -> None:
        self.path, self.column = path, "the array"
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # "c": torch warns of what can't be written
        if not isinstance(array, np.ndarray) or array.ndim != 2:
            what = f"has the shape {list(array.shape)}" if isinstance(array, np.ndarray) else "is an archive"
            raise self.refused(f"it {what}; give a matrix, a vector a row")
        if array.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
            raise self.refused(f"it holds {array.dtype}; give float16, float32 or float64")
        if not array.dtype.isnative:
            raise self.refused(f"it holds {array.dtype}, in another order of bytes than this machine's; convert it")
        self.rows = torch.from_numpy(array)
        (self.num_rows, self.dim), self.dtype = array.shape, str(array.dtype)


class SafetensorsVectors(_MappedVectors):
    """A matrix of floats in a safetensors file."""

    def __init__(self, path: Path, *, tensor: str | None) -> None:
        self.path, self.column = path, "the file"
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            types = {name: file.get_slice(name).get_dtype() for name in shapes}
        matrices = [name for name in shapes if _is_matrix(shapes[name], types[name])]
        if tensor is None and len(matrices) != 1:
            raise self.refused(
                f"it has {len(matrices)} matrices of floats ({listing(matrices)}); name one with --tensor"
                if matrices
                else f"it has no matrix of floats, but {listing(shapes) or 'nothing'}; give one that has"
            )
        name = matrices[0] if tensor is None else tensor
        if name not in matrices:
            about = f"is {types[name]} {list(shapes[name])}" if name in shapes else "is not there"
            raise self.refused(
                f"tensor '{name}' {about}; {nearest_or_all(name, matrices, label='matrices of floats')}"
                if matrices
                else f"tensor '{name}' {about}, and there is no matrix of floats"
            )
        self.column = f"tensor '{name}'"
        self.rows = mapped_tensors(path, [name])[name]
        self.num_rows, self.dim = self.rows.shape
        self.dtype = str(self.rows.dtype).removeprefix("torch.")


def matrices_of(path: Path) -> list[str]:
    """The matrices of floats in a safetensors file.

    Raises:
        DataError: it can't be read, or has none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = [name for name, one in slices.items() if _is_matrix(one.get_shape(), one.get_dtype())]
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"'{path}' can't be read as safetensors: {cause_of(error)}. Write it again") from error
    if not found:
        raise DataError(f"'{path}' has no matrix of floats, but {listing(slices) or 'nothing'}; give one that has")
    return found


def _is_matrix(shape: Sequence[int], dtype: str) -> bool:
    return len(shape) == 2 and dtype in ("F16", "BF16", "F32", "F64")


class ParquetVectors(VectorFile):
    """A column of lists of floats, and perhaps one of keys."""

    def __init__(self, path: Path, *, column: str | None, id_column: str | None) -> None:
        self.path, self.column = path, "the file"
        self.file = pq.ParquetFile(path, memory_map=True)
        schema = self.file.schema_arrow
        vectors = [field.name for field in schema if _is_vector(field.type)]
        self.column = f"column '{self._chosen(column, vectors, 'a list of floats', '--column', schema)}'"
        self.name = self.column[8:-1]
        self.num_rows = self.file.metadata.num_rows
        self.dtype = str(_storage(schema.field(self.name).type).value_type)
        if id_column != "":
            self.key_column = self._keys_of(id_column, schema)
        first = next(self.file.iter_batches(batch_size=1, columns=[self.name]), None) if self.num_rows else None
        lists = None if first is None else _storage_array(first.column(0))
        if lists is None:
            self.dim = _fixed_size(schema.field(self.name).type)
        elif lists.null_count:
            raise self.refused("there is no vector; leave the row out", row=0)
        else:
            self.dim = len(lists[0])
            if not self.dim:
                raise self.refused("the vector is empty; leave the row out", row=0)

    def _chosen(self, name: str | None, able: Sequence[str], what: str, option: str, schema: Any) -> str:
        if name is None:
            if len(able) == 1:
                return able[0]
            if able:
                raise self.refused(f"{len(able)} columns are {what} ({listing(able)}); name one with {option}")
            raise self.refused(f"no column is {what}; there are {listing(f'{f.name} ({f.type})' for f in schema)}")
        if name not in schema.names:
            raise self.refused(f"there is no column '{name}'; {nearest_or_all(name, schema.names, label='columns')}")
        if name not in able:
            cure = f"; name one of {listing(able)}" if able else ""
            raise self.refused(f"column '{name}' is {schema.field(name).type}, not {what}{cure}")
        return name

    def _keys_of(self, name: str | None, schema: Any) -> str | None:
        able = [field.name for field in schema if _is_key(field.type)]
        odd = [field.name for field in schema if _is_odd_key(field.type, field.name)]
        if name is None:
            named = [one for one in (*able, *odd) if one.lower() in ("id", "key")]
            if len(named) == 1:
                name, able = named[0], [one for one in able if one in named]
            elif not able:
                name = next((one for one in odd if self._may_be_key(one, schema)), None)
            if name is None and not able:
                return None
        if name in odd:
            assert name is not None
            self._refuse_odd_key(name, schema)
            return name
        return self._chosen(name, able, "text or whole numbers", '--id-column (or --id-column "" for none)', schema)

    def _may_be_key(self, name: str, schema: Any) -> bool:
        """Whether a column of floats, decimals or bytes may be meant as keys: numbers with a fraction are not, unless
        they are called so."""
        return _is_called_key(name) or not pa.types.is_floating(schema.field(name).type) or self._fraction(name) is None

    def _fraction(self, name: str) -> int | None:
        """The first row of a column of floats that is no id: null, not whole, or beyond the numbers that its type
        tells apart."""
        values = pl.Series(pl.from_arrow(pq.read_table(self.path, columns=[name]))[name])  # type: ignore[index]
        exact = 2.0 ** {"halffloat": 11, "float": 24, "double": 53}[str(self.file.schema_arrow.field(name).type)]
        is_id = (values.is_finite() & (values == values.floor()) & (values.abs() <= exact)).fill_null(value=False)
        return None if is_id.all() else int(np.flatnonzero(~is_id.to_numpy())[0])

    def _refuse_odd_key(self, name: str, schema: Any) -> None:
        """Raises DataError for keys that are neither text nor whole numbers, but in floats without a fraction."""
        kind = schema.field(name).type
        row = self._fraction(name) if pa.types.is_floating(kind) else None
        if pa.types.is_floating(kind) and row is None:
            return
        what = "" if row is None else f", and row {row:,} is no whole number"
        raise DataError(
            f"'{self.path}': column '{name}' is {kind}{what}; keys are text or whole numbers. Cast it to integers "
            '(or text), or name another column with --id-column ("" for none, rows in order)',
            field=name,
            row=row,
        )

    def chunks(self) -> Iterator[Tensor]:
        start = 0
        try:
            for batch in self.file.iter_batches(batch_size=self.rows_per_chunk, columns=[self.name]):
                rows_rD = self._rows(_storage_array(batch.column(0)), start)
                self.refuse_non_finite(rows_rD, start=start)
                start += len(rows_rD)
                yield rows_rD
        except (OSError, pa.ArrowException) as error:
            refuse_exhausted(error, doing=f"reading '{self.path}'")
            raise self.refused(f"it can't be read: {cause_of(error)}. Write the file again") from error

    def _rows(self, lists: Any, start: int) -> Tensor:
        if lists.null_count:
            row = int(np.flatnonzero(lists.is_null().to_numpy(zero_copy_only=False))[0])
            raise self.refused("there is no vector; leave the row out", row=start + row)
        lengths_r = np.asarray(pc.list_value_length(lists))
        if (lengths_r != self.dim).any():
            row = int(np.argmax(lengths_r != self.dim))
            raise self.refused(
                f"the vector has {lengths_r[row]} numbers, and the first row's has {self.dim}; all need as many",
                row=start + row,
            )
        values = lists.flatten()
        if values.null_count:
            place = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            raise self.refused(f"number {place % self.dim} is null; mend it", row=start + place // self.dim)
        with np.errstate(over="ignore"):  # what is beyond fp32 is refused as infinite
            array = values.to_numpy(zero_copy_only=False).astype(np.float32)
        return torch.from_numpy(array.reshape(-1, self.dim))

    def keys(self) -> pl.Series | None:
        if self.key_column is None:
            return None
        table = pq.read_table(self.path, columns=[self.key_column], memory_map=True)
        series = pl.Series("key", pl.from_arrow(table)[self.key_column])  # type: ignore[index]
        series = series.cast(pl.String) if series.dtype in (pl.Categorical, pl.Enum) else series
        series = series.cast(pl.Int64) if series.dtype.is_float() else series
        refuse_bad_keys(series, what=f"'{self.path}', column '{self.key_column}'")
        return series


def refuse_bad_keys(keys: pl.Series, *, what: str) -> None:
    """Raises DataError for a key that is missing, or stands for two vectors."""
    cure = 'Mend it, or name another column with --id-column ("" for none)'
    if keys.null_count():
        row = int(np.flatnonzero(keys.is_null().to_numpy())[0])
        raise DataError(f"{what}, row {row:,}: the key is null. {cure}", row=row)
    if keys.n_unique() < len(keys):
        row = int(np.flatnonzero((~keys.is_first_distinct()).to_numpy())[0])
        first = int(np.flatnonzero((keys == keys[row]).to_numpy())[0])
        raise DataError(f"{what}, rows {first:,} and {row:,}: both have the key {shown(keys[row])}. {cure}", row=row)


def _storage(kind: Any) -> Any:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _storage_array(array: Any) -> Any:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _is_vector(kind: Any) -> bool:
    kind = _storage(kind)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _fixed_size(kind: Any) -> int:
    kind = _storage(kind)
    return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else 0


def _is_key(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    of = pa.types
    return bool(of.is_integer(kind) or of.is_string(kind) or of.is_large_string(kind) or of.is_string_view(kind))


def _is_odd_key(kind: Any, name: str) -> bool:
    """Whether a column may be meant as keys, and is of no type that they have: any with one value in a row where it is
    called so."""
    of = pa.types
    is_bytes = (
        of.is_binary(kind) or of.is_large_binary(kind) or of.is_fixed_size_binary(kind) or of.is_binary_view(kind)
    )
    if of.is_floating(kind) or of.is_decimal(kind) or is_bytes:
        return True
    is_many = of.is_nested(_storage(kind)) and not of.is_struct(_storage(kind))
    return _is_called_key(name) and not _is_key(kind) and not is_many


def _is_called_key(name: str) -> bool:
    return name.lower() in ("id", "key") or name.lower().endswith("_id")
