"""A map between two trainings as it is used: loaded from its folder, applied to vectors and to files of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from embank.compression import Alignment
from embank.pipelines.reporting import Phase, Reporter
from embank.pipelines.vectors.align import FORMAT, FORMAT_VERSION, MANIFEST, MAP
from embank.pipelines.vectors.files import VectorFile
from embank.pipelines.vectors.sources import open_source
from embank.tables import CheckpointError, ConfigError
from embank.tables.storage.atomic import publish_file, temporary_beside
from embank.tables.storage.checksums import verify_checksums
from embank.tables.storage.json_text import read_json
from embank.tables.storage.refusals import writing
from embank.tables.wording import listing

_CURE = "Copy the folder again, or make it again with embank align"


class LoadedAlignment:
    """A map of vectors from a folder that `align_vectors` wrote.

    Args:
        path: of the folder.

    Attributes:
        kind: "orthogonal" or "affine".
        new_dim, old_dim: of the vectors that it takes and gives.

    Raises:
        CheckpointError: there is no map, or a damaged one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            raise CheckpointError(f"'{self.path}' holds no map: it has no {MANIFEST}. Give what embank align wrote")
        manifest = read_json(self.path / MANIFEST, cure=_CURE)
        if manifest.get("format") != FORMAT or manifest.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"'{self.path}' holds no map: its format is {manifest.get('format')!r}, version "
                f"{manifest.get('format_version')!r}. Give what embank align wrote"
            )
        verify_checksums(self.path, kind="map", cure=_CURE)
        try:
            tensors = load_file(self.path / MAP)
            self._map = Alignment(kind=manifest["kind"], matrix_MD=tensors["matrix"], offset_D=tensors["offset"])
            self.new_dim, self.old_dim = tensors["matrix"].shape
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"the map in '{self.path}' is damaged ({error}). {_CURE}") from error
        self.kind: str = self._map.kind

    def apply(self, vectors: Tensor | npt.NDArray[Any] | Sequence[Sequence[float]]) -> npt.NDArray[np.float32]:
        """New vectors [N, M] in the space of the old ones, float32 [N, D].

        Raises:
            ConfigError: they are no numbers, or not as long as those that the map was fitted to.
        """
        try:
            given = vectors if isinstance(vectors, Tensor) else torch.from_numpy(np.array(vectors, dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"no vectors can be made of a {type(vectors).__name__} ({error}); give [N, M]") from error
        mapped: npt.NDArray[np.float32] = self._map(given.detach().cpu()).numpy()
        return mapped


def load_alignment(path: str | Path) -> LoadedAlignment:
    """What `embank align` or `align_vectors` has written.

    Raises:
        CheckpointError: there is no map, or a damaged one.

    Example: `load_alignment("map").apply(queries)`
    """
    return LoadedAlignment(path)


@torch.no_grad()
def apply_alignment(
    path: str | Path,
    vectors: str | Path,
    out: str | Path,
    *,
    table: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
    tensor: str | None = None,
    reporter: Reporter | None = None,
) -> int:
    """Maps the vectors of a file or a bundle, some at a time.

    Args:
        path: of the map.
        vectors: what `align_vectors` takes.
        out: a file that must not exist: .npy, or .parquet, which has the column `vector` (fp32), and `key` if there are
            keys.
        table, column, id_column, tensor: see `align_vectors`.
        reporter: of the work.

    Returns:
        How many. Rows of a bundle's table that have no key (unknown and missing values) are not in a `.parquet`.

    Raises:
        ConfigError, DataError, CheckpointError: as `align_vectors`; or vectors of another width.
        WorkError: it can't be written; nothing is left behind.

    Example:
        >>> import numpy
        >>> rows = numpy.random.default_rng(0).normal(size=(100, 4)).astype("float32")
        >>> numpy.save("old.npy", rows)
        >>> numpy.save("new.npy", rows[:, ::-1].copy())
        >>> _ = align_vectors("old.npy", "new.npy", "map")
        >>> apply_alignment("map", "new.npy", "mapped.npy")
        100
        >>> numpy.allclose(numpy.load("mapped.npy"), rows, atol=1e-5)
        True
    """
    alignment, file = LoadedAlignment(path), Path(out)
    writers: dict[str, Callable[..., int]] = {".npy": _write_npy, ".parquet": _write_parquet}
    if file.suffix not in writers:
        raise ConfigError(f"mapped vectors can't be written to '{file}'; give one of {listing(writers)}")
    if file.exists():
        raise CheckpointError(f"'{file}' exists already, and nothing is written over anything; choose another file")
    source = open_source(vectors, table=table, column=column, id_column=id_column, tensor=tensor)
    if source.dim != alignment.new_dim:
        raise ConfigError(
            f"'{source.path}', {source.column} has vectors of {source.dim} numbers, and the map '{path}' takes "
            f"{alignment.new_dim}; give vectors of the training that it was fitted to"
        )
    temporary = temporary_beside(file)
    phase = Phase(reporter or Reporter(), "mapping", total=source.num_rows, unit="rows")
    with writing(f"'{file}'", cure="Nothing was left behind; make room or choose another file"):
        try:
            num_written = writers[file.suffix](temporary, source, alignment, phase)
            publish_file(temporary, file, overwrite=False)
        finally:
            temporary.unlink(missing_ok=True)
    return num_written


def _write_npy(path: Path, source: VectorFile, alignment: LoadedAlignment, phase: Phase) -> int:
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (source.num_rows, alignment.old_dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in source.chunks():
            file.write(alignment.apply(chunk).data)
            phase.advance(len(chunk), rows=len(chunk))
    return source.num_rows


def _write_parquet(path: Path, source: VectorFile, alignment: LoadedAlignment, phase: Phase) -> int:
    keys: pl.Series | None = source.keys()
    vector = pa.field("vector", pa.list_(pa.float32(), alignment.old_dim))
    column = None if keys is None else keys.to_arrow()
    fields = [vector] if column is None else [pa.field("key", column.type), vector]
    start = num_written = 0
    with pq.ParquetWriter(path, pa.schema(fields)) as writer:
        for chunk in source.chunks():
            numbers = pa.array(alignment.apply(chunk).reshape(-1))
            arrays = [pa.FixedSizeListArray.from_arrays(numbers, alignment.old_dim)]
            if column is not None:
                arrays = [column.slice(start, len(chunk)), *arrays]
            written = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
            if column is not None:
                written = written.filter(pc.is_valid(written["key"]))
            writer.write_table(written)
            num_written += written.num_rows
            start += len(chunk)
            phase.advance(len(chunk), rows=len(chunk))
    return num_written
