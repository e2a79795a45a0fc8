"""Files of vectors: what is read, and what is refused by row and column."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from embank.pipelines.reporting import Reporter
from embank.pipelines.vectors.files import open_vectors
from embank.pipelines.vectors.matrix import as_matrix
from embank.tables import DataError

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3) / 4


def parquet(path: Path, vectors: Any, **columns: Any) -> Path:
    pq.write_table(pa.table({"vector": vectors, **columns}), path, row_group_size=2)
    return path


def matrix(path: Path, **options: Any) -> torch.Tensor:
    return as_matrix(open_vectors(path, **options), path.parent / "scratch", reporter=Reporter())


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("lists", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 3)])
def test_parquet_gives_the_numbers_of_its_lists(kind: Any, lists: Any, tmp_path: Path) -> None:
    array = pa.array(ROWS.tolist(), type=lists(pa.float64())).cast(lists(kind))
    source = open_vectors(parquet(tmp_path / "v.parquet", array, id=[3, 1, 2, 0]))
    assert (source.num_rows, source.dim, source.key_column) == (4, 3, "id")
    assert source.keys().to_list() == [3, 1, 2, 0]
    assert torch.equal(matrix(tmp_path / "v.parquet"), torch.from_numpy(ROWS))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_npy_gives_its_numbers_mapped_where_it_can(kind: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", ROWS.astype(kind))
    assert torch.equal(matrix(tmp_path / "v.npy"), torch.from_numpy(ROWS))
    assert (open_vectors(tmp_path / "v.npy").mapped() is not None) == (kind is np.float32)
    np.save(tmp_path / "columns.npy", np.asfortranarray(ROWS.astype(kind)))
    assert torch.equal(matrix(tmp_path / "columns.npy"), torch.from_numpy(ROWS))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_safetensors_gives_the_matrix_that_is_meant(kind: torch.dtype, tmp_path: Path) -> None:
    rows = torch.from_numpy(ROWS)
    save_file({"rows": rows.to(kind), "bias": torch.zeros(3), "ids": torch.arange(4)}, tmp_path / "v.safetensors")
    assert torch.equal(matrix(tmp_path / "v.safetensors"), rows)
    save_file({"rows": rows.to(kind), "other": torch.zeros(2, 2)}, tmp_path / "two.safetensors")
    with pytest.raises(DataError, match=r"2 matrices of floats \(other, rows\); name one with --tensor"):
        open_vectors(tmp_path / "two.safetensors")
    assert torch.equal(matrix(tmp_path / "two.safetensors", tensor="rows"), rows)
    with pytest.raises(DataError, match="tensor 'row' is not there; did you mean 'rows'"):
        open_vectors(tmp_path / "two.safetensors", tensor="row")


@pytest.mark.parametrize(
    ("vectors", "told"),
    [
        (
            [[1.0, 2.0], [1.0, 2.0], [1.0]],
            "column 'vector', row 2: the vector has 1 numbers, and the first row's has 2",
        ),
        ([[1.0, 2.0], [1.0, 2.0], []], "row 2: the vector has 0 numbers"),
        ([[1.0, 2.0], None], "row 1: there is no vector"),
        ([[1.0, 2.0], [1.0, None]], "row 1: number 1 is null"),
        ([[1.0, 2.0], [1.0, 2.0], [float("nan"), 2.0]], "row 2: number 0 is nan"),
        ([[1.0, 2.0], [1.0, float("-inf")]], "row 1: number 1 is -inf"),
        ([[1.0, 1e300]], "row 0: number 1 is inf"),
        ([[], [1.0]], "row 0: the vector is empty"),
        ([None, [1.0]], "row 0: there is no vector"),
        ([], "there are no vectors: 0 rows"),
    ],
)
def test_a_vector_that_is_none_is_refused_by_row_and_column(vectors: Any, told: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "v.parquet", pa.array(vectors, type=pa.list_(pa.float64())))
    with pytest.raises(DataError, match=told):
        matrix(path)


def test_numbers_of_mapped_files_are_looked_at_too(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[2, 1] = np.nan
    np.save(tmp_path / "v.npy", rows)
    with pytest.raises(DataError, match=r"the array, row 2: number 1 is nan"):
        matrix(tmp_path / "v.npy")


def test_columns_are_chosen_where_one_alone_is_meant(tmp_path: Path) -> None:
    lists = pa.array(ROWS.tolist())
    path = parquet(tmp_path / "v.parquet", lists, other=lists, ID=[1, 2, 3, 4], text=["a", "b", "b", None])
    with pytest.raises(DataError, match=r"2 columns are a list of floats \(vector, other\); name one with --column"):
        open_vectors(path)
    source = open_vectors(path, column="other")
    assert (source.column, source.key_column) == ("column 'other'", "ID")
    assert open_vectors(path, column="other", id_column="").keys() is None
    with pytest.raises(DataError, match="there is no column 'vectors'; did you mean 'vector'"):
        open_vectors(path, column="vectors")
    with pytest.raises(DataError, match="column 'text' is string, not a list of floats; name one of vector, other"):
        open_vectors(path, column="text")
    with pytest.raises(DataError, match="row 3: the key is null"):
        open_vectors(path, column="other", id_column="text").keys()
    path = parquet(tmp_path / "keys.parquet", lists, doc=["a", "b", "b", "c"], page=[1, 2, 3, 4])
    with pytest.raises(
        DataError, match=r"2 columns are text or whole numbers \(doc, page\); name one with --id-column"
    ):
        open_vectors(path)
    with pytest.raises(DataError, match="rows 1 and 2: both have the key 'b'"):
        open_vectors(path, id_column="doc").keys()
    path = parquet(tmp_path / "plain.parquet", lists)
    assert open_vectors(path).key_column is None
    pl.DataFrame({"vector": [[1, 2]]}).write_parquet(tmp_path / "whole.parquet")
    with pytest.raises(DataError, match=r"no column is a list of floats; there are vector \(large_list<.*int64>\)"):
        open_vectors(tmp_path / "whole.parquet")


def test_a_column_that_is_called_a_key_is_one_or_is_refused(tmp_path: Path) -> None:
    """Rows were taken in order, without a word."""
    lists, texts = pa.array(ROWS.tolist()), ["a", "b", "c", "d"]
    path = parquet(tmp_path / "view.parquet", lists, token=pa.array(texts, pa.string_view()))
    keys = open_vectors(path).keys()
    assert keys is not None
    assert keys.to_list() == texts
    others = [
        pa.array([1, 2, 3, 4], pa.date32()),
        pa.array([1, 2, 3, 4], pa.timestamp("us")),
        pa.array([True, False, True, False]),
        pa.nulls(4),
        pa.array([b"a", b"b", b"c", b"d"], pa.binary_view()),
        pa.array([b"0123456789abcdef"] * 4, pa.uuid()),
        pa.array([{"a": 1}] * 4),
    ]
    for number, column in enumerate(others):
        path = parquet(tmp_path / f"{number}.parquet", lists, user_id=column)
        with pytest.raises(DataError, match="column 'user_id' is .*; keys are text or whole numbers. Cast it"):
            open_vectors(path)
        assert open_vectors(path, id_column="").keys() is None
    path = parquet(tmp_path / "beside.parquet", lists, day=others[0], seen_ids=pa.array([[1]] * 4))
    assert open_vectors(path).key_column is None


@pytest.mark.parametrize("suffix", ["parquet", "npy", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"no such file"])
def test_damaged_files_are_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"v.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"v\.{suffix}' can't be read as {suffix}"):
        open_vectors(path)


def test_a_name_may_have_dots_and_a_file_no_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"emb.v1": ROWS.tolist(), "emb": ["a", "b", "c", "d"]}), tmp_path / "v.parquet")
    assert torch.equal(matrix(tmp_path / "v.parquet"), torch.from_numpy(ROWS))
    assert open_vectors(tmp_path / "v.parquet").keys().to_list() == ["a", "b", "c", "d"]
    np.save(tmp_path / "v.npy", ROWS[:0])
    with pytest.raises(DataError, match="there are no vectors: 0 rows of 3 numbers"):
        open_vectors(tmp_path / "v.npy")
    save_file({"rows": torch.zeros(0, 3)}, tmp_path / "v.safetensors")
    with pytest.raises(DataError, match="there are no vectors: 0 rows of 3 numbers"):
        open_vectors(tmp_path / "v.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file of vectors that can be read; give one of \.parquet, \.npy"):
        open_vectors(tmp_path / "v.csv")
    with pytest.raises(DataError, match="there is no file"):
        open_vectors(tmp_path / "v.npy")
    np.save(tmp_path / "v.npy", np.arange(4))
    with pytest.raises(DataError, match=r"it has the shape \[4\]; give a matrix"):
        open_vectors(tmp_path / "v.npy")
    np.save(tmp_path / "v.npy", np.arange(4).reshape(2, 2))
    with pytest.raises(DataError, match="it holds int64; give float16, float32 or float64"):
        open_vectors(tmp_path / "v.npy")
    with pytest.raises(DataError, match="has no columns, and 'x' was given"):
        open_vectors(tmp_path / "v.npy", column="x")


@pytest.mark.slow
def test_lists_without_keys_in_a_process_that_has_loaded_nothing_else(tmp_path: Path) -> None:
    """Parts of pyarrow are there once something has imported them: a file with keys, or tests before this one."""
    path = parquet(tmp_path / "v.parquet", pa.array(ROWS.tolist(), pa.list_(pa.float32())))
    script = (
        "import sys; from embank.pipelines import compress_vectors; compress_vectors(*sys.argv[1:], codec='int8'); "
        "from embank.pipelines import load_vectors; print(load_vectors(sys.argv[2]).num_rows)"
    )
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "4"
