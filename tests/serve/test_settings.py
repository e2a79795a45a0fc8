"""What a server is told, and where it can't listen."""

import re
import socket
from typing import Any

import pytest

from embank.pipelines.cli.failures import explain
from embank.pipelines.serve.server import listening
from embank.pipelines.serve.settings import Settings
from embank.tables import ConfigError


def test_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"can't listen at 127.0.0.1:{port}: .*in use.* Give another --port"):
            listening(Settings(port=port))
    with pytest.raises(ConfigError, match="can't listen at|is no address to listen at"):
        listening(Settings(host="192.0.2.1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers is 0; give a number from 1 to 1,024"),
        ({"timeout_s": -1.0}, "--timeout is -1.0"),
        ({"batch_wait_ms": 1e9}, "--batch-wait-ms is"),
        ({"token": "short"}, "--token needs at least 8"),
    ],
    ids=str,
)
def test_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Settings(**options)


@pytest.mark.parametrize("library", ["fastapi", "starlette", "uvicorn", "prometheus_client"])
def test_a_missing_library(library: str) -> None:
    message, code = explain(ModuleNotFoundError(name=library))
    assert message == f"{library} is not installed; pip install 'embank[serve]'"
    assert code == 1
