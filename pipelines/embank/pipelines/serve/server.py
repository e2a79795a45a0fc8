"""`embank serve`: one process that starts the workers, brings back those that die, and follows a pointer."""

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from embank.pipelines.serve.changes import Changes
from embank.pipelines.serve.models import features_of, tried_model
from embank.pipelines.serve.settings import Settings
from embank.pipelines.serve.source import Stamp, current_bundle, has_pointer, stamp_of
from embank.pipelines.serve.state import Current, StateFolder
from embank.pipelines.serve.worker import DRAIN_S, work
from embank.pipelines.sweep.children import num_cores, start
from embank.pipelines.train.interrupt import StopRequest, stop_on_signals
from embank.tables.errors import ConfigError, WorkError
from embank.tables.storage.refusals import cause_of

_PRELOADED = ["embank.pipelines.serve.worker"]
_LOOK_S = 0.1
_POINTER_S = 1.0
_MOST_DEATHS = 5
_QUICK_S, _LONGEST_PAUSE_S = 10.0, 30.0
_START_S = 600.0
Note = Callable[[str], None]


def serve(path: str | Path, settings: Settings, *, note: Note) -> None:
    """Serves a bundle until SIGTERM or Ctrl-C; requests that have begun are answered first.

    Args:
        path: a bundle, a run with one, or a folder with a pointer to one, which is then followed.
        settings: where and how.
        note: is told what has happened, a line each.

    Raises:
        EmbankError: nothing to serve, or no place to listen.
        WorkError: workers die as soon as they start.
    """
    with stop_on_signals() as stop, closing(listening(settings)) as listener, StateFolder.made() as state:
        seen = stamp_of(Path(path))  # before the pointer is read, so that no change of it is missed
        bundle = current_bundle(path)
        server = _Server(settings, state=state, listener=listener, note=note)
        model = tried_model(bundle, verify=True)
        state.publish(Current(sequence=1, bundle=str(bundle), checksum=model.checksum, features=features_of(model)))
        what = f"model {model.version} of '{bundle}'"
        del model  # the workers have their own
        pointer = None
        try:
            server.start(stop)
            host, port = listener.getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            if not stop:
                workers = "1 worker" if settings.workers == 1 else f"{settings.workers} workers"
                note(f"serving {what} at http://{host}:{port} with {workers}; /docs shows how to ask")
            if has_pointer(path):
                pointer = _Pointer(Path(path), seen=seen, state=state, note=note)
            while not stop:
                server.revive(stop)
        finally:
            if pointer is not None:
                pointer.end()
            server.end()


def listening(settings: Settings) -> socket.socket:
    """A socket that is bound, and listens as soon as a worker has loaded its model.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(
            f"'{settings.host}' is no address to listen at: {error.strerror}. Give another --host"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"the server can't listen at {where}: {cause_of(error)}. Give another --port, or 0 for a free one"
        ) from error
    return listener


class _Server:
    """The workers' processes."""

    def __init__(self, settings: Settings, *, state: StateFolder, listener: socket.socket, note: Note) -> None:
        self.settings = settings
        self.state = state
        self.listener = listener
        self.note = note
        self.num_threads = max(1, num_cores() // settings.workers)
        self.processes: dict[int, BaseProcess] = {}
        self.begun: dict[int, float] = {}
        self.deaths: dict[int, int] = {}  # in a row, each soon after its start
        self.due: dict[int, float] = {}
        # Looked at once, when these libraries are imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(state.metrics)
        for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS"):
            os.environ.setdefault(name, str(self.num_threads))
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()  # it imports while this process verifies the bundle

    def start(self, stop: StopRequest) -> None:
        """Starts the workers, and waits until all have loaded the model.

        Raises:
            WorkError: one of them could not.
        """
        for number in range(self.settings.workers):
            self._begin(number)
        end = time.monotonic() + _START_S
        while not stop and len(self.state.loaded()) < self.settings.workers:
            dead = [n for n, process in self.processes.items() if process.exitcode is not None]
            if dead or time.monotonic() > end:
                raise WorkError(f"worker {(dead or [0])[0]} could not start; what it said stands above")
            time.sleep(_LOOK_S / 2)

    def revive(self, stop: StopRequest) -> None:
        """Waits a moment, and starts workers again that have died, one that dies again and again after longer and
        longer pauses.

        Raises:
            WorkError: they die again and again, and none is left that answers.
        """
        living = [process.sentinel for process in self.processes.values() if process.exitcode is None]
        if living:
            wait(living, timeout=_LOOK_S)
        else:
            time.sleep(_LOOK_S)
        for number, process in list(self.processes.items()):
            if process.exitcode is None or stop:
                continue
            if number not in self.due:
                self.due[number] = time.monotonic() + self._pause(number, process)
            if time.monotonic() >= self.due[number]:
                del self.due[number]
                self._begin(number)

    def _pause(self, number: int, process: BaseProcess) -> float:
        """Takes note of a worker's death.

        Returns:
            Seconds until it is started again.
        """
        quick = time.monotonic() - self.begun[number] < _QUICK_S
        self.deaths[number] = self.deaths.get(number, 0) + 1 if quick else 1
        count = self.deaths[number]
        if count > _MOST_DEATHS and not self._answers():
            raise WorkError(f"workers have died {count} times within seconds; what they said stands above")
        pause = 0.0 if count == 1 else min(_LONGEST_PAUSE_S, 0.1 * 2**count)
        when = f" in {pause:.0f} s" if pause >= 1 else ""
        self.note(f"worker {number} has ended ({_how(process)}) and is started again{when}")
        self._forget(process)
        return pause

    def _answers(self) -> bool:
        """Whether a worker has lived for a while."""
        now = time.monotonic()
        return any(p.exitcode is None and now - self.begun[n] >= _QUICK_S for n, p in self.processes.items())

    def end(self) -> None:
        """Asks the workers to end, and waits until they have answered what they had begun; nobody else is let in."""
        self.listener.close()  # else the system would take connections that no worker accepts any more
        for process in self.processes.values():
            process.terminate()
        end = time.monotonic() + DRAIN_S + 5
        for process in self.processes.values():
            process.join(max(0.0, end - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()

    def _begin(self, number: int) -> None:
        process = self.context.Process(
            target=work,
            args=(number, self.settings, self.state, self.listener, self.num_threads),
            name=f"worker {number}",
        )
        start(process)
        self.processes[number] = process
        self.begun[number] = time.monotonic()
        self.state.tell_workers({n: p.pid for n, p in self.processes.items() if p.pid is not None})

    def _forget(self, process: BaseProcess) -> None:
        """Its gauges; what it counted stays counted."""
        for file in self.state.metrics.glob(f"gauge_live*_{process.pid}.db"):
            file.unlink(missing_ok=True)


def _how(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return f"signal {-code}" if code < 0 else f"exit code {code}"


class _Pointer:
    """Serves another bundle when the folder's `current` names one. A thread of its own looks once a second."""

    def __init__(self, folder: Path, *, seen: Stamp, state: StateFolder, note: Note) -> None:
        self.folder = folder
        self.seen = seen
        self.changes = Changes(state)
        self.note = note
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, name="pointer", daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Looks no more."""
        self.ended.set()

    def _follow(self) -> None:
        while not self.ended.wait(_POINTER_S):
            if (stamp := stamp_of(self.folder)) == self.seen:
                continue
            self.seen = stamp  # what can't be served is told once, and tried again when the pointer changes again
            try:
                self._take_up(current_bundle(self.folder))
            except Exception as error:  # whatever it is, the thread goes on looking
                self.note(str(error) or type(error).__name__)

    def _take_up(self, bundle: Path) -> None:
        if str(bundle) == self.changes.state.current().bundle:
            return
        changed = self.changes.to_bundle(bundle, waits=True)
        said = "".join(f"; worker {number}: {why}" for number, why in changed.missing.items())
        self.note(f"serving '{bundle}' from now on{said}")
