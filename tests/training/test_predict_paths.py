"""What `embank predict` reads and writes: no spelling of an input is an output; parts are of one input."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from embank.pipelines import load_model, predict
from embank.pipelines.runs import predict as predicting
from embank.tables import DataError, WorkError


@pytest.fixture
def rows(raw: Path) -> pl.DataFrame:
    """200 rows to score, as text."""
    return pl.read_csv(raw / "test.csv", infer_schema=False)


@contextmanager
def stopped_after_two_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A call that is interrupted once two parts of it are written."""
    write, count = predicting._Parts.write, list[int]()

    def stopping(self: Any, *args: Any, **kwargs: Any) -> None:
        write(self, *args, **kwargs)
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(predicting, "BATCH_ROWS", 50)
        patched.setattr(predicting, "PART_ROWS", 1)
        patched.setattr(predicting._Parts, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            yield


def linked_partitions(folder: Path, rows: pl.DataFrame) -> tuple[Path, Path]:
    """A folder whose partition is a link, and the file behind it."""
    (folder / "real" / "dt=1").mkdir(parents=True)
    (folder / "logs").mkdir()
    file = folder / "real" / "dt=1" / "part-0.parquet"
    rows.write_parquet(file)
    (folder / "logs" / "dt=1").symlink_to(folder / "real" / "dt=1")
    return folder / "logs", file


def test_no_spelling_of_an_input_is_an_output(rows: pl.DataFrame, run: Path, tmp_path: Path) -> None:
    for number in range(2):
        rows.write_parquet(tmp_path / f"{number}.parquet")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.parquet").symlink_to(tmp_path / "1.parquet")
    logs, behind = linked_partitions(tmp_path, rows)
    asked = [
        ("0.parquet", "sub/../0.parquet"),
        ("link.parquet", "1.parquet"),
        (logs, behind),
        (logs, logs / "dt=1/part-0.parquet"),
    ]
    for given, out in asked:
        before = (tmp_path / out).read_bytes()
        with pytest.raises(DataError, match="is an input too"):
            predict(run, tmp_path / given, tmp_path / out, format="parquet", overwrite=True)
        assert (tmp_path / out).read_bytes() == before


def test_files_that_are_read_beside_the_rows_are_inputs_too(tmp_path: Path) -> None:
    """Those of MovieLens about users and items."""
    from embank.pipelines.data.sources.formats.base import TextOptions
    from embank.pipelines.data.sources.formats.movielens import open_rows

    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,5,3\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n2,A (1999),Drama\n")
    source = open_rows([tmp_path / "ratings.csv"], TextOptions())
    with pytest.raises(DataError, match=r"movies.csv is an input too"):
        predicting._refuse_out(tmp_path / "movies.csv", source, [tmp_path / "ratings.csv"], overwrite=True)
    predicting._refuse_out(tmp_path / "scores.csv", source, [tmp_path], overwrite=True)


def test_parts_are_of_one_input(rows: pl.DataFrame, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind links too."""
    logs, file = linked_partitions(tmp_path, rows)
    out = tmp_path / "s.parquet"
    with stopped_after_two_parts(monkeypatch):
        predict(run, logs, out, format="parquet", keep=["user"])
    rows.reverse().write_parquet(file)
    os.utime(file, ns=(1, 1))
    with pytest.raises(DataError, match="was begun with another input"):
        predict(run, logs, out, format="parquet", keep=["user"], resume=True)


def test_scores_beside_the_inputs(
    rows: pl.DataFrame, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder of the inputs scores may lie that are no inputs; what is none of them does not matter."""
    logs = tmp_path / "logs"
    logs.mkdir()
    rows.write_parquet(logs / "a.parquet")
    (logs / "notes.txt").symlink_to(tmp_path / "gone")
    with stopped_after_two_parts(monkeypatch):
        predict(run, logs, logs / "scores.csv", format="parquet")
    assert predict(run, logs, logs / "scores.csv", format="parquet", resume=True).num_rows == 200
    assert predict(run, logs, logs / "scores.csv", format="parquet", overwrite=True).num_rows == 200
    with pytest.raises(DataError, match=r"logs, whose \*\.parquet files are the input: it would be one the next time"):
        predict(run, logs, logs / "scores.parquet", format="parquet")
    assert sorted(path.name for path in logs.iterdir()) == ["a.parquet", "notes.txt", "scores.csv"]
    (logs / "_out").mkdir()
    for name in ("_scores.parquet", ".scores.parquet", "_out/scores.parquet"):  # a folder of inputs leaves them out
        assert predict(run, logs, logs / name, format="parquet").num_rows == 200
    assert predict(run, logs, logs / "scores.csv", format="parquet", overwrite=True).num_rows == 200


def test_scores_that_any_folder_of_the_inputs_would_read(rows: pl.DataFrame, run: Path, tmp_path: Path) -> None:
    """A folder that another one leaves out may be an input itself, and a partition a link."""
    outer, hidden = tmp_path / "logs", tmp_path / "logs" / "_more"
    hidden.mkdir(parents=True)
    rows.write_parquet(outer / "a.parquet")
    rows.write_parquet(hidden / "b.parquet")
    out = hidden / "scores.parquet"
    for inputs in ([outer, hidden], [hidden, outer]):
        with pytest.raises(DataError, match=r"lies in the folder \S+_more, whose \*\.parquet files are the input"):
            predict(run, inputs, out, format="parquet")
    assert predict(run, [outer, hidden / "b.parquet"], out, format="parquet").num_rows == 400
    out.unlink()
    assert predict(run, [outer, hidden], hidden / "_s.parquet", format="parquet").num_rows == 400
    linked, behind = linked_partitions(tmp_path / "linked", rows)
    for place in (linked / "dt=1", behind.parent):
        with pytest.raises(DataError, match=r"lies in the folder \S+linked/logs, whose"):
            predict(run, linked, place / "scores.parquet", format="parquet")
    assert predict(run, linked, behind.parent / "scores.csv", format="parquet").num_rows == 200


def test_what_appears_at_the_place_of_the_scores_is_left_alone(
    raw: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "s.csv", predicting._Parts.write

    def beside(self: Any, *args: Any, **kwargs: Any) -> None:
        write(self, *args, **kwargs)
        out.write_text("mine")

    with monkeypatch.context() as patched:
        patched.setattr(predicting._Parts, "write", beside)
        with pytest.raises(
            WorkError, match=r"s.csv has appeared in the meantime and was left alone. What was scored is"
        ):
            predict(run, raw / "test.csv", out)
    assert out.read_text() == "mine"
    assert predict(run, raw / "test.csv", out, resume=True, overwrite=True).num_rows == 200
    assert out.read_text().startswith("score\n")
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]


def test_a_row_without_a_finite_score_is_told(
    raw: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of NaN were written without a word."""
    score = predicting.ServedModel.score_encoded

    def one_is_none(self: Any, encoded: Any) -> Any:
        scores = score(self, encoded)
        scores[min(3, len(scores) - 1)] = float("nan")
        return scores

    monkeypatch.setattr(predicting.ServedModel, "score_encoded", one_is_none)
    with pytest.raises(DataError, match=r"^\S*test.csv, line 5 has no finite score; are its numbers far from those"):
        predict(run, raw / "test.csv", tmp_path / "s.csv")
    assert not list(tmp_path.iterdir())
    model = load_model(run)
    with pytest.raises(DataError, match="^row 0 has no finite score"):
        model.score([model.example])


@pytest.mark.parametrize("batch", [64, 4096], ids=["in batches", "all at once"])
def test_a_row_without_a_finite_score_is_told_by_its_file(
    raw: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Rows of several files were counted on, and the first one named."""
    score, files, seen = predicting.ServedModel.score_encoded, tmp_path / "files", list[int]()
    files.mkdir()
    for name in ("one.csv", "other.csv"):
        shutil.copy(raw / "test.csv", files / name)

    def one_is_none(self: Any, encoded: Any) -> Any:
        scores, first = score(self, encoded), sum(seen)
        seen.append(len(scores))
        if first <= 230 < first + len(scores):
            scores[230 - first] = float("inf")
        return scores

    monkeypatch.setattr(predicting.ServedModel, "score_encoded", one_is_none)
    monkeypatch.setattr(predicting, "BATCH_ROWS", batch)
    with pytest.raises(DataError, match=r"other.csv, line 32 has no finite score"):
        predict(run, [files / "one.csv", files / "other.csv"], tmp_path / "s.csv")


def test_an_output_is_no_file_of_the_bundle(raw: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "bundle", tmp_path / "bundle")
    token_file = min((tmp_path / "bundle" / "tokens").iterdir())
    before = token_file.read_bytes()
    for out in (token_file, tmp_path / "bundle" / "scores.csv"):
        with pytest.raises(DataError, match="the bundle that scores the rows"):
            predict(tmp_path / "bundle", raw / "test.csv", out, overwrite=True)
    assert token_file.read_bytes() == before
