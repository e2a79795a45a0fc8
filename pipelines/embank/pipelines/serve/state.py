"""The private folder through which the processes of a server agree on what they serve.

    current          the bundle that all serve: a sequence number, its path, its checksum
    workers          process id of each worker, by number
    loaded/NUMBER    what a worker has loaded, or why it could not
    lock             held by who changes `current`
    applied/         bundles that deltas made
    metrics/         what the workers count, in prometheus-client's files

Files are replaced as a whole, so that a reader sees all of one or of the next.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embank.pipelines.serve.refused import RefusedRequestError
from embank.tables.errors import CheckpointError
from embank.tables.storage.atomic import replace_text, temporary_folder
from embank.tables.storage.json_text import read_json

_PREFIX = "embank-serve-"
_CURE = "make room where temporary files go, or set TMPDIR"


@dataclass(frozen=True, kw_only=True)
class Current:
    """What is to be served.

    Args:
        sequence: one more with each change.
        bundle: its path.
        checksum: of the bundle.
        features: the columns that the model reads, and of what type.
    """

    sequence: int
    bundle: str
    checksum: str
    features: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a worker serves.

    Args:
        sequence: of what it has loaded.
        pid: of the worker.
        version, checksum: of the model.
        failed: the sequence that it could not load, and why.
    """

    sequence: int
    pid: int
    version: str
    checksum: str
    failed: tuple[int, str] | None = None


class StateFolder:
    """The folder, as a worker sees it; `StateFolder.made` makes one.

    Args:
        path: it exists.

    Example:
        >>> with StateFolder.made() as state:
        ...     state.publish(Current(sequence=1, bundle="b", checksum="c", features={}))
        ...     state.current().bundle
        'b'
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.current_file = path / "current"
        self.metrics = path / "metrics"
        self.applied = path / "applied"

    @classmethod
    @contextmanager
    def made(cls) -> Iterator["StateFolder"]:
        """A new one, which nobody else may read; it vanishes at the end of the block."""
        _remove_abandoned()
        with temporary_folder(f".{_PREFIX}", parent=Path(tempfile.gettempdir()), mode=0o700) as made:
            path = made.with_name(made.name.removeprefix("."))
            try:
                for name in ("metrics", "applied", "loaded"):
                    (made / name).mkdir()
                with _held(made):
                    made.rename(path)  # nobody finds it before it is held
                    yield cls(path)
            finally:
                shutil.rmtree(path, ignore_errors=True)

    def current(self) -> Current:
        """What is to be served.

        Raises:
            CheckpointError: nothing yet.
        """
        return Current(**read_json(self.current_file))

    def stamp(self) -> tuple[int, int] | None:
        """Changes whenever `current` does, and costs one look at the file system; None where it is gone."""
        try:
            status = os.stat(self.current_file)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def publish(self, current: Current) -> None:
        """Has all workers serve another bundle."""
        replace_text(self.current_file, json.dumps(asdict(current)), cure=_CURE)

    def tell_workers(self, pids: Mapping[int, int]) -> None:
        """Process ids by number of the worker."""
        replace_text(self.path / "workers", json.dumps(dict(pids)), cure=_CURE)

    def workers(self) -> dict[int, int]:
        """Process ids by number, of those that live or are about to."""
        with suppress(CheckpointError):
            return {int(number): pid for number, pid in read_json(self.path / "workers").items()}
        return {}

    def tell_loaded(self, number: int, loaded: Loaded) -> None:
        """Says what a worker serves."""
        replace_text(self.path / "loaded" / str(number), json.dumps(asdict(loaded)), cure=_CURE)

    def loaded(self) -> dict[int, Loaded]:
        """What the workers serve that live, by number; without those that have loaded nothing yet."""
        found = {}
        for number, pid in self.workers().items():
            with suppress(CheckpointError):
                loaded = Loaded(**read_json(self.path / "loaded" / str(number)))
                if loaded.pid == pid:
                    found[number] = loaded
        return found

    @contextmanager
    def changing(self, *, waits: bool) -> Iterator[None]:
        """Held by who changes `current`, one at a time.

        Args:
            waits: until it is free.

        Raises:
            RefusedRequestError: 409, somebody else does, and this was not to wait.
        """
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise RefusedRequestError(
                    409, "reload", "another reload is under way; ask again when it has ended"
                ) from error
            yield

    def remove_applied(self, *, but: str) -> None:
        """Removes the bundles that deltas made, all but one. Others' bundles are never touched."""
        for folder in self.applied.iterdir():
            if folder != Path(but):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(folder: Path, *, waits: bool = True) -> Iterator[None]:
    """Locks a folder; the system lets go of it whatever ends this process. Cleaners of /tmp leave such folders alone.

    Raises:
        BlockingIOError: somebody else has it, and this was not to wait.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned() -> None:
    """Removes the folders of servers that were killed: they may hold whole bundles."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), _held(folder, waits=False):
            if (folder / "applied").is_dir():
                shutil.rmtree(folder, ignore_errors=True)
