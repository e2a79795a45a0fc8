"""Optuna's dashboard on a search's studies, in a browser, while the search runs and after it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from embank.pipelines.search.storage import open_storage, storage_errors
from embank.tables import ConfigError

HOST = "127.0.0.1"


class _Quiet(WSGIRequestHandler):
    """Without a line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Threaded(WSGIServer):
    """Answers one request after the other, which is enough for one person."""

    allow_reuse_address = True


@contextmanager
def dashboard(port: int = 0) -> Iterator[Callable[[str], str]]:
    """Takes a port for as long as the context lasts, before there is anything to show: who starts a search learns at
    once that it can't be had.

    Args:
        port: 0 takes a free one.

    Returns:
        Serves the studies of a storage (a journal's path, or a URL) to this machine from its call on, and returns the
        address to open.

    Raises:
        ConfigError: optuna-dashboard is not installed, or the port is taken or none.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise ConfigError(
            "--dashboard needs optuna-dashboard, which is not installed; pip install 'embank[dashboard]'"
        ) from error
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--dashboard-port is {port}; it must be in 0 .. 65,535, where 0 takes a free one")
    try:
        server = _Threaded((HOST, port), _Quiet)
    except OSError as error:
        raise ConfigError(
            f"the dashboard can't listen on port {port}: {error.strerror}; give another --dashboard-port, or 0 for a "
            "free one"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="dashboard", daemon=True)

    def serve(storage: str) -> str:
        with storage_errors(storage):
            server.set_app(wsgi(open_storage(storage)))
        thread.start()
        return f"http://{HOST}:{server.server_port}/"

    try:
        yield serve
    finally:
        if thread.is_alive():
            server.shutdown()
            thread.join()
        server.server_close()
