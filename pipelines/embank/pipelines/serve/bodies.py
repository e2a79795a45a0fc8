"""The bytes of requests: their type, their size, and how many of them a worker holds at a time."""

import contextlib
from collections.abc import Iterator
from email.message import Message

from starlette.requests import ClientDisconnect, Request

from embank.pipelines.serve.refused import RefusedRequestError, overloaded
from embank.tables.wording import shortened

JSON = "application/json"
_HELD_BODIES = 8
_DISCARDED_BODIES = 8
"""Of the largest body: how much of a larger one is read and thrown away, so that its sender reads the answer."""


def content_type(request: Request, *, allowed: tuple[str, ...]) -> str:
    """The type of a request's body.

    Raises:
        RefusedRequestError: 415 for another one, another encoding, or a compressed body.
    """
    header = request.headers.get("content-type", "")
    message = Message()
    message["content-type"] = header
    found = message.get_content_type() if header else ""
    if found not in allowed:
        what = f"the content type is {shortened(header)!r}" if header else "the request has no content type"
        raise RefusedRequestError(415, "content type", f"{what}; send {' or '.join(allowed)}")
    charset = str(message.get_param("charset", "utf-8"))
    if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise RefusedRequestError(415, "content type", f"the charset is {shortened(charset)!r}; send UTF-8")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise RefusedRequestError(
            415, "content type", f"the body's encoding is {shortened(encoding)!r}; send it as it is"
        )
    return found


class Bodies:
    """Reads bodies, and refuses what a worker can't hold.

    Args:
        most: bytes of a body; eight times as many are held at a time.
    """

    def __init__(self, *, most: int) -> None:
        self.most = most
        self.held = 0

    @contextlib.contextmanager
    def room(self) -> Iterator["_Room"]:
        """Counts what is read within the block, until its end."""
        room = _Room(self)
        try:
            yield room
        finally:
            self.held -= room.size


class _Room:
    """One request's bytes."""

    def __init__(self, bodies: Bodies) -> None:
        self.bodies = bodies
        self.size = 0

    async def read(self, request: Request) -> bytes:
        """A request's body.

        Raises:
            RefusedRequestError: 413 for too many bytes, 503 where other requests hold too many, 400 where the client
                went away.
        """
        try:
            return await self._read(request)
        except ClientDisconnect as error:
            raise RefusedRequestError(400, "disconnected", "the client went away before its body was read") from error

    async def _read(self, request: Request) -> bytes:
        most = self.bodies.most
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > most:
            await self._discard(request)
            self._refuse_size(int(announced))
        chunks: list[bytes] = []
        async for chunk in request.stream():
            self.size += len(chunk)
            self.bodies.held += len(chunk)
            if self.size > most:
                self._refuse_size(None)
            if self.bodies.held > _HELD_BODIES * most:
                raise overloaded("the bodies of other requests fill this worker's memory; come again in a second")
            chunks.append(chunk)
        return b"".join(chunks)

    async def _discard(self, request: Request) -> None:
        left = _DISCARDED_BODIES * self.bodies.most
        async for chunk in request.stream():
            left -= len(chunk)
            if left < 0:
                return

    def _refuse_size(self, size: int | None) -> None:
        size_is = "the body is larger" if size is None else f"the body has {size:,} bytes, more"
        raise RefusedRequestError(
            413,
            "body",
            f"{size_is} than the {self.bodies.most:,} bytes that this server takes; send several requests, or start it "
            "with a larger --max-body",
        )
