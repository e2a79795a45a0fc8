"""Sweeps with real runs: killed and resumed, infeasible and failed ones."""

import contextlib
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from embank.pipelines.cli.app import app
from embank.pipelines.config.run import parse_config, to_plain
from embank.pipelines.runs.folder import training_in
from embank.pipelines.sweep.plan import Plan
from embank.pipelines.sweep.sweep import InterruptedSweepError, Sweep
from embank.tables import ConfigError, WorkError
from tests.processes import embank
from tests.told import Told
from tests.training.runs import raw_config, write_data

pytestmark = pytest.mark.slow

RUNS = ["full/1/0", "full/1/1", "hash/0.5/0", "hash/0.5/1", "hash/0.1/0", "hash/0.1/1"]
LIMIT = 300


def write_config(folder: Path) -> Path:
    data = write_data(folder / "data", single={"user": 500, "item": 7})
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw_config(data, train={"epochs": 10, "table_lr": 0.05})))
    return path


def start(config: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "embank", *command_of(config, out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def command_of(config: Path, out: Path) -> list[str]:
    plan = ["--methods", "full,hash", "--budgets", "0.5,0.1,0.0005", "--seeds", "0,1"]
    return ["sweep", str(config), *plan, "--out", str(out)]


def wait(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, "the sweep did not get there"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have started."""
    own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return own + [each for child in own for each in descendants(child)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that was killed while it trained, as soon as a run was complete, and resumed to its end. `killed.json`
    beside it names the runs that were killed."""
    folder = tmp_path_factory.mktemp("sweep")
    config, out = write_config(folder), folder / "out"
    first = start(config, out, "--jobs", "2")
    wait((out / "runs/deepfm/hash/0.5").exists)  # as soon as one of the first two is complete
    children = descendants(first.pid)
    assert len(children) >= 2
    first.kill()
    first.communicate()
    wait(lambda: not any(map(is_alive, children)))
    assert not (out / "leaderboard.csv").exists()

    refused = embank(*command_of(config, out))
    assert "already holds a sweep; go on with --resume" in refused.stderr
    assert refused.returncode == 2

    complete = {run: (out / "runs/deepfm" / run / "result.json") for run in RUNS}
    before = {run: path.stat().st_mtime_ns for run, path in complete.items() if path.is_file()}
    assert 1 <= len(before) < len(RUNS)
    killed = [run for run, path in complete.items() if run not in before and path.parent.exists()]
    (folder / "killed.json").write_text(json.dumps(killed))

    resumed = CliRunner().invoke(app, [*command_of(config, out), "--resume"])
    printed, said = resumed.stdout, resumed.stderr
    assert resumed.exit_code == 0, said
    assert f"{len(before)} run{' is' if len(before) == 1 else 's are'} complete already" in said
    assert all(complete[run].stat().st_mtime_ns == when for run, when in before.items()), "finished runs are left alone"
    assert "infeasible: floor" in printed
    return out


def processes_of(out: Path) -> set[int]:
    """Live processes that have a file of a sweep open: its own and its runs'."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                links = [os.readlink(link) for link in (entry / "fd").iterdir()]
                if any(link.startswith(f"{out}/") for link in links):
                    found.add(int(entry.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_runs_end_with_a_sweep_that_is_killed_and_an_immediate_resume_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    raw = yaml.safe_load(write_config(tmp_path).read_text())
    raw["train"]["epochs"] = 1_000_000  # days: no run ends by itself
    config = tmp_path / "long.yaml"
    config.write_text(yaml.safe_dump(raw))
    both = [out / "runs/deepfm/full/1" / seed / "checkpoints" for seed in ("0", "1")]

    first = start(config, out, "--jobs", "2")
    wait(lambda: all(any(folder.glob("step-*")) for folder in both))
    first.kill()
    second = start(config, out, "--jobs", "2", "--resume")
    first.communicate()
    left = processes_of(out) - {second.pid, *descendants(second.pid)}
    limit = time.monotonic() + 20
    while (left := left & processes_of(out)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not left, "runs outlive their sweep"

    before = [len((folder.parent / "metrics.jsonl").read_text().splitlines()) for folder in both]
    wait(
        lambda: all(
            len((folder.parent / "metrics.jsonl").read_text().splitlines()) > n
            for folder, n in zip(both, before, strict=True)
        )
    )
    second.send_signal(signal.SIGTERM)
    said = second.communicate(timeout=LIMIT)[1]
    assert "failed" not in said
    assert "SIGTERM: stopped after 0 complete runs of 6" in said
    assert f"go on with the same command and --resume (directory '{out}')" in said
    assert second.returncode == 1
    assert not processes_of(out)
    assert not (out / "leaderboard.csv").exists()


def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path) -> None:
    raw = yaml.safe_load(write_config(tmp_path).read_text()) | {"train": {"epochs": 1}, "model": {"name": "fm"}}
    out = tmp_path / "out"

    class Releases(Told):
        def note(self, message: str) -> None:
            super().note(message)
            if "another process" in message:
                assert message == "fm/hash/0.5/0: another process is training it; waiting for it to end"
                held.close()

    told = Releases()

    plan = Plan(config=raw, models=["fm"], methods=["hash"], budgets=[0.5], seeds=[0], grid={})
    held = contextlib.ExitStack()
    held.enter_context(training_in(out / "runs/fm/hash/0.5/0"))
    with pytest.raises(ConfigError, match="holds no sweep"):
        Sweep(plan, out).run()
    (out / "sweep.yaml").write_text(yaml.safe_dump({"config": to_plain(parse_config(plan.config))}))
    (row,) = Sweep(plan, out, reporter=told).run(resume=True)
    assert (row.status, row.note) == ("complete", "")
    assert sum("another process" in line for line in told.notes) == 1


def lines(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (out / "leaderboard.csv").open() as file:
        return {(line["method"], line["budget"]): line for line in csv.DictReader(file)}


def test_the_leaderboard_is_what_the_runs_say(swept: Path) -> None:
    found = lines(swept)
    assert list(found) == [("full", ""), ("hash", "0.5"), ("hash", "0.1"), ("hash", "0.0005")]
    for (method, budget), line in found.items():
        if budget == "0.0005":
            continue
        runs = [json.loads((swept / f"runs/deepfm/{method}/{budget or 1}/{s}/result.json").read_text()) for s in (0, 1)]
        assert [run["seed"] for run in runs] == [0, 1]
        assert float(line["auc"]) == pytest.approx(statistics.mean(run["auc"] for run in runs))
        assert float(line["auc_sd"]) == pytest.approx(statistics.stdev(run["auc"] for run in runs))
        assert float(line["logloss"]) == pytest.approx(statistics.mean(run["logloss"] for run in runs))
        assert float(line["serving_bytes"]) == runs[0]["serving_bytes"] == runs[1]["serving_bytes"]
        assert float(line["num_samples"]) == runs[0]["num_samples"] == 6_000
        assert float(line["train_seconds"]) == pytest.approx(statistics.mean(run["train_seconds"] for run in runs))
        if budget:
            assert float(line["serving_ratio"]) <= float(budget)
        assert float(line["lookup_us_1"]) > 0
        assert float(line["lookup_rows_per_s_4096"]) > 0
        assert line["status"] == "complete"


def test_a_resumed_run_ends_as_one_that_was_left_alone(swept: Path, tmp_path: Path) -> None:
    from embank.pipelines.config.run import load_config
    from embank.pipelines.train.trainer import Trainer

    for name in json.loads((swept.parent / "killed.json").read_text()):
        config = load_config(swept / "configs" / f"deepfm_{name.replace('/', '_')}.yaml")
        alone = Trainer(config, tmp_path / name).train()
        assert alone["auc"] == json.loads((swept / "runs/deepfm" / name / "result.json").read_text())["auc"]


def test_a_budget_out_of_reach_is_no_failure(swept: Path) -> None:
    line = lines(swept)["hash", "0.0005"]
    assert line["status"] == "infeasible"
    assert line["note"].startswith("infeasible: floor 0.0")
    assert 0.0005 < float(line["note"].split()[-1]) < 0.1
    assert not (swept / "runs/deepfm/hash/0.0005").exists()
    assert (swept / "pareto.png").stat().st_size > 10_000
    assert "| floor 0.0" in (swept / "leaderboard.md").read_text()


def test_a_failed_run_is_recorded_and_the_sweep_goes_on(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    raw = yaml.safe_load(config.read_text())
    raw["train"] = {"epochs": 1, "table_optimizer": "sgd", "table_lr": 1e38}
    raw["model"] = {"name": "fm"}
    plan = Plan(config=raw, models=["fm"], methods=["full", "hash"], budgets=[0.5], seeds=[0], grid={})
    sweep = Sweep(plan, tmp_path / "out", num_jobs=2)
    rows = sweep.run()
    assert [row.status for row in rows] == ["failed", "failed"]
    assert "the loss is" in rows[0].note or "not finite" in rows[0].note
    with pytest.raises(WorkError, match=r"runs of 2 of 2 lines failed, the first one: fm/full/1/0 failed: "):
        sweep.refuse_failures(rows)
    assert "## Failed runs" in (tmp_path / "out/leaderboard.md").read_text()


def test_a_signal_before_the_first_run_stops_at_the_next_line(tmp_path: Path) -> None:
    config = yaml.safe_load(write_config(tmp_path).read_text())
    plan = Plan(config=config, models=["fm"], methods=["alpt"], budgets=[0.01, 0.02], seeds=[0], grid={})

    class StopsAtOnce(Told):
        def note(self, message: str) -> None:
            super().note(message)
            os.kill(os.getpid(), signal.SIGTERM)

    told = StopsAtOnce()
    with pytest.raises(InterruptedSweepError, match="SIGTERM: stopped before its first run; go on with the same"):
        Sweep(plan, tmp_path / "out", reporter=told).run()
    assert len(told.notes) == 1, "the second budget was not looked at"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "hsh", "--budgets", "0.5"], "there is no method 'hsh'; did you mean 'hash'?"),
        (["--methods", "hash", "--budgets", "0"], "--budgets holds 0; a budget is"),
        (["--methods", "hash", "--budgets", "0.5,,0.1"], "--budgets is '0.5,,0.1', which has a comma with nothing"),
        (["--methods", "hash", "--budgets", "0.5", "--jobs", "0"], "--jobs is 0; it must be at least 1"),
        (["--methods", "hash", "--grid", "train.lr=0.1", "--grid", "train.lr=1"], "--grid has the key train.lr twice"),
        (["--methods", "hash", "--grid", "train.table_lr=0.1,.inf"], "--grid train.table_lr holds inf; give finite"),
        (["--methods", "hash", "--grid", "train.weight_decay=.nan"], "--grid train.weight_decay holds nan; give"),
        (["--methods", "hash", "--grid", "train.lr=0.1,Infinity"], "--grid train.lr holds Infinity; give finite"),
    ],
)
def test_bad_input_ends_with_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    config = write_config(tmp_path)
    done = embank("sweep", config, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
