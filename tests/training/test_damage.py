"""What a run finds changed when it comes back, and folders of other people that it must not touch."""

import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from embank.pipelines.config.run import parse_config
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.row_folders import KINDS, remove_unused_rows
from embank.pipelines.train import readiness
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.trainer import Trainer
from embank.tables import (
    BudgetError,
    CheckpointError,
    ConfigError,
    DataError,
    RowOptimizer,
    RowTier,
    TableCollection,
    TableSpec,
)
from embank.tables.rows.disk.mapped import MappedFile
from tests.data.test_integrity import CONFIG, swap, write_log
from tests.faults.place import contents
from tests.told import Told
from tests.training.runs import config, timeless, train, write_data
from tests.training.test_resume import StopAt

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stopped_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(InterruptedRunError):
        Trainer(config(data), run, reporter=StopAt(14, signal.SIGTERM)).train()
    return run


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(stopped_run, tmp_path / "run")))


def fail_early(data: Path, run: Path) -> None:
    """Training that is refused after it has taken the folder."""
    with pytest.raises(BudgetError):
        train(data, run, tables={"dim": 4, "method": "hash", "budget": 1e-9}, rows={"tier": "disk"})


@pytest.mark.parametrize("name", ["plots", "checkpoints", "rows", ".config.yaml.tmp", "thesis"])
def test_a_folder_with_files_of_others_is_refused_and_kept(data: Path, tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine" / name
    mine.mkdir(parents=True)
    (mine / "my.png").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(data, tmp_path / "mine")
    assert (mine / "my.png").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["plots/my.png", "checkpoints/a/b", "rows/user.csv", "rows/deep/user.0.f32", "rows/trial/t.0.f32"]
)
def test_a_lock_of_a_killed_run_makes_no_file_ours(data: Path, tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (tmp_path / "mine/.lock").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(data, tmp_path / "mine")
    assert mine.read_text() == "mine"


def test_a_run_that_another_process_made_in_the_meantime_is_kept(
    data: Path, stopped: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look at the folder and the lock there is the check of the data, which may take minutes."""
    place = tmp_path / "new"

    def slow(*arguments: Any, **options: Any) -> None:
        shutil.copytree(stopped.path, place)

    monkeypatch.setattr(readiness, "verify_prepared", slow)
    with pytest.raises(ConfigError, match="already holds a run"):
        train(data, place)
    assert contents(place) == contents(stopped.path)


def test_a_run_that_fails_early_leaves_what_it_found(data: Path, tmp_path: Path) -> None:
    fail_early(data, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    fail_early(data, tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_what_a_killed_run_left_before_it_began_is_taken_over(data: Path, tmp_path: Path) -> None:
    trial = "rows/trial/rows/t.0.f32"  # of `table_lr: auto` on the disk tier
    of_ranks = ("rows/table_wise-1/t.0.f32", "rows/trial/rows/row_wise-0/t.0.f32")
    for name in (".lock", "rows/t.0.f32", trial, *of_ranks, ".environment.json.tmp", "environment.json"):
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "run/plots").mkdir()
    (tmp_path / "run/checkpoints").mkdir()
    fail_early(data, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_files_of_others_in_the_folder_of_rows_stay(data: Path, stopped: RunFolder) -> None:
    (stopped.path / "rows").mkdir(exist_ok=True)
    (stopped.path / "rows/mine.txt").touch()
    (stopped.path / "rows/left.0.f32").touch()
    (stopped.path / "rows/table_wise-1").mkdir()
    (stopped.path / "rows/table_wise-1/mine.txt").touch()
    (stopped.path / "rows/table_wise-1/left.0.f32").touch()
    (stopped.path / "rows/mine").mkdir()
    (stopped.path / "rows/mine/mine.0.f32").touch()
    train(data, stopped.path, resume=True)
    files = [path for path in (stopped.path / "rows").rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(stopped.path / "rows")) for path in files) == [
        "mine.txt",
        "mine/mine.0.f32",
        "table_wise-1/mine.txt",
    ]


def test_a_resumed_run_removes_what_its_ranks_left(data: Path, stopped: RunFolder) -> None:
    for name in ("table_wise-0/t.0.f32", "row_wise-1/t.weights.0.bf16"):
        path = stopped.path / "rows" / name
        path.parent.mkdir(parents=True)
        path.touch()
    (stopped.path / "rows/table_wise-1").mkdir()  # what a signal leaves
    seen: list[bool] = []

    class Look(Reporter):
        def evaluated(self, record: Mapping[str, Any]) -> None:
            seen.append((stopped.path / "rows").exists())

    Trainer(config(data), stopped.path, reporter=Look()).train(resume=True)
    assert seen
    assert not any(seen), "they need not wait for the run's end"


def test_ranks_files_in_a_folder_that_runs_share(data: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    rows = {"tier": "disk", "directory": str(shared)}
    with pytest.raises(InterruptedRunError):
        Trainer(config(data, rows=rows), tmp_path / "run", reporter=StopAt(4, signal.SIGTERM)).train()
    for name in ("table_wise-0/left.0.f32", "table_wise-0/mine.txt", "row_wise-1/left.0.f32", "mine/mine.0.f32"):
        (shared / name).parent.mkdir(exist_ok=True)
        (shared / name).touch()
    other = MappedFile(shared / "table_wise-0", "held", numel=1, chunks=[torch.zeros(1)])  # of a run that goes on
    train(data, tmp_path / "run", resume=True, rows=rows)
    files = sorted(str(path.relative_to(shared)) for path in shared.rglob("*"))
    assert files == ["mine", "mine/mine.0.f32", "table_wise-0", "table_wise-0/held.0.f32", "table_wise-0/mine.txt"]
    assert other.path.exists()


def test_files_of_a_language_models_memory_in_a_folder_that_runs_share(tmp_path: Path) -> None:
    for name in (
        "engram/a.weights.0.f32",
        "engram/row_wise-0/a.weights.0.f32",
        "engram/mine.0.f32",
        "mine/a.sum.0.f32",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "stem").symlink_to(tmp_path / "mine")
    remove_unused_rows(tmp_path, kinds=())
    assert (tmp_path / "engram/a.weights.0.f32").exists(), "to other models it is a user's folder"
    remove_unused_rows(tmp_path, kinds=KINDS)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["engram/mine.0.f32", "mine/a.sum.0.f32"]
    assert not (tmp_path / "engram/row_wise-0").exists()


def names_of_files(rows: Mapping[str, Any], optimizer: str, folder: Path) -> list[str]:
    """What the files of a process are called while it trains."""
    specs = [TableSpec(name=name, num_embeddings=9, embedding_dim=4, feature_names=[name]) for name in ("user", "a b")]
    how = {"backend": rows.get("backend", "fbgemm"), "optimizer": RowOptimizer(name=optimizer)}  # type: ignore[arg-type]
    tables = TableCollection(specs, tier=RowTier(name="disk", directory=folder), **how)
    assert tables.row_stores()
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize(
    ("backend", "optimizer"),
    [("fbgemm", "rowwise_adagrad"), ("fbgemm", "sgd"), ("torch", "adagrad"), ("torch", "adam")],
)
def test_files_of_one_process_in_a_folder_that_runs_share(
    data: Path, tmp_path: Path, backend: str, optimizer: str
) -> None:
    """They go wherever the run goes on: here in a folder of its own, as ranks do in folders of theirs."""
    shared, second = tmp_path / "shared", tmp_path / "second"
    rows = {"tier": "disk", "backend": backend, "directory": str(shared)}
    left = names_of_files(rows, optimizer, tmp_path / "names")
    assert left
    with pytest.raises(InterruptedRunError):
        Trainer(config(data, rows=rows), tmp_path / "run", reporter=StopAt(4, signal.SIGTERM)).train()
    mine = ["mine.0.f32", "weights.0.f32", "user.0.weights.0.npy", "mine/user.0.weights.0.f32"]
    for folder in (shared, second):
        for name in (*left, *mine):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    link = second / "linked.weights.0.f32"
    link.symlink_to(shared / "mine.0.f32")
    other = MappedFile(shared, "held.weights", numel=1, chunks=[torch.zeros(1)])  # of a run that goes on
    train(data, tmp_path / "run", resume=True, rows={**rows, "directory": str(second)})
    files = {
        folder: {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} for folder in (shared, second)
    }
    assert files == {shared: {*mine, "held.weights.0.f32"}, second: {*mine, link.name}}
    assert other.path.exists()


def run_on(data: Path, run: Path, *, resume: bool = False, reporter: Reporter | None = None) -> dict[str, Any]:
    raw = {"data": {"path": str(data), "batch_size": 32}, "model": {"name": "lr"}, "train": {"epochs": 2}}
    return Trainer(parse_config(raw), run, reporter=reporter).train(resume=resume)


@pytest.mark.parametrize("change", ["label", "price", "log"])
def test_resuming_on_other_rows_is_refused(tmp_path: Path, change: str) -> None:
    """Fields and vocabularies are the same, so the ids are: labels, numbers, or the order of rows are not."""
    log = write_log(tmp_path / "log.csv")
    prepare(CONFIG, [log], tmp_path / "data")
    with pytest.raises(InterruptedRunError):
        run_on(tmp_path / "data", tmp_path / "run", reporter=StopAt(4, signal.SIGTERM))
    other: dict[str, Any] = dict(CONFIG)
    if change == "label":
        other["label"] = {"column": "stars", "positive": ">= 3"}
    text = log.read_text()
    if change == "price":
        log.write_text(text.replace(",0.5", ",0.6"))
    if change == "log":
        header, first, second, rest = text.split("\n", 3)
        log.write_text("\n".join([header, second, first, rest]))
    prepare(other, [log], tmp_path / "data", overwrite=True)
    said = (
        "fingerprint" if change == "price" else "the same ids, but other rows, labels, numbers or counts"
    )  # a mean is in the schema
    with pytest.raises(ConfigError, match=said):
        run_on(tmp_path / "data", tmp_path / "run", resume=True)
    log.write_text(text)
    prepare(CONFIG, [log], tmp_path / "data", overwrite=True)
    run_on(tmp_path / "data", tmp_path / "run", resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_damaged_test_part_is_found_before_training(tmp_path: Path, resume: bool) -> None:
    data = write_data(tmp_path / "data")
    if resume:
        with pytest.raises(InterruptedRunError):
            Trainer(config(data), tmp_path / "run", reporter=StopAt(4, signal.SIGTERM)).train()
    part = data / "test/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test/part-00000.parquet"):
        train(data, tmp_path / "run", resume=resume)
    assert (tmp_path / "run").exists() == resume


def test_swapped_splits_are_refused_by_training_and_evaluation(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", rows={"train": 600, "valid": 100, "test": 100}, parts=1)
    train(data, tmp_path / "run", train={"epochs": 1})
    swap(data / "valid/part-00000.parquet", data / "test/part-00000.parquet")
    with pytest.raises(DataError, match="part-00000.parquet"):
        train(data, tmp_path / "other")
    for path in (tmp_path / "run", tmp_path / "run/bundle"):
        from embank.pipelines.runs.evaluate import evaluate_saved

        with pytest.raises(DataError, match="part-00000.parquet"):
            evaluate_saved(path, data=data, split="test")


def test_a_checkpoint_without_its_checksums_is_refused(data: Path, stopped: RunFolder) -> None:
    for folder in stopped.saved():
        (folder / "checksums.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"is not a complete checkpoint: it has no checksums.json. Restore it or remove"
    ):
        train(data, stopped.path, resume=True)
    with pytest.raises(CheckpointError, match="it has no checksums"):
        evaluate_saved(stopped.path, data=data, split="test")


@pytest.mark.parametrize(("old", "new"), [("progress", "progresx"), ('"best_step": 10', '"best_step": 12')])
def test_altered_facts_of_a_checkpoint_are_refused_by_evaluation(
    data: Path, stopped: RunFolder, old: str, new: str
) -> None:
    file = stopped.saved()[-1] / "meta.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(CheckpointError, match=r"meta.json' has been altered"):
        evaluate_saved(stopped.path, data=data, split="test")


def test_a_run_without_any_checkpoint_says_that_it_begins_again(data: Path, stopped: RunFolder, tmp_path: Path) -> None:
    shutil.rmtree(stopped.checkpoints)
    stopped.checkpoints.mkdir()
    heard = Told()
    result = Trainer(config(data), stopped.path, reporter=heard).train(resume=True)
    assert "has no checkpoint: the run starts again from its beginning" in heard.notes[0]
    assert timeless(result) == timeless(train(data, tmp_path / "whole"))


@pytest.mark.parametrize("line", [b"\xff\xfe", b"{", b"7", b"{}", b'{"split": "valid"}'])
def test_a_damaged_line_of_metrics_is_left_out_alone(data: Path, stopped: RunFolder, line: bytes) -> None:
    train(data, stopped.path, resume=True)
    whole = stopped.read_metrics()
    lines = stopped.metrics.read_bytes().splitlines()
    assert len(lines) == len(whole) == 4
    stopped.metrics.write_bytes(b"\n".join([lines[0], line, *lines[2:]]) + b"\n")
    assert stopped.read_metrics() == [whole[0], *whole[2:]]
    assert stopped.num_damaged_metrics == 1
    stopped.result.unlink()
    heard = Told()
    Trainer(config(data), stopped.path, reporter=heard).train(resume=True)
    assert "1 damaged line is left out" in heard.notes[0]


def test_a_flipped_digit_of_metrics_is_a_damaged_line(stopped: RunFolder) -> None:
    line = stopped.metrics.read_text().splitlines()[0]
    logloss = json.loads(line)["logloss"]
    altered = line.replace(str(logloss), str(logloss + 0.1))
    stopped.metrics.write_text(f"{altered}\n{line}\n")
    assert [record["logloss"] for record in stopped.read_metrics()] == [logloss]


@pytest.mark.parametrize("name", ["environment.json", "config.yaml", "result.json"])
def test_altered_records_are_refused_by_name(data: Path, stopped: RunFolder, name: str) -> None:
    train(data, stopped.path, resume=True)
    path = stopped.path / name
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        for content in (
            whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :],
            whole[:place] + b"\xff" + whole[place:],
        ):
            path.write_bytes(content)
            try:
                stopped.read_config(), stopped.content, stopped.read_result()
            except CheckpointError as error:
                assert name in str(error)
            else:  # the name of the checksum itself
                assert b'"check"' not in content
    path.write_bytes(b"{}" if name == "config.yaml" else b"[]")
    with pytest.raises(CheckpointError, match=name):
        stopped.read_config(), stopped.content, stopped.read_result()


def test_the_two_fingerprints_of_a_damaged_record_are_not_told_apart_by_their_ends(
    data: Path, stopped: RunFolder
) -> None:
    record = json.loads(stopped.environment.read_text())
    print_ = record["data_fingerprint"]
    stopped.environment.write_text(json.dumps({**record, "data_fingerprint": print_[:-1] + "x"}))
    with pytest.raises(CheckpointError, match=r"environment.json' has been altered since it was written"):
        train(data, stopped.path, resume=True)


@pytest.mark.parametrize(
    ("content", "said"), [("{", "can't be read: line 1 is no JSON"), ("{}", "it has no data_fingerprint")]
)
def test_an_emptied_record_is_refused_with_what_to_do(data: Path, stopped: RunFolder, content: str, said: str) -> None:
    stopped.environment.write_text(content)
    with pytest.raises(
        CheckpointError, match=rf"environment.json' .*{said}\. Restore it, or start the run again in another --out"
    ):
        train(data, stopped.path, resume=True)


def test_a_run_of_an_earlier_version_resumes_and_says_what_is_not_checked(data: Path, stopped: RunFolder) -> None:
    record = json.loads(stopped.environment.read_text())
    old = {key: value for key, value in record.items() if key not in ("check", "config", "data_content")}
    stopped.environment.write_text(json.dumps(old))
    heard = Told()
    Trainer(config(data), stopped.path, reporter=heard).train(resume=True)
    assert "whether rows, labels and numbers are the same can't be checked" in heard.notes[0]
