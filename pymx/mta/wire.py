"""What goes over a connection to another server: replies in order, content with its dots stuffed (RFC 5321, 2920).

aiosmtplib's protocol has one slot for a reply and drops those it was not waiting for, which forbids pipelining; the
subclass here keeps them in a queue. The reply parser, the flow control and STARTTLS are aiosmtplib's.
"""

from __future__ import annotations

import asyncio
from collections import deque

from aiosmtplib.errors import SMTPResponseException, SMTPServerDisconnected
from aiosmtplib.protocol import MAX_RESPONSE_LENGTH, SMTPProtocol
from aiosmtplib.response import SMTPResponse

from pymx.proto.smtp.dotstuff import DotEncoder

MAX_REPLIES = 250  # waiting: a transaction of a hundred recipients has a hundred and two


class BareNewline(Exception):
    """The content has a CR or LF that is no line end: peers would not agree where it stops. It must not be sent."""


class Wire(SMTPProtocol):
    """aiosmtplib's protocol with replies in a queue.

    A subclass, although we have few: its reply slot is inside, and holds one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.replies: deque[SMTPResponse] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._buffer.extend(data)
        try:
            while (response := self._read_response_from_buffer()) is not None:
                self.replies.append(response)
            if len(self._buffer) > MAX_RESPONSE_LENGTH or len(self.replies) > MAX_REPLIES:
                raise SMTPResponseException(-1, "Reply too long")
        except SMTPResponseException as e:
            del self._buffer[:]
            self._fail(e)
        self._notify()

    def eof_received(self) -> bool:
        self._fail(SMTPServerDisconnected("Connection closed by the remote"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._fail(SMTPServerDisconnected(f"Connection lost{f': {exc}' if exc else ''}"))
        self.lost.set()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._notify()

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read_response(self, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109  # its signature
        """The next reply. Raises TimeoutError, SMTPServerDisconnected, SMTPResponseException."""
        async with asyncio.timeout(timeout):
            while not self.replies:
                if self._failure is not None:
                    raise self._failure
                self._waiter = self._loop.create_future()
                await self._waiter
        return self.replies.popleft()

    @property
    def idle(self) -> bool:
        """Whether a command may be sent: connected, and nothing came unasked."""
        return self.is_connected and self._failure is None and not self.replies and not self._buffer

    @property
    def writing_paused(self) -> bool:
        return self._paused

    async def drained(self) -> None:
        await self._drain_helper()


class Outgoing:
    """Content on its way out: dots stuffed, bare CR and LF refused. Holds back at most one CR."""

    __slots__ = ("_carry", "_encoder")

    def __init__(self) -> None:
        self._encoder = DotEncoder()
        self._carry = b""

    def feed(self, data: bytes) -> bytes:
        """`data` as it goes out. Raises BareNewline."""
        if self._carry:
            data, self._carry = self._carry + data, b""
        if data.endswith(b"\r"):
            data, self._carry = data[:-1], b"\r"
        ends = data.count(b"\r\n")
        if data.count(b"\n") != ends or data.count(b"\r") != ends:
            raise BareNewline
        return self._encoder.feed(data)

    def finish(self) -> bytes:
        """The end of the data. Raises BareNewline."""
        if self._carry:
            raise BareNewline
        return self._encoder.finish()
