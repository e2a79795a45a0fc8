"""One process of a server: loads the bundle, answers, follows what all are to serve."""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import threading
from collections.abc import Callable

import torch
import uvicorn

from embank.pipelines.serve.app import build_app
from embank.pipelines.serve.changes import Changes
from embank.pipelines.serve.metrics import Metrics
from embank.pipelines.serve.models import Served, Snapshot, tried_model
from embank.pipelines.serve.service import Service
from embank.pipelines.serve.settings import Settings
from embank.pipelines.serve.state import Current, Loaded, StateFolder
from embank.pipelines.sweep.children import end_with_parent
from embank.tables.errors import CheckpointError, EmbankError

_log = logging.getLogger(__name__)

LOOK_S = 0.1
"""Between looks at what is to be served."""
_AGAIN_S = 2.0
"""After a bundle could not be loaded."""
KEPT_S = 75
"""For a connection without a request: longer than clients and proxies keep theirs, so that they close first."""
DRAIN_S = 30
"""For requests to end after a signal."""


class Worker:
    """A worker and its model.

    Args:
        number: of the worker.
        settings: of the server.
        state: the server's folder.
        is_shared: whether counters are those of several processes.
    """

    def __init__(self, number: int, *, settings: Settings, state: StateFolder, is_shared: bool = True) -> None:
        self.number = number
        self.state = state
        self.telling = threading.RLock()
        self.served = Served(self._first())
        self.metrics = Metrics(state, is_shared=is_shared)
        self.changes = Changes(state, adopt=self.adopt)
        service = Service(settings, served=self.served, changes=self.changes, metrics=self.metrics)
        self.app = build_app(service, follow=self.follow)

    def adopt(self, snapshot: Snapshot) -> None:
        """Answers requests that arrive from now on with this model, and says so; not with one that is older."""
        with self.telling:
            if snapshot.sequence > self.served.snapshot.sequence:
                self.served.snapshot = snapshot
        self.tell()

    async def follow(self) -> None:
        """Loads what is to be served whenever that changes, beside the model that answers meanwhile."""
        stamp = None
        while True:
            await asyncio.sleep(LOOK_S)
            newest = self.state.stamp()
            if newest in (None, stamp) or self.changes.is_busy:
                continue  # where this worker makes the change, it has the model already
            if await asyncio.to_thread(self._take_up):
                stamp = newest
            else:
                await asyncio.sleep(_AGAIN_S)

    def _take_up(self) -> bool:
        """Serves what is to be served, or says why it can't; whatever that is, the old model goes on."""
        current = self.state.current()
        try:
            if current.sequence > self.served.snapshot.sequence:
                self.adopt(_loaded(current))
            return True
        except Exception as error:
            if not isinstance(error, EmbankError):
                _log.error("worker %d can't load the bundle", self.number, exc_info=error)
            self.tell(failed=(current.sequence, str(error) or type(error).__name__))
            return False

    def _first(self) -> Snapshot:
        """What is to be served as the worker starts; it may change while it is loaded."""
        while True:
            current = self.state.current()
            try:
                return _loaded(current)
            except EmbankError:
                if self.state.current().sequence == current.sequence:
                    raise

    def tell(self, failed: tuple[int, str] | None = None) -> None:
        """Says what this worker serves, and what it could not load."""
        with self.telling:
            snapshot = self.served.snapshot
            loaded = Loaded(sequence=snapshot.sequence, pid=os.getpid(), failed=failed, **snapshot.facts)
            self.state.tell_loaded(self.number, loaded)


def _loaded(current: Current) -> Snapshot:
    """The model that is to be served. Its files were verified by who asked for it."""
    model = tried_model(current.bundle, verify=False)
    if model.checksum != current.checksum:
        raise CheckpointError(
            f"bundle '{current.bundle}' has changed since it was verified: its checksum is {model.checksum[:12]}, not "
            f"{current.checksum[:12]}. Write bundles beside each other, never over one that is served"
        )
    return Snapshot(model=model, sequence=current.sequence)


def work(number: int, settings: Settings, state: StateFolder, listener: socket.socket, num_threads: int) -> None:
    """In the worker's process: serves until a signal.

    Args:
        number: of the worker.
        settings: of the server.
        state: its folder.
        listener: the bound socket that all workers accept from.
        num_threads: of torch.
    """
    end_with_parent()
    torch.set_num_threads(num_threads)
    logging.basicConfig(level=logging.WARNING, format="embank: worker %(process)d: %(message)s", force=True)
    try:
        worker = Worker(number, settings=settings, state=state)
    except EmbankError as error:
        _log.error("%s", error)
        raise SystemExit(error.exit_code) from None
    config = uvicorn.Config(
        worker.app,
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        ws="none",
        timeout_keep_alive=KEPT_S,
    )
    # What libraries have made stays for good. Looking through all of it again and again stops every request meanwhile.
    gc.collect()
    gc.freeze()
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signals that it has obeyed once more
        _Server(config, listening=worker.tell).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, *, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self.listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening()
