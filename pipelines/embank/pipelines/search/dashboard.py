"""Optuna's dashboard on a search's studies, in a browser, while the search runs and after it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

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
def dashboard(storage: str, *, port: int = 0) -> Iterator[str]:
    """Serves the studies of a storage to this machine for as long as the context lasts.

    Args:
        storage: a journal's path, or a URL.
        port: 0 takes a free one.

    Returns:
        The address to open.

    Raises:
        ConfigError: optuna-dashboard is not installed, or the port is taken.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise ConfigError(
            "--dashboard needs optuna-dashboard, which is not installed; pip install 'embank[dashboard]'"
        ) from error
    with storage_errors(storage):
        app = wsgi(open_storage(storage))
    try:
        server = make_server(HOST, port, app, server_class=_Threaded, handler_class=_Quiet)
    except OSError as error:
        raise ConfigError(
            f"the dashboard can't listen on port {port}: {error.strerror}; give another --dashboard-port, or 0 for a "
            "free one"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="dashboard", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
