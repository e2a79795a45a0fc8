"""A run that is stopped in any way goes on to the same end."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from embank.pipelines.config.changes import refuse_changed_config
from embank.pipelines.runs import evaluate as evaluation
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.inspect import inspect_run
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.trainer import Trainer
from embank.tables import CheckpointError, ConfigError, DataError, RowOptimizer
from embank.tables.errors import WorkError
from tests.processes import forkserver
from tests.training.runs import StopAt, config, raw_config, timeless, train, write_data

pytestmark = pytest.mark.slow

FREQUENT = {"epochs": 3, "table_lr": 0.05, "num_threads": 1, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def whole_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the configuration of these tests, left alone."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    train(data, path)
    return path


@pytest.mark.parametrize(("step", "number"), [(4, signal.SIGINT), (10, signal.SIGTERM), (17, signal.SIGINT)])
def test_signals_save_and_resuming_ends_the_same(
    data: Path, whole_run: Path, tmp_path: Path, step: int, number: int
) -> None:
    whole = RunFolder(whole_run).read_result()
    with pytest.raises(
        InterruptedRunError, match=rf"stopped after step {step} of 30, which is saved; go on .* --resume"
    ):
        Trainer(config(data), tmp_path / "run", reporter=StopAt(step, number)).train()
    assert timeless(train(data, tmp_path / "run", resume=True)) == timeless(whole)
    records = [RunFolder(path).read_metrics() for path in (whole_run, tmp_path / "run")]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    "settings",
    [
        ("fbgemm", "device", "adagrad", "adam"),
        ("torch", "device", "adam", "sgd"),
        ("fbgemm", "disk", "rowwise_adagrad", "adagrad"),
        ("torch", "disk", "adam", "adagrad"),
        ("fbgemm", "disk", "rowwise_adagrad", "sgd"),
    ],
    ids="-".join,
)
def test_every_optimizer_and_tier_resumes(data: Path, tmp_path: Path, settings: tuple[str, str, str, str]) -> None:
    backend, tier, optimizer, dense = settings
    sections = {
        "rows": {"backend": backend, "tier": tier},
        "train": {
            **FREQUENT,
            "epochs": 2,
            "table_optimizer": optimizer,
            "optimizer": dense,
            "decay": "cosine",
            "warmup_steps": 5,
            "embedding_l2": 1e-4,
        },
    }
    whole = train(data, tmp_path / "whole", **sections)
    with pytest.raises(InterruptedRunError):
        Trainer(config(data, **sections), tmp_path / "run", reporter=StopAt(7, signal.SIGTERM)).train()
    assert timeless(train(data, tmp_path / "run", resume=True, **sections)) == timeless(whole)


def _child(raw: dict[str, Any], run: str, resume: bool) -> None:
    from embank.pipelines.config.run import parse_config

    Trainer(parse_config(raw), Path(run)).train(resume=resume)


@pytest.mark.parametrize("tier", ["device", "disk"])
def test_kill_9_at_random_moments(data: Path, tmp_path: Path, tier: str) -> None:
    """Each of two runs is killed at a random moment, resumed, and must end like the run that was left alone."""
    context = forkserver()
    raw = raw_config(data, train={**FREQUENT, "epochs": 6}, rows={"tier": tier})

    def start(run: Path, *, resume: bool) -> Any:
        process = context.Process(target=_child, args=(raw, str(run), resume))
        process.start()
        return process

    begun = time.monotonic()
    whole = start(tmp_path / "whole", resume=False)
    while not (tmp_path / "whole" / "config.yaml").is_file():
        time.sleep(0.01)
    started = time.monotonic()
    whole.join(120)
    assert whole.exitcode == 0
    lasting = time.monotonic() - started
    assert lasting < 60, f"began after {started - begun:.0f} s, lasted {lasting:.0f} s"
    expected = RunFolder(tmp_path / "whole")
    moments = random.Random(0 if tier == "device" else 1)
    for number in range(2):
        run = tmp_path / f"killed-{number}"
        process = start(run, resume=False)
        while not (run / "config.yaml").is_file():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, lasting))
        process.kill()
        process.join(30)
        process = start(run, resume=True)
        process.join(120)
        assert process.exitcode == 0
        found = RunFolder(run)
        assert timeless(found.read_result()) == timeless(expected.read_result())
        assert found.read_metrics() == expected.read_metrics()
        assert not (run / "rows").exists()  # what the killed process left there included


def test_kill_9_while_a_checkpoint_is_written(data: Path, tmp_path: Path) -> None:
    """The disk tier's rows are half written, the new checkpoint too: the one before is loaded."""
    context = forkserver()
    sections = {"rows": {"tier": "disk"}, "train": {**FREQUENT, "checkpoint_every": 4}}
    whole = train(data, tmp_path / "whole", **sections)
    for moment in ("flush", "save"):
        run = tmp_path / moment
        process = context.Process(target=_child_that_dies, args=(raw_config(data, **sections), str(run), moment))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert list((run / "rows").iterdir())
        saved = [path.name for path in RunFolder(run).saved()]
        assert saved == ["step-000000004"]
        assert timeless(train(data, run, resume=True, **sections)) == timeless(whole)


def _child_that_dies(raw: dict[str, Any], run: str, moment: str) -> None:
    """Is killed in its second checkpoint: after the flush of the rows, or after the rows are in an unfinished
    checkpoint."""
    from embank.pipelines.config.run import parse_config
    from embank.tables.rows.fbgemm import FbgemmRows
    from embank.tables.storage import checkpoint

    place, name = {"flush": (FbgemmRows, "flush"), "save": (checkpoint, "write_rows")}[moment]
    original, calls = getattr(place, name), []

    def dying(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, name, dying)
    Trainer(parse_config(raw), Path(run)).train()


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_prefetch_of_the_disk_tier_changes_nothing(data: Path, tmp_path: Path, backend: str) -> None:
    results = [
        train(data, tmp_path / f"{tier}-{prefetch}", rows={"backend": backend, "tier": tier, "prefetch": prefetch})
        for tier, prefetch in [("device", True), ("disk", True), ("disk", False)]
    ]
    for result in results:
        del result["bundle_bytes"]  # the bundle holds the configuration, and "disk" is shorter than "device"
    assert timeless(results[0]) == timeless(results[1]) == timeless(results[2])


def test_prefetch_may_change_on_resume(data: Path, tmp_path: Path) -> None:
    whole = train(data, tmp_path / "whole", rows={"tier": "disk"})
    with pytest.raises(InterruptedRunError):
        Trainer(config(data, rows={"tier": "disk"}), tmp_path / "run", reporter=StopAt(4, signal.SIGTERM)).train()
    other = {"tier": "disk", "prefetch": False, "directory": str(tmp_path / "elsewhere")}
    assert timeless(train(data, tmp_path / "run", resume=True, rows=other)) == timeless(whole)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_complete_run_returns_its_result(data: Path, tmp_path: Path) -> None:
    first = train(data, tmp_path / "run")
    assert train(data, tmp_path / "run", resume=True) == first


def test_a_folder_with_another_run_is_refused(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"already holds a run; continue it with --resume, or choose another --out"):
        train(data, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"was started with train.seed = 0, the configuration now says 1"):
        train(data, tmp_path / "run", resume=True, train={**FREQUENT, "seed": 1})
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(data, tmp_path / "files")
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        train(data, tmp_path / "nothing", resume=True)


def test_other_data_is_refused_on_resume(data: Path, tmp_path: Path) -> None:
    copy = write_data(tmp_path / "prepared")
    with pytest.raises(InterruptedRunError):
        Trainer(config(copy), tmp_path / "run", reporter=StopAt(3, signal.SIGTERM)).train()
    write_data(tmp_path / "other", single={"user": 51, "item": 7})
    copy.rename(tmp_path / "moved")
    (tmp_path / "other").rename(copy)
    with pytest.raises(ConfigError, match="the ids mean something else"):
        train(copy, tmp_path / "run", resume=True)


def damaged_run(data: Path, path: Path) -> RunFolder:
    with pytest.raises(InterruptedRunError):
        Trainer(config(data), path, reporter=StopAt(4, signal.SIGTERM)).train()
    return RunFolder(path)


def test_truncated_checkpoint(data: Path, tmp_path: Path) -> None:
    run = damaged_run(data, tmp_path / "run")
    file = run.checkpoints / "step-000000004" / "dense.pt"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"dense.pt' has [\d,]+ bytes where [\d,]+ were written; it is truncated"):
        train(data, tmp_path / "run", resume=True)


def test_altered_checkpoint(data: Path, tmp_path: Path) -> None:
    run = damaged_run(data, tmp_path / "run")
    file = next((run.checkpoints / "step-000000004" / "rows").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"has been altered: its SHA-256 differs"):
        train(data, tmp_path / "run", resume=True)


def test_checkpoint_with_a_missing_file(data: Path, tmp_path: Path) -> None:
    run = damaged_run(data, tmp_path / "run")
    (run.checkpoints / "step-000000004" / "meta.json").unlink()
    with pytest.raises(CheckpointError, match="lacks 'meta.json'"):
        train(data, tmp_path / "run", resume=True)


def _fill_disk(raw: dict[str, Any], run: str) -> None:
    """Files of this process can't grow beyond 30 kB: what a full disk does, without one."""
    import resource

    from embank.pipelines.config.run import parse_config

    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    try:
        Trainer(parse_config(raw), Path(run)).train(resume=True)
    except WorkError as error:
        Path(run, "message").write_text(str(error))


def test_full_disk_leaves_the_old_checkpoint(data: Path, tmp_path: Path) -> None:
    sections = {"tables": {"dim": 16}, "model": {"name": "deepfm", "hidden_units": [32]}}
    whole = train(data, tmp_path / "whole", **sections)
    with pytest.raises(InterruptedRunError):
        Trainer(config(data, **sections), tmp_path / "run", reporter=StopAt(4, signal.SIGTERM)).train()
    process = forkserver().Process(target=_fill_disk, args=(raw_config(data, **sections), str(tmp_path / "run")))
    process.start()
    process.join(120)
    message = (tmp_path / "run" / "message").read_text()
    assert "step-000000010-evaluated' can't be written: File too large. Earlier checkpoints are untouched" in message
    run = RunFolder(tmp_path / "run")
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-000000004"]
    assert timeless(train(data, tmp_path / "run", resume=True, **sections)) == timeless(whole)


def test_a_checkpoint_before_an_evaluation_of_the_same_step(data: Path, tmp_path: Path) -> None:
    """A signal at the last step of an epoch, or checkpoint_every on it: the evaluation that follows is saved as
    well."""
    sections = {"train": {**FREQUENT, "epochs": 2, "checkpoint_every": 10}}
    whole = train(data, tmp_path / "whole", train={**FREQUENT, "epochs": 2, "checkpoint_every": None})
    pair = [timeless(train(data, tmp_path / "run", **sections)), timeless(whole)]
    for result in pair:
        del result["bundle_bytes"]  # the bundle holds the configuration, and "10" is shorter than "null"
    assert pair[0] == pair[1]
    with pytest.raises(InterruptedRunError):
        Trainer(config(data, **sections), tmp_path / "stopped", reporter=StopAt(20, signal.SIGTERM)).train()
    assert timeless(train(data, tmp_path / "stopped", resume=True, **sections)) == timeless(whole)
    for name in ("run", "stopped"):
        assert "best on validation" in inspect_run(tmp_path / name)["notes"][-1]
        assert evaluate_saved(tmp_path / name, data=data, split="test")["auc"] == whole["auc"]


def test_files_of_others_in_the_checkpoint_folder(data: Path, tmp_path: Path) -> None:
    run = damaged_run(data, tmp_path / "run")
    (run.checkpoints / ".DS_Store").touch()
    (run.checkpoints / "step-000000004.bak").mkdir()
    (run.checkpoints / "step-000000009").mkdir()  # half removed by a crash of an older version
    train(data, tmp_path / "run", resume=True)
    assert inspect_run(tmp_path / "run")["tables"]
    assert (run.checkpoints / ".DS_Store").exists()
    assert (run.checkpoints / "step-000000004.bak").exists()


def test_data_may_move(data: Path, tmp_path: Path) -> None:
    old, new = write_data(tmp_path / "old"), tmp_path / "new"
    whole = train(old, tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        Trainer(config(old), tmp_path / "run", reporter=StopAt(4, signal.SIGTERM)).train()
    old.rename(new)
    assert timeless(train(new, tmp_path / "run", resume=True)) == timeless(whole)
    assert evaluate_saved(tmp_path / "whole", data=new, split="test")["auc"] == whole["auc"]
    with pytest.raises(DataError, match="say where they are with --data"):
        inspect_run(tmp_path / "whole")
    assert inspect_run(tmp_path / "whole", data=new)["tables"]


def test_one_process_at_a_time(data: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").lock(), pytest.raises(ConfigError, match="another process is training in"):
        train(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resuming_compiled_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations go through the compiled network as well: the split counts as large."""
    monkeypatch.setattr(evaluation, "COMPILED_ROWS", 1)
    monkeypatch.setattr(evaluation, "EVAL_BATCH_SIZE", 32)
    sections = {"train": {**FREQUENT, "epochs": 2, "compile": True}}
    whole = train(data, tmp_path / "whole", **sections)
    with pytest.raises(InterruptedRunError):
        Trainer(config(data, **sections), tmp_path / "run", reporter=StopAt(13, signal.SIGTERM)).train()
    assert timeless(train(data, tmp_path / "run", resume=True, **sections)) == timeless(whole)
    compiled = evaluate_saved(tmp_path / "run", data=data, split="valid")
    assert compiled["auc"] == whole["valid_auc"]
    monkeypatch.setattr(evaluation, "COMPILED_ROWS", 10**9)
    plain = evaluate_saved(tmp_path / "run", data=data, split="valid")
    assert plain["logloss"] == pytest.approx(compiled["logloss"], rel=1e-6)


def test_row_optimizer_names_are_checked() -> None:
    with pytest.raises(ConfigError, match="there is no row optimizer 'lamb'"):
        RowOptimizer(name="lamb")  # type: ignore[arg-type]


def test_a_key_that_the_embank_of_before_did_not_know_is_named_as_such() -> None:
    refuse_changed_config(Path("runs/a"), {"tables": {"dim": 8}}, {"tables": {"dim": 8}})
    with pytest.raises(ConfigError, match="started by an embank that did not know the key tables.alignment"):
        refuse_changed_config(Path("runs/a"), {"tables": {"dim": 8}}, {"tables": {"dim": 8, "alignment": "project"}})
