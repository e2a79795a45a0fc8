"""Where studies are kept: a fast journal that Optuna reads, and one clear message when it can't be written."""

import errno
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from embank.pipelines.search.storage import Journal, open_storage, storage_errors
from embank.tables import CheckpointError, ConfigError, WorkError


def study_in(storage: str | Path, *, num_trials: int) -> optuna.Study:
    study = optuna.create_study(storage=open_storage(storage), study_name="s", load_if_exists=True)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=num_trials)
    return study


def test_optuna_reads_the_journal(tmp_path: Path) -> None:
    study = study_in(tmp_path / "s.journal", num_trials=5)
    plain = JournalStorage(JournalFileBackend(str(tmp_path / "s.journal")))
    assert [t.params for t in optuna.load_study(study_name="s", storage=plain).trials] == [
        t.params for t in study.trials
    ]


def test_a_line_that_was_cut_short_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    study_in(path, num_trials=3)
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "worker')
    assert len(study_in(path, num_trials=2).trials) == 5
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    with pytest.raises(ConfigError, match="is not the journal of a study"):
        open_storage(path)
    assert path.read_text() == "my notes\n"
    with pytest.raises(ConfigError, match="is a folder"):
        open_storage(tmp_path)


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    study_in(path, num_trials=2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{broken\n", *lines[2:]]))
    with pytest.raises(CheckpointError, match=r"s.journal' is damaged"), storage_errors(path):
        optuna.load_study(study_name="s", storage=open_storage(path))


def test_a_read_only_journal_is_one_message() -> None:
    with pytest.raises(
        ConfigError, match=r"the study's storage '/sys/study.journal' can't be written: .*another --storage"
    ):
        open_storage("/sys/study.journal")


def test_a_read_only_database_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    study_in(f"sqlite:///{path}", num_trials=1)
    url = f"sqlite:///file:{path}?mode=ro&uri=true"
    with (
        pytest.raises(ConfigError, match="can't be written: attempt to write a readonly database"),
        storage_errors(url),
    ):
        study_in(url, num_trials=1)


def test_a_full_database_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    study_in(f"sqlite:///{path}", num_trials=1)
    storage = open_storage(f"sqlite:///{path}")
    from sqlalchemy import event

    @event.listens_for(storage.engine, "connect")
    def limit(connection: sqlite3.Connection, record: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    storage.engine.dispose()
    study = optuna.load_study(study_name="s", storage=storage)

    def write_much() -> None:
        for number in range(500):
            study.set_user_attr(f"much {number}", "x" * 2000)

    told = "the disk is full. Make room and go on with --resume"
    with pytest.raises(WorkError, match=told), storage_errors(str(path)):
        write_much()


FULL = """
import resource, signal, sys
import optuna
from embank.pipelines.search.storage import open_storage, storage_errors
from embank.tables import WorkError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    with storage_errors(sys.argv[1]):
        study = optuna.create_study(storage=open_storage(sys.argv[1]), study_name="s")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=100)
except WorkError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_the_journal_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("can't be written: the disk is full. Make room and go on with --resume")
    num = len(optuna.load_study(study_name="s", storage=open_storage(path)).trials)
    assert num > 1
    assert len(study_in(path, num_trials=2).trials) == num + 2


@pytest.mark.parametrize("url", ["nothing://x", "mysql://user:secret@host/name"])
def test_a_database_without_a_driver_is_one_message(url: str) -> None:
    with pytest.raises(ConfigError, match="can't be opened") as error:
        open_storage(url)
    assert "secret" not in str(error.value)


def test_writers_share_a_journal(tmp_path: Path) -> None:
    first, second = (Journal(tmp_path / "s.journal") for _ in range(2))
    for number in range(20):
        (first if number % 2 else second).append_logs([{"op_code": 8, "number": number}])
    assert [log["number"] for log in first.read_logs(0)] == list(range(20))


def test_a_disk_that_fills_up_while_a_trial_ends_is_told_as_such(tmp_path: Path) -> None:
    """Optuna then raises an assertion of its own over what the storage has raised."""

    class Full(JournalFileBackend):
        left = 12  # lines

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            if self.left < len(logs):
                raise OSError(errno.ENOSPC, "No space left on device")
            self.left -= len(logs)
            super().append_logs(logs)

    def search(storage: JournalStorage) -> None:
        optuna.create_study(storage=storage).optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=9)

    path = tmp_path / "s.journal"
    for ends in range(3, 12):  # wherever in a trial it is
        path.unlink(missing_ok=True)
        backend = Full(str(path))
        backend.left = ends
        with pytest.raises(WorkError, match="the disk is full. Make room"), storage_errors(path):
            search(JournalStorage(backend))
