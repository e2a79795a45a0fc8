"""What comes of files, under limits: a refusal with a cure, or a result."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from embank.tables.errors import EmbankError

SECONDS, NBYTES = 20, 2**30
"""What a case may take: of time, and of address space beyond what the process has."""


class UnexpectedError(AssertionError):
    """A crash, a hang, a huge allocation, a message that helps nobody."""


@contextmanager
def limited() -> Iterator[None]:
    """Ends a block that takes too long, and lets it have no more than a GiB."""

    def late(*_: object) -> None:
        raise UnexpectedError(f"it takes more than {SECONDS} s")

    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    before, limits = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (held + NBYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(work: Callable[[], Any], *, what: str) -> Any:
    """What work gives, or None where it is refused.

    Raises:
        UnexpectedError: it fails in another way, or the refusal is about resources.
    """
    try:
        with limited():
            return work()
    except EmbankError as error:
        message = str(error)
        if "out of memory" in message or "Traceback" in message or len(message) > 6000:
            raise UnexpectedError(f"{what}: {message[:2000]}") from error
        return None
    except UnexpectedError as error:
        raise UnexpectedError(f"{what}: {error}") from error
    except BaseException as error:
        raise UnexpectedError(f"{what}: {type(error).__name__}: {str(error)[:2000]}") from error
