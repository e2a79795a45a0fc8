"""Several processes: checkpoints that move between numbers of ranks, training that does not depend on it, and
failures."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch.distributed import TCPStore

from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.train import launch as launching
from embank.pipelines.train.trainer import Trainer
from embank.tables import CheckpointError
from embank.tables.storage.checkpoint import load_checkpoint
from tests.distributed import jobs
from tests.distributed.ranks import Ranks, free_port
from tests.processes import command, start
from tests.training.runs import config, raw_config, timeless, train, write_data
from tests.training.test_hashed import COLUMNS, TABLES, write_log

pytestmark = pytest.mark.slow

PLAIN: dict[str, Any] = {
    "model": {"name": "deepfm", "hidden_units": [8], "dropout": 0.0},
    "train": {"epochs": 3, "table_lr": 0.05, "num_threads": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "prepared")


@pytest.fixture(scope="module")
def ranks() -> Iterator[dict[int, Ranks]]:
    """Groups of 2, 3 and 4 processes, each started when it is first asked for."""
    groups = _Groups()
    yield groups
    for group in groups.values():
        group.close()


class _Groups(dict[int, Ranks]):
    def __missing__(self, world_size: int) -> Ranks:
        self[world_size] = Ranks(world_size)
        return self[world_size]


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad"])
def test_checkpoints_go_from_4_to_2_to_1_to_3_ranks(ranks: dict[int, Ranks], tmp_path: Path, optimizer: str) -> None:
    saved = ranks[4].run(jobs.save, tmp_path / "4", optimizer)[0]
    assert not any(value.isnan().any() for value in saved.values())
    for (loaded, fact), _ in [ranks[2].run(jobs.load_and_save, tmp_path / "4", tmp_path / "2", optimizer, 1)]:
        assert fact == 3
        assert_equal(loaded, saved)
    alone = jobs.collection(seed=5, world_size=1, optimizer=optimizer)
    dense, meta = load_checkpoint(tmp_path / "2", tables=alone)
    assert_equal(jobs.everything(alone), saved)
    jobs.save_checkpoint(tmp_path / "1", tables=alone, dense=dense, meta={"fact": meta["fact"]})
    for loaded, _ in ranks[3].run(jobs.load_and_save, tmp_path / "1", tmp_path / "3", optimizer, 2):
        assert_equal(loaded, saved)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_a_checkpoint_of_other_tables_is_refused(ranks: dict[int, Ranks], tmp_path: Path) -> None:
    ranks[2].run(jobs.save, tmp_path / "c", "adagrad")
    alone = jobs.collection(seed=5, world_size=1, optimizer="sgd")
    with pytest.raises(CheckpointError, match=r"optimizer state of 'adagrad'; the tables here are updated by 'sgd'"):
        load_checkpoint(tmp_path / "c", tables=alone)


def test_a_part_of_the_rows_is_not_packed(ranks: dict[int, Ranks], tmp_path: Path) -> None:
    for said in ranks[2].run(jobs.pack_parts, tmp_path):
        assert len(said) == 3
        assert all("spread over 2 processes" in message for message in said)
    assert not list(tmp_path.iterdir())


def test_training_does_not_depend_on_the_number_of_ranks(ranks: dict[int, Ranks], data: Path, tmp_path: Path) -> None:
    sections = {**PLAIN, "train": {**PLAIN["train"], "embedding_l2": 0.01}}  # looks the ids of bags up one by one
    expected = train(data, tmp_path / "1", **sections)
    for count in (2, 3, 4):
        results = ranks[count].run(jobs.train_here, data, tmp_path / str(count), sections, False)
        for result in results:
            assert result["auc"] == pytest.approx(expected["auc"], abs=1e-3)
            assert result["logloss"] == pytest.approx(expected["logloss"], abs=1e-4)
            assert result["num_samples"] == expected["num_samples"]
            assert result["serving_bytes"] == expected["serving_bytes"]
            assert result["ranks"] == count
    assert (tmp_path / "2" / "bundle" / "manifest.json").is_file()


@pytest.mark.parametrize("rows", [{"tier": "disk"}, {"backend": "torch"}], ids=str)
def test_training_on_ranks_in_every_tier_and_backend(
    ranks: dict[int, Ranks], data: Path, tmp_path: Path, rows: dict[str, Any]
) -> None:
    expected = train(data, tmp_path / "1", **PLAIN)
    (first, _) = ranks[2].run(jobs.train_here, data, tmp_path / "2", {**PLAIN, "rows": rows}, False)
    assert first["auc"] == pytest.approx(expected["auc"], abs=1e-3)


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_ranks_have_pages_read_ahead_for_each_other(
    ranks: dict[int, Ranks], tmp_path: Path, kind: str, backend: str
) -> None:
    for told, is_equal in ranks[2].run(jobs.pages_ahead, tmp_path, kind, backend):
        assert told == [6]
        assert is_equal


@pytest.mark.parametrize("method", ["tt_rec", "deeplight", "dedup", "autosrh"])
def test_methods_train_on_ranks(ranks: dict[int, Ranks], data: Path, tmp_path: Path, method: str) -> None:
    """Methods that combine rows, prune on a schedule, map blocks, search on validation batches; in all of their
    stages."""
    sections = {**PLAIN, "tables": {"dim": 8, "method": method, "budget": 0.6, "plain_below": 20}}
    expected = train(data, tmp_path / "1", **sections)
    first, second = ranks[2].run(jobs.train_here, data, tmp_path / "2", sections, False)
    assert first == second
    assert [stage["steps"] for stage in first["stages"]] == [stage["steps"] for stage in expected["stages"]]
    assert first["serving_ratio"] <= 0.6
    assert first["auc"] == pytest.approx(expected["auc"], abs=0.05)  # thresholds and searches are cut by ties


def test_a_run_goes_on_with_another_number_of_ranks(ranks: dict[int, Ranks], data: Path, tmp_path: Path) -> None:
    whole = train(data, tmp_path / "whole", **PLAIN)
    for message in ranks[2].run(jobs.train_until, data, tmp_path / "run", PLAIN, 13):
        assert "InterruptedRunError" in message
        assert "stopped after step 14 of 30" in message or "stopped after step 13 of 30" in message
    result = Trainer(config(data, **PLAIN), tmp_path / "run").train(resume=True)
    assert result["auc"] == pytest.approx(whole["auc"], abs=1e-3)
    assert result["num_samples"] == whole["num_samples"]


def test_files_of_ranks_go_with_the_run(ranks: dict[int, Ranks], data: Path, tmp_path: Path) -> None:
    sections = {**PLAIN, "tables": {"dim": 400}, "rows": {"tier": "disk"}}  # large enough for no replica
    ranks[2].run(jobs.train_until, data, tmp_path / "run", sections, 13)
    assert [path for path in (tmp_path / "run/rows").iterdir() if path.is_dir()], "each rank has a folder"
    Trainer(config(data, **sections), tmp_path / "run").train(resume=True)
    ranks[2].run(jobs.train_here, data, tmp_path / "whole", sections, False)
    assert not (tmp_path / "run/rows").exists()
    assert not (tmp_path / "whole/rows").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_files_in_a_folder_that_runs_share_go_with_a_killed_run(
    ranks: dict[int, Ranks], data: Path, tmp_path: Path, count: int
) -> None:
    """One process's by two ranks, and two ranks' by one process."""
    run, shared = tmp_path / "run", tmp_path / "shared"
    rows = {"tier": "disk", "directory": str(shared)}
    sections: dict[str, dict[str, Any]] = {"tables": {"dim": 400}, "rows": rows, "train": {"epochs": 30}}
    meet = {"MASTER_PORT": str(free_port())}
    killed, logs = start_ranks(data, run, count=count, sections=sections, environment=meet)
    deadline = time.monotonic() + 90
    while not list((run / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline, said(logs)
        time.sleep(0.01)
    for process in killed:
        process.kill()
    for process in killed:
        process.join(60)
    left = [path for path in shared.rglob("*") if path.is_file()]
    assert {path.parent == shared for path in left} == {count == 1}
    (shared / "mine.0.f32").touch()
    whole = {**LONG, **sections, "train": {**LONG["train"], **sections["train"]}}
    if count == 1:
        ranks[2].run(jobs.train_here, data, run, whole, True)
    else:
        train(data, run, resume=True, **whole)
    assert not [path for path in left if path.exists()]
    assert (shared / "mine.0.f32").exists()


def test_a_stopped_run_on_ranks_ends_as_one_that_was_not(ranks: dict[int, Ranks], data: Path, tmp_path: Path) -> None:
    sections = {**PLAIN, "model": {"name": "deepfm", "hidden_units": [8], "dropout": 0.3}}
    whole, _ = ranks[2].run(jobs.train_here, data, tmp_path / "whole", sections, False)
    ranks[2].run(jobs.train_until, data, tmp_path / "run", sections, 7)
    resumed, _ = ranks[2].run(jobs.train_here, data, tmp_path / "run", sections, True)
    assert timeless(resumed) == timeless(whole)


NORMED: dict[str, dict[str, Any]] = {
    "batch norm": {"model": {"name": "deepfm", "hidden_units": [8], "batch_norm": True}},
    "dhe": {"tables": {"dim": 4, "method": "dhe", "width": 6, "num_hashes": 8}},
    "autodim": {"tables": {"dim": 4, "method": "autodim", "budget": 0.6, "plain_below": 0}},
    "mgqe": {"tables": {"dim": 4, "method": "mgqe", "budget": 0.6, "plain_below": 20}},
}


@pytest.mark.parametrize("name", NORMED)
def test_figures_on_ranks_are_those_of_the_served_model(
    ranks: dict[int, Ranks], data: Path, tmp_path: Path, name: str
) -> None:
    """Statistics that each rank keeps of its own rows: the model that was evaluated, the checkpoint and the bundle are
    one."""
    sections = {**PLAIN, **NORMED[name]}
    result, other = ranks[2].run(jobs.train_here, data, tmp_path / "run", sections, False)
    assert result == other
    for path in (tmp_path / "run", tmp_path / "run" / "bundle"):
        alone = evaluate_saved(path, data=data, split="test")
        assert alone["auc"] == result["auc"], path.name
        assert alone["logloss"] == pytest.approx(result["logloss"], rel=1e-6), path.name
    assert alone["logloss"] == result["logloss"], "the result's figures are the bundle's, to the bit"
    valid = evaluate_saved(tmp_path / "run", data=data, split="valid")
    assert valid["auc"] == result["valid_auc"]
    ranks[2].run(jobs.train_until, data, tmp_path / "stopped", sections, 7)
    resumed, _ = ranks[2].run(jobs.train_here, data, tmp_path / "stopped", sections, True)
    assert timeless(resumed) == timeless(result), "each rank goes on with what it has counted"


@pytest.mark.parametrize("dedupe", [False, True])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "data_parallel"])
def test_sequences_over_ranks_equal_one_process(ranks: dict[int, Ranks], kind: str, dedupe: bool) -> None:
    """Groups of [B, T, H] ids with other T on each rank, two groups sharing their tables."""
    for worst in ranks[2].run(jobs.sequences, kind, dedupe):
        assert worst < 1e-5


@pytest.mark.parametrize("method", ["full", "hash"])
def test_weighted_bags_over_ranks_equal_one_process(ranks: dict[int, Ranks], method: str) -> None:
    for worst in ranks[2].run(jobs.weighted, method):
        assert worst < 1e-5


SECTIONS: dict[str, dict[str, Any]] = {
    "a plan that does not fit": {"rows": {"memory_per_rank": 1000}},
    "no such plan": {"rows": {"plan": "nope.yaml"}},
    "a directory without files": {"rows": {"directory": "rows"}},
    "a wrong value": {"train": {"epochs": 0}},
    "a network that diverges": {"train": {"lr": 1e30}},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_what_all_ranks_are_refused_is_said_once(data: Path, tmp_path: Path, name: str) -> None:
    both, logs = start_both(data, tmp_path / "run", sections=SECTIONS[name])
    for rank in both:
        rank.join(60)
    assert [rank.exitcode for rank in both] in ([2, 2], [1, 1]), said(logs)
    assert said(logs).count("embank: ") == 1, said(logs)
    assert "rank 0: " not in said(logs)


def test_a_signal_to_all_ranks_is_answered_once(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    both, logs = start_both(data, run, sections={"train": {"epochs": 400}})
    deadline = time.monotonic() + 90
    while not list((run / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline, said(logs)
        time.sleep(0.01)
    for rank in both:
        assert rank.pid is not None
        os.kill(rank.pid, signal.SIGINT)
    for rank in both:
        rank.join(60)
    assert [rank.exitcode for rank in both] == [1, 1], said(logs)
    assert said(logs).count("which is saved; go on with the same command") == 1, said(logs)


def test_spread_rows_are_held(ranks: dict[int, Ranks]) -> None:
    assert ranks[2].run(jobs.held) == [[False, True, False]] * 2


def test_ranks_that_differ_are_refused(ranks: dict[int, Ranks], data: Path, tmp_path: Path) -> None:
    other = {**PLAIN, "train": {**PLAIN["train"], "table_lr": 0.1}}
    for message in ranks[2].run(jobs.train_and_fail, [data, data], tmp_path / "a", [PLAIN, other]):
        assert "ConfigError: rank 1 has train.table_lr = 0.1 where rank 0 has 0.05" in message
    elsewhere = write_data(tmp_path / "other", single={"user": 51, "item": 7})
    for message in ranks[2].run(jobs.train_and_fail, [data, elsewhere], tmp_path / "b", [PLAIN, PLAIN]):
        assert "ConfigError: rank 1 sees data with fingerprint" in message
        assert "their vocabularies differ" in message
    missing = tmp_path / "nowhere"
    messages = ranks[2].run(jobs.train_and_fail, [data, missing], tmp_path / "c", [PLAIN, PLAIN])
    assert "DataError: rank 1: " in messages[0]
    assert str(missing) in messages[1]
    assert not (tmp_path / "a").exists()


def test_a_loss_that_is_not_finite_ends_all_ranks(ranks: dict[int, Ranks], data: Path, tmp_path: Path) -> None:
    sections = {**PLAIN, "train": {**PLAIN["train"], "table_lr": 1e30, "table_optimizer": "sgd"}}
    messages = ranks[2].run(jobs.train_and_fail, [data, data], tmp_path / "run", [sections, sections])
    assert all("NonFiniteLossError" in message and "the loss is" in message for message in messages)


LONG = {**PLAIN, "train": {**PLAIN["train"], "epochs": 10, "checkpoint_every": 5}}


def launch(data: Path, run: Path, *more: str) -> "subprocess.Popen[str]":
    """`embank train` on two ranks, as a user would start it."""
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(raw_config(data, **LONG)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*torchrun, "-m", "embank", "train", str(path), "--out", str(run), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def start_both(
    data: Path, run: Path, *more: str, sections: Mapping[str, dict[str, Any]] | None = None
) -> tuple[list[ForkServerProcess], list[Path]]:
    """The same two commands, each a process of ours; and where their output goes."""
    return start_ranks(data, run, *more, count=2, sections=sections, environment={"MASTER_PORT": str(free_port())})


def start_ranks(
    data: Path,
    run: Path,
    *more: str,
    count: int,
    sections: Mapping[str, dict[str, Any]] | None,
    environment: Mapping[str, str],
) -> tuple[list[ForkServerProcess], list[Path]]:
    """The same of any number of them, with the port where they meet among their variables."""
    path, sections = run.with_suffix(".yaml"), sections or {}
    changed = {name: {**LONG.get(name, {}), **values} for name, values in sections.items()}
    path.write_text(yaml.safe_dump(raw_config(data, **{**LONG, **changed})))
    logs = [run.with_name(f"rank-{rank}{''.join(more)}") for rank in range(count)]
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    shared = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), **environment}
    arguments = ["train", str(path), "--out", str(run), *more]
    started = [
        start(command, *arguments, log=log, environment={**shared, **at}) for log, at in zip(logs, places, strict=True)
    ]
    return started, [*logs, *(log.with_name(f"{log.name}.err") for log in logs)]


@pytest.mark.parametrize(("victim", "keeper"), [(0, "torchrun"), (3, "torchrun"), (3, "rank 0")])
def test_a_killed_rank_of_four_is_told_once(data: Path, tmp_path: Path, victim: int, keeper: str) -> None:
    """The store that ranks meet in is kept by torchrun, which is this process here, or by the first of them."""
    run, sections = tmp_path / "run", {"train": {"epochs": 400}}
    meet = {"MASTER_PORT": str(free_port())}
    if keeper == "torchrun":
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        meet = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    four, logs = start_ranks(data, run, count=4, sections=sections, environment=meet)
    try:
        deadline = time.monotonic() + 90
        while not list((run / "checkpoints").glob("step-*")):
            assert time.monotonic() < deadline, said(logs)
            time.sleep(0.01)
        four[victim].kill()
        for rank in four:
            rank.join(60)
    finally:
        for rank in four:
            rank.kill()
    assert [rank.exitcode for place, rank in enumerate(four) if place != victim] == [1, 1, 1], said(logs)
    assert said(logs).count("embank: ") == 1, said(logs)
    assert said(logs).count("lost the connection to another rank, which has ended") == 1, said(logs)


def test_a_rank_tells_what_it_has_lost_where_no_other_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(kept.port))
    stores = [TCPStore("127.0.0.1", kept.port) for _ in range(3)]
    ranks: list[Any] = [
        SimpleNamespace(get_group_store=lambda own=own: own, rank=lambda own=own: 1 + stores.index(own), size=lambda: 4)
        for own in stores
    ]
    assert [launching._has_another_told(rank) for rank in ranks[:2]] == [False, True]
    del kept
    assert not launching._has_another_told(ranks[2])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_and_the_run_resumes(
    ranks: dict[int, Ranks], data: Path, tmp_path: Path, victim: int
) -> None:
    run = tmp_path / "run"
    if victim == 0:
        process = launch(data, run)
        try:
            wait_for(lambda: list((run / "checkpoints").glob("step-*")), process)
            os.kill(sorted(children(process.pid))[victim], signal.SIGKILL)
            output, _ = process.communicate(timeout=60)
        finally:
            for pid in (*children(process.pid), process.pid):
                if process.poll() is None:
                    os.kill(pid, signal.SIGKILL)
        assert process.returncode != 0
    else:
        both, logs = start_both(data, run)
        deadline = time.monotonic() + 90
        while not list((run / "checkpoints").glob("step-*")):
            assert time.monotonic() < deadline, said(logs)
            time.sleep(0.01)
        both[victim].kill()
        both[1 - victim].join(60)
        assert both[1 - victim].exitcode == 1
        output = said(logs)
    assert "lost the connection to another rank, which has ended" in output
    assert "Traceback" not in output.split("torch/distributed")[0]
    both, logs = start_both(data, run, "--resume")
    for process_of_rank in both:
        process_of_rank.join(120)
    assert [process_of_rank.exitcode for process_of_rank in both] == [0, 0], said(logs)
    assert said(logs).count("test AUC") == 1, "metrics are printed once"
    whole, _ = ranks[2].run(jobs.train_here, data, tmp_path / "whole", LONG, False)
    resumed, _ = ranks[2].run(jobs.train_here, data, run, LONG, True)
    assert timeless(resumed) == timeless(whole)


def said(logs: list[Path]) -> str:
    return "".join(log.read_text() for log in logs)


def wait_for(condition: Any, process: "subprocess.Popen[str]", *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_port_in_use(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw_config(data, **PLAIN)))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "2"}
        done = subprocess.run(
            [sys.executable, "-m", "embank", "train", str(path), "--out", str(tmp_path / "run")],
            capture_output=True,
            text=True,
            env={**os.environ, **address},
            timeout=90,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert f"rank 0 can't join the others at 127.0.0.1:{port}" in done.stderr
    assert "Is the port in use?" in done.stderr


@pytest.mark.parametrize("method", sorted(TABLES))
def test_columns_without_a_vocabulary_train_on_ranks(ranks: dict[int, Ranks], tmp_path: Path, method: str) -> None:
    prepare(COLUMNS, [write_log(tmp_path / "log.csv")], tmp_path / "data")
    sections = {**PLAIN, "tables": TABLES[method]}
    expected = train(tmp_path / "data", tmp_path / "1", **sections)
    for result in ranks[2].run(jobs.train_here, tmp_path / "data", tmp_path / "2", sections, False):
        assert result["auc"] == pytest.approx(expected["auc"], abs=1e-3)
        assert result["serving_bytes"] == expected["serving_bytes"]
