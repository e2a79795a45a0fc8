"""From a raw log to scores of raw rows: those of `embank evaluate`, to the bit."""

import json
import os
import shutil
import threading
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.compression import METHODS
from embank.ctr_models.metrics.auc import roc_auc
from embank.pipelines import compress_vectors, load_model, predict, prepare
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.runs import predict as predicting
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.export import export_run
from embank.pipelines.runs.inspect import inspect_bundle
from embank.pipelines.runs.model import probabilities
from embank.tables import CheckpointError, ConfigError, DataError, WorkError, method_class
from embank.tables.storage.checksums import CHECKSUMS, write_checksums
from tests import processes
from tests.data.test_formats_published import criteo_rows, write
from tests.tables.bundles import run_code
from tests.training.raw_runs import MODEL, TABLES, TRAIN, write_raw
from tests.training.runs import train, write_data

NAMES = sorted(name for name in METHODS if not name.startswith("test_"))


def auc_of(scores: Sequence[float], labels: Sequence[int]) -> float:
    return roc_auc(torch.tensor(scores, dtype=torch.float64), torch.tensor(labels) == 1)


_CENTS, _MILLS = pl.Decimal(5, 2), pl.Decimal(9, 3)


@pytest.mark.parametrize("name", ["tables.safetensors", "vocabulary.safetensors", "network.safetensors"])
def test_a_damaged_bundle_scores_nothing(name: str, raw: Path, run: Path, tmp_path: Path) -> None:
    """A changed bit of a row or of a vocabulary would give other scores without a word."""
    shutil.copytree(run / "bundle", tmp_path / "bundle")
    content = bytearray((tmp_path / "bundle" / name).read_bytes())
    content[-9] ^= 1
    (tmp_path / "bundle" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}.*has been altered"):
        predict(tmp_path / "bundle", raw / "test.csv", tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("few"), num_rows=600)


def labels_of(path: Path) -> list[int]:
    return pl.read_csv(path, infer_schema=False)["click"].cast(pl.Int64).to_list()


def result_of(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "result.json").read_text())
    return values


def test_scores_are_those_of_the_evaluation(raw: Path, run: Path, tmp_path: Path) -> None:
    done = predict(run, raw / "test.csv", tmp_path / "s.parquet", keep=["user", "click"])
    frame = pl.read_parquet(tmp_path / "s.parquet")
    assert frame.columns == ["user", "click", "score"]
    assert frame["user"].to_list() == pl.read_csv(raw / "test.csv", infer_schema=False)["user"].to_list()
    assert auc_of(frame["score"].to_list(), labels_of(raw / "test.csv")) == result_of(run)["auc"]
    assert done.num_rows == 200
    assert done.num_unknown["city"] > 0
    assert evaluate_saved(run / "bundle", data=raw / "data", split="test")["auc"] == result_of(run)["auc"]
    model = load_model(run)
    [batch] = Loader(raw / "data", "test", batch_size=8192, shuffle=False).epoch(0)
    np.testing.assert_array_equal(model.score_ids(batch.sparse, batch.dense), frame["score"])
    lengths = batch.sparse.lengths().clone().view(len(batch.sparse.keys()), -1)
    place = batch.sparse.keys().index("user")
    lengths[place, :2] = torch.tensor([2, 0])
    other = KeyedJaggedTensor(keys=batch.sparse.keys(), values=batch.sparse.values(), lengths=lengths.flatten())
    with pytest.raises(DataError, match="feature 'user' has one value in each row, and row 0 of the given ids has 2"):
        model.score_ids(other, batch.dense)
    values, own = batch.sparse["user"].values(), batch.sparse["user"].lengths()
    with pytest.raises(DataError, match="which the batch lacks; it has: user"):
        model.score_ids(KeyedJaggedTensor(keys=["user"], values=values, lengths=own), batch.dense)
    np.testing.assert_array_equal(model.score(pl.read_csv(raw / "test.csv", infer_schema=False)), frame["score"])
    rows = pl.read_csv(raw / "test.csv", infer_schema=False).to_dicts()
    one_by_one = np.concatenate([model.score([row]) for row in rows[:50]])
    np.testing.assert_allclose(one_by_one, frame["score"][:50], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", NAMES)
def test_every_method_scores_raw_rows_as_it_was_evaluated(few: Path, tmp_path: Path, method: str) -> None:
    tables: dict[str, Any] = {"dim": 4, "method": method}
    if method in ("hash", "unified"):
        tables |= {"num_rows": 60} if method == "hash" else {"rows": 120, "width": 4}
    if not method_class(method).traits.takes_token_ids:
        tables["overrides"] = {"page": {"method": "hash", "num_rows": 30}}
    result = train(few / "data", tmp_path / "run", tables=tables, model=MODEL, train=TRAIN)
    predict(tmp_path / "run", few / "test.csv", tmp_path / "s.csv")
    frame = pl.read_csv(tmp_path / "s.csv")
    assert frame.columns == ["score"]
    assert auc_of(frame["score"].to_list(), labels_of(few / "test.csv")) == result["auc"]
    embedded = load_model(tmp_path / "run").embed("user", ["u1", "nobody", None])
    assert embedded.shape == (3, 4)
    assert np.isfinite(embedded).all()


def avazu_rows() -> list[list[object]]:
    rng = np.random.default_rng(0)
    header = ["id", "click", "hour", *(f"f{number}" for number in range(21))]
    from embank.pipelines.data.sources.formats.avazu import PLAIN

    header[3:] = PLAIN
    rows: list[list[object]] = [header]
    for number in range(600):
        hour = f"141021{number // 30:02}"
        rows.append([number, int(rng.integers(2)), hour, *(int(cell) for cell in rng.integers(5, size=len(PLAIN)))])
    return rows


def kdd_rows() -> list[list[object]]:
    rng = np.random.default_rng(0)
    return [[int(rng.integers(2)), 1 + int(rng.integers(2)), *rng.integers(6, size=10).tolist()] for _ in range(400)]


@pytest.mark.parametrize("name", ["criteo", "avazu", "kdd12", "movielens"])
def test_every_published_format_scores_with_and_without_labels(tmp_path: Path, name: str) -> None:
    ratio = {"split": {"by": "ratio", "ratios": [0.8, 0.1, 0.1]}}
    scored, labels = tmp_path / "scored.txt", list[int]()
    if name == "criteo":
        rows = criteo_rows(400)
        log, bare = write(tmp_path / "log.txt", rows, "\t"), [row[1:] for row in rows[360:]]
        labels = [int(str(row[0])) for row in rows[360:]]
        write(scored, bare, "\t")
    elif name == "avazu":
        rows = avazu_rows()
        log = write(tmp_path / "log.csv", rows, ",")
        labels = [int(str(row[1])) for row in rows[541:]]
        write(scored, [[row[0], *row[2:]] for row in [rows[0], *rows[541:]]], ",")
    elif name == "kdd12":
        rows = kdd_rows()
        log = write(tmp_path / "log.txt", rows, "\t")
        write(scored, [row[2:] for row in rows], "\t")
    else:
        log, labels, scored = movielens(tmp_path)
    config = {} if name == "avazu" else ratio
    prepare(config, log, tmp_path / "data", format=name)
    result = train(tmp_path / "data", tmp_path / "run", tables={"dim": 4}, model=MODEL, train=TRAIN)
    shutil.rmtree(tmp_path / "data")
    predict(tmp_path / "run", scored, tmp_path / "s.parquet")
    scores = pl.read_parquet(tmp_path / "s.parquet")["score"].to_list()
    if name == "kdd12":  # a line has one score, whatever its impressions
        pairs = [
            (score, int(number < int(str(row[0]))))
            for score, row in zip(scores, rows, strict=True)
            for number in range(int(str(row[1])))
        ]
        scores, labels = (list(column) for column in zip(*pairs[len(pairs) * 9 // 10 :], strict=True))
        assert auc_of(scores, labels) == pytest.approx(result["auc"], abs=0.02)
    else:
        assert auc_of(scores, labels) == result["auc"]
    model = load_model(tmp_path / "run")
    assert model.score([model.example]).shape == (1,)
    if name == "avazu":
        with pytest.raises(DataError, match=r"rows\[0\]: column 'hour' is '99'; expected YYMMDDHH"):
            model.score([{**model.example, "hour": "99"}])


def movielens(folder: Path) -> tuple[Path, list[int], Path]:
    rng = np.random.default_rng(0)
    rows = [[int(n) for n in (*rng.integers(1, 20, size=2), rng.integers(1, 6), 8 * 10**8)] for _ in range(500)]
    (folder / "log").mkdir()
    head = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    write(folder / "log" / "x.inter", [head, *rows], "\t")
    users = [[n, n % 5, "MF"[n % 2], f"o{n % 3}", f"z{n}"] for n in range(1, 20)]
    head = ["user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"]
    write(folder / "log" / "x.user", [head, *users], "\t")
    items = [[n, f"T{n}", 1990 + n % 4, "Drama War" if n % 2 else "Comedy"] for n in range(1, 20)]
    head = ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]
    write(folder / "log" / "x.item", [head, *items], "\t")
    rated = [row for row in rows if row[2] != 3]
    test = rated[len(rated) * 9 // 10 + (1 if len(rated) * 9 % 10 else 0) :]
    shutil.copytree(folder / "log", folder / "scored")
    write(folder / "scored" / "x.inter", [["user_id:token", "item_id:token"], *(row[:2] for row in test)], "\t")
    return folder / "log", [int(row[2] >= 4) for row in test], folder / "scored"


def test_what_was_stopped_goes_on(raw: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predict(run, raw / "log.csv", tmp_path / "whole.parquet", keep=["user"])
    monkeypatch.setattr(predicting, "BATCH_ROWS", 128)
    monkeypatch.setattr(predicting, "PART_ROWS", 256)
    out, score, calls = tmp_path / "s.parquet", predicting.ServedModel.score_encoded, list[int]()

    def stopping(self: Any, encoded: Any) -> Any:
        calls.append(encoded.num_rows)
        if len(calls) in (6, 12):
            raise KeyboardInterrupt
        return score(self, encoded)

    monkeypatch.setattr(predicting.ServedModel, "score_encoded", stopping)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            predict(run, raw / "log.csv", out, keep=["user"], resume=resume)
    with pytest.raises(DataError, match="holds 1,024 scored rows of a call that was stopped"):
        predict(run, raw / "log.csv", out, keep=["user"])
    with pytest.raises(DataError, match=r"begun with another keep \(\['user'\], now \[\]\)"):
        predict(run, raw / "log.csv", out, resume=True)
    done = predict(run, raw / "log.csv", out, keep=["user"], resume=True)
    assert done.num_rows == 2000
    assert done.num_unknown == whole.num_unknown
    one, other = pl.read_parquet(out), pl.read_parquet(tmp_path / "whole.parquet")
    assert one["user"].to_list() == other["user"].to_list()
    np.testing.assert_array_equal(one["score"], other["score"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.parquet", "whole.parquet"]
    assert max(calls) == 128


def test_what_a_kill_leaves_is_gone_on_with(raw: Path, run: Path, tmp_path: Path) -> None:
    parts = tmp_path / ".s.parquet.parts"
    parts.mkdir()  # before its state was written
    predict(run, raw / "test.csv", tmp_path / "s.parquet")
    (tmp_path / "..s.parquet.parts.removed").mkdir()
    (tmp_path / "..s.parquet.parts.removed" / "part-00000.parquet").touch()
    predict(run, raw / "test.csv", tmp_path / "s.parquet", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["s.parquet"]
    parts.mkdir()
    (parts / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is in the way, and is none of ours"):
        predict(run, raw / "test.csv", tmp_path / "s.parquet", overwrite=True)
    assert (parts / "notes.txt").read_text() == "mine"


def test_a_damaged_part_is_told(raw: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, os.strerror(28), "s.parquet")

    with monkeypatch.context() as patched:
        patched.setattr(predicting, "_write_parquet", full)
        with pytest.raises(WorkError):
            predict(run, raw / "test.csv", tmp_path / "s.parquet")
    part = tmp_path / ".s.parquet.parts" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match="is damaged, so all parts were removed"):
        predict(run, raw / "test.csv", tmp_path / "s.parquet", resume=True)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_told(raw: Path, run: Path, tmp_path: Path) -> None:
    def said(kind: type[Exception], path: Path = run, file: Path = raw / "test.csv", **more: Any) -> str:
        with pytest.raises(kind) as caught:
            predict(path, file, **{"out": tmp_path / "s.parquet", **more})
        assert not (tmp_path / "s.parquet").exists()
        return str(caught.value)

    frame = pl.read_csv(raw / "test.csv", infer_schema=False)
    frame.rename({"price": "prize"}).write_csv(tmp_path / "renamed.csv")
    renamed = said(DataError, file=tmp_path / "renamed.csv")
    assert "has no column 'price', which the model was trained on. Did you mean 'prize'?" in renamed
    assert "has no column 'usr', which is to be kept. Did you mean 'user'?" in said(DataError, keep=["usr"])
    frame.with_columns(pl.lit("dear").alias("price")).write_csv(tmp_path / "dear.csv")
    assert "dear.csv, line 2: column 'price' is 'dear'" in said(DataError, file=tmp_path / "dear.csv")
    assert not (tmp_path / ".s.parquet.parts").exists()
    assert "ends neither in .parquet nor in .csv" in said(ConfigError, out=tmp_path / "s.txt")
    assert "there is no folder" in said(DataError, out=tmp_path / "none" / "s.csv")
    assert "holds no bundle and no run" in said(CheckpointError, path=tmp_path)
    assert "no such" not in said(DataError, file=tmp_path / "missing.csv")
    frame.write_parquet(tmp_path / "test.parquet")
    both = said(DataError, file=[raw / "test.csv", tmp_path / "test.parquet"])
    assert "'test.parquet' is named as a Parquet file and" in both.replace(f"{tmp_path}/", "")
    assert both.endswith("files of one call have one format; score them in two calls")
    frame.write_csv(tmp_path / "test.tsv", separator="\t")
    assert "or give --format tsv." in said(DataError, file=tmp_path / "test.tsv")
    frame.write_ndjson(tmp_path / "test.jsonl")
    assert "JSON, which is not read; write it as CSV, TSV or Parquet" in said(DataError, file=tmp_path / "test.jsonl")
    np.save(tmp_path / "v.npy", np.zeros((9, 4), dtype=np.float32))
    compress_vectors(tmp_path / "v.npy", tmp_path / "vectors", codec="int8")
    assert "vectors of `embank compress`, and no model that scores rows" in said(ConfigError, path=tmp_path / "vectors")
    write_data(tmp_path / "generated")
    train(tmp_path / "generated", tmp_path / "plain", model=MODEL, train=TRAIN)
    assert "can't score any" in said(ConfigError, path=tmp_path / "plain")
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    (tmp_path / "unfinished" / "config.yaml").touch()
    assert "has no bundle yet: finish it" in said(CheckpointError, path=tmp_path / "unfinished")


def test_what_csv_can_not_hold_is_refused_before_it_is_scored(raw: Path, run: Path, tmp_path: Path) -> None:
    frame = pl.read_csv(raw / "test.csv", infer_schema=False).with_columns(bag=pl.lit([1, 2]))
    frame.write_parquet(tmp_path / "test.parquet")
    with pytest.raises(DataError, match="test.parquet: column 'bag' has type large_list<item: int64>, which CSV"):
        predict(run, tmp_path / "test.parquet", tmp_path / "s.csv", keep=["bag"])
    predict(run, tmp_path / "test.parquet", tmp_path / "s.parquet", keep=["bag", "user", "bag"])
    assert pl.read_parquet(tmp_path / "s.parquet").columns == ["bag", "user", "score"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.parquet", "test.parquet"]


def test_a_file_of_its_name_is_not_written_over(raw: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        predict(run, raw / "test.csv", tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == "mine"
    predict(run, raw / "test.csv", tmp_path / "s.csv", overwrite=True)
    assert len(pl.read_csv(tmp_path / "s.csv")) == 200


def test_a_full_disk_keeps_what_was_scored(
    raw: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, os.strerror(28), "s.parquet")

    with monkeypatch.context() as patched:
        patched.setattr(predicting, "_write_parquet", full)
        with pytest.raises(WorkError, match="give the same command with --resume"):
            predict(run, raw / "test.csv", tmp_path / "s.parquet")
    assert predict(run, raw / "test.csv", tmp_path / "s.parquet", resume=True).num_rows == 200


def test_a_path_that_takes_no_files_is_bad_input(
    raw: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, os.strerror(13), "s.parquet")

    monkeypatch.setattr(predicting, "_write_parquet", refuse)
    with pytest.raises(ConfigError, match="s.parquet: Permission denied. Mend it and give the same command with --res"):
        predict(run, raw / "test.csv", tmp_path / "s.parquet")


@pytest.mark.slow
def test_threads_share_a_model(raw: Path, run: Path) -> None:
    model = load_model(run)
    rows = pl.read_csv(raw / "test.csv", infer_schema=False)
    want = model.score(rows)
    wrong = list[int]()

    def work(number: int) -> None:
        for _ in range(10):
            few = rows.slice(number, 3).to_dicts()
            if not np.array_equal(model.score(rows), want) or not np.array_equal(
                model.score(few), want[number : number + 3]
            ):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_does_not_fit_a_model_is_said(run: Path) -> None:
    model = load_model(run)
    assert model.features["genres"] == {"type": "multivalued", "separator": "|"}
    assert list(model.features) == ["user", "city", "page", "genres", "price", "age", "clicks", "rank"]
    with pytest.raises(ConfigError, match="there is no categorical feature 'price'"):
        model.embed("price", ["1"])
    with pytest.raises(ConfigError, match="Did you mean 'user'"):
        model.embed("usr", ["1"])
    with pytest.raises(DataError, match="give a list of values"):
        model.embed("user", "u1")
    assert model.score([]).shape == (0,)
    assert model.embed("genres", []).shape == (0, 4)
    np.testing.assert_array_equal(model.embed("user", [3, "u1"]), model.embed("user", ["3", "u1"]))


@pytest.mark.slow
def test_rows_of_several_batches_are_scored_like_those_of_one(raw: Path, run: Path) -> None:
    model = load_model(run)
    rows = pl.read_csv(raw / "test.csv", infer_schema=False)
    want = model.score(rows)
    many = model.score(pl.concat([rows] * 42))  # 8,400: a batch and a part of one
    assert many.shape == (8400,)
    np.testing.assert_array_equal(many.reshape(42, 200), np.tile(want, (42, 1)))
    for size in (2, 3, 7, 33):
        parts = [model.score(rows.slice(start, size)) for start in range(0, 198 - size, size)]
        np.testing.assert_array_equal(np.concatenate(parts), want[: sum(map(len, parts))])


def test_logits_of_any_size_have_a_probability() -> None:
    logits = torch.tensor([-1000.0, -100.0, 0.0, 1.0, 100.0, 1000.0])
    scores = probabilities(logits)
    np.testing.assert_allclose(scores, torch.sigmoid(logits.double()), rtol=1e-15)
    assert (scores[0], scores[2], scores[-1]) == (0.0, 0.5, 1.0)


@pytest.mark.slow
def test_children_of_a_fork_score_with_a_model_that_was_loaded_before(run: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal
from embank.pipelines import load_model
model = load_model({str(run)!r})
rows = [model.example] * 300
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if model.score(rows).shape == (300,) and model.score(rows[:1]).shape == (1,) else 1)
    children.append(child)
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
"""
    done = processes.run_code(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_fresh_process_scores_without_torchrec(raw: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "bundle", tmp_path / "bundle")
    code = """
import sys, json
from embank.pipelines import load_model
model = load_model("bundle")
scores = model.score([model.example, {**model.example, "user": "nobody"}])
assert scores.shape == (2,) and (scores > 0).all()
for name in ("torchrec", "fbgemm_gpu", "optuna", "matplotlib", "embank.pipelines.train", "embank.tables.sharding"):
    assert name not in sys.modules, name
"""
    done = run_code(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_tokens_may_be_left_out(raw: Path, run: Path, tmp_path: Path) -> None:
    export_run(run, out=tmp_path / "whole")
    export_run(run, out=tmp_path / "bare", tokens=False)
    assert (tmp_path / "whole" / "tokens" / "user.parquet").is_file()
    assert not (tmp_path / "bare" / "tokens").exists()
    rows = pl.read_csv(raw / "test.csv", infer_schema=False)
    bare, whole = load_model(tmp_path / "bare", verify=True), load_model(tmp_path / "whole", verify=True)
    np.testing.assert_array_equal(bare.score(rows), whole.score(rows))
    assert bare.example["user"] == "a"
    assert whole.example["user"] in whole.rules.vocabulary("user").tokens
    assert bare.score([bare.example]).shape == (1,)
    assert bare.checksum != whole.checksum == load_model(run).checksum
    with pytest.raises(ConfigError, match="tokens of feature 'user' were left out"):
        bare.rules.vocabulary("user")
    [_, _, scores] = inspect_bundle(tmp_path / "bare")["notes"]
    assert "vocabularies, the tokens themselves left out" in scores
    assert inspect_bundle(tmp_path / "bare")["vocabulary_bytes"] > 0


def test_a_bundle_of_an_earlier_version_is_made_anew(raw: Path, tmp_path: Path) -> None:
    train(raw / "data", tmp_path / "run", tables=TABLES, model=MODEL, train=TRAIN)
    own = tmp_path / "run" / "bundle"
    for name in ("preprocess.json", "vocabulary.safetensors"):
        (own / name).unlink()
    shutil.rmtree(own / "tokens")
    (own / CHECKSUMS).unlink()
    write_checksums(own)
    with pytest.raises(ConfigError, match="Export its run again"):
        load_model(tmp_path / "run")
    export_run(tmp_path / "run", out=tmp_path / "new")
    scores = load_model(tmp_path / "new").score(pl.read_csv(raw / "test.csv", infer_schema=False))
    assert auc_of(scores.tolist(), labels_of(raw / "test.csv")) == result_of(tmp_path / "run")["auc"]


@pytest.mark.slow
def test_the_command(raw: Path, run: Path, tmp_path: Path) -> None:
    done = processes.embank("predict", str(run), "--input", str(raw / "test.csv"), "--out", str(tmp_path / "s.csv"))
    assert done.returncode == 0, done.stderr
    assert "200 rows scored by bundle" in done.stdout
    assert "values that training did not have: city" in done.stdout


def test_kept_values_of_several_types_stay_what_they_are(raw: Path, run: Path, tmp_path: Path) -> None:
    frame = pl.read_csv(raw / "test.csv", infer_schema=False)
    prices = [
        frame.with_columns(price=pl.lit(price).cast(kind)) for price, kind in (("1.1", _CENTS), ("1.234", _MILLS))
    ]
    for number, own in enumerate(prices):
        own.write_parquet(tmp_path / f"{number}.parquet")
    predict(run, [tmp_path / "0.parquet", tmp_path / "1.parquet"], tmp_path / "out.parquet", keep=["price"])
    kept = pl.read_parquet(tmp_path / "out.parquet")["price"]
    assert [kept[0], kept[-1]] == [Decimal("1.1"), Decimal("1.234")]
