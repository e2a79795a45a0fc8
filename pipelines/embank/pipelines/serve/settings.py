"""What a server is told: where it listens, its limits, how it forms batches."""

from dataclasses import dataclass

from embank.tables.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of all workers of a server.

    Args:
        host, port: where it listens; port 0 takes a free one.
        workers: processes.
        max_rows: of a request.
        max_body: bytes of a request.
        timeout_s: seconds from the first byte of a request to its answer.
        batch_rows: rows that are scored together, if so many wait.
        batch_wait_ms: milliseconds that a request waits for others while several clients ask; one alone never waits.
        token: whoever knows it may reload from anywhere; None lets this machine reload, and nobody else.

    Raises:
        ConfigError: a value that can't be.

    Example:
        >>> Settings(workers=2).max_rows
        8192
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    max_rows: int = 8192
    max_body: int = 8 * 2**20
    timeout_s: float = 10.0
    batch_rows: int = 1024
    batch_wait_ms: float = 1.0
    token: str | None = None

    def __post_init__(self) -> None:
        for name, least, most in (("port", 0, 65_535), ("workers", 1, 1024), ("max_rows", 1, 10**7)):
            self._refuse_outside(name, least, most)
        for name, least, most in (("max_body", 1024, 2**31), ("batch_rows", 1, 10**7), ("batch_wait_ms", 0, 1000)):
            self._refuse_outside(name, least, most)
        self._refuse_outside("timeout_s", 0.01, 3600)
        if self.token is not None and (len(self.token) < 8 or not self.token.isascii() or not self.token.isprintable()):
            raise ConfigError(
                "--token needs at least 8 printable ASCII characters; make one with `openssl rand -hex 16`"
            )

    def _refuse_outside(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not least <= value <= most:
            option = "--" + name.removesuffix("_s").replace("_", "-")
            raise ConfigError(f"{option} is {value}; give a number from {least:,} to {most:,}")
