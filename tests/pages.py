"""A page of the documentation as its reader follows it, block by block, in the folder where it is.

```python    is run; all of a page's blocks share their names
```yaml      is written to the file that the text before it names: "as `columns.yaml`:"
```          is commands: `embank` in this process; `embank serve` beside it, until the page ends; `curl`
```text      is what the block before has printed, or a part of it: see `says`
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from typer.testing import CliRunner

from embank.pipelines.cli.app import app

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
ROOT = Path(__file__).parents[1]
PORT = "8000"
NOT_ASKED = "there is no curl here"
HAS_CURL = shutil.which("curl") is not None


def embank(*arguments: object) -> str:
    """Runs a command in this process; returns what it prints. Its errors come through."""
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False, standalone_mode=False).stdout


class Followed:
    """A page that is followed; a server that it starts ends with it.

    Attributes:
        said: what each command and each block of Python has printed, in order.
    """

    def __init__(self, page: Path) -> None:
        self.text = page.read_text()
        self.said: list[str] = []
        self._names: dict[str, Any] = {"__name__": "tutorial"}
        self._server: subprocess.Popen[str] | None = None
        self._port = _free_port()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            assert self._server.wait(30) == 0

    def follow(self) -> list[str]:
        """All blocks, in order; returns `said`.

        Raises:
            AssertionError: something is said otherwise than the page has it.
        """
        printed = ""
        for block in BLOCK.finditer(self.text):
            language, text = block.groups()
            if language == "text":
                wrong = f"the page has\n{text}\nand what was printed is\n{printed}"
                assert NOT_ASKED in printed or says(printed, text), wrong
            elif language == "yaml":
                name = re.findall(r"`(\w+\.yaml)`", self.text[: block.start()])[-1]
                Path(name).write_text(text)
            elif language == "python":
                printed = self._run(text)
                self.said.append(printed)
            else:
                lines = text.replace("\\\n", " ").splitlines()
                self.said += (all_printed := [self._command(line) for line in lines])
                printed = "\n".join(all_printed)
        return self.said

    def _run(self, text: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(text, self._names)
        return out.getvalue()

    def _command(self, line: str) -> str:
        words = shlex.split(line.replace(f"localhost:{PORT}", f"127.0.0.1:{self._port}"))
        if words[:2] == ["embank", "serve"]:
            assert words.count(PORT) == 1
            return self._serve([str(self._port) if word == PORT else word for word in words[1:]])
        if words[0] == "curl":
            if not HAS_CURL:
                return NOT_ASKED
            done = subprocess.run([*words, "--silent", "--noproxy", "*"], capture_output=True, text=True, check=True)
            return done.stdout
        assert words[0] == "embank", line
        return embank(*words[1:])

    def _serve(self, words: list[str]) -> str:
        """Starts a server and waits until it says that it serves."""
        log = Path("server.log")
        with log.open("w") as out:
            command = [sys.executable, "-W", "ignore", "-m", "embank", *words]
            self._server = subprocess.Popen(command, stdout=out, stderr=out, text=True, env={**os.environ})
        end = time.monotonic() + 120
        while not re.match("serving .*\n", said := log.read_text()):
            assert self._server.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.05)
        return said


def says(printed: str, shown: str) -> bool:
    """Whether what a page shows is a part of what was printed: up to numbers, checksums and white space. `...` at the
    end of a line leaves its rest out."""
    lines = [
        f"{re.escape(_masked(line).removesuffix('...').strip())}{'.*' if '...' in line else ''}"
        for line in shown.splitlines()
    ]
    return re.search(r" ?\n ?".join(lines), _masked(printed)) is not None


def _masked(text: str) -> str:
    text = re.sub(r"(?<![.\w])[0-9a-f]{12,64}\b", "#", text)
    text = re.sub(r"-?\d[\d,]*(\.\d*)?(e-\d+)?", "#", text)
    return re.sub(r"[ \t]+", " ", text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
