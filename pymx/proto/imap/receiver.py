"""Bytes in, requests out (RFC 3501 s. 2.2, 4.3; LITERAL+ RFC 7888), without any I/O.

`feed()` takes what came from the network, `next_event()` gives the next `Request`, `Continuation` (tell the client
to go on with its literal), `Refused` (a command that was not taken, answered with its tag), or None when more octets
are needed. Commands are given out one at a time, so that the session runs them in order; `next_line()` is for the
two commands that talk in lines, AUTHENTICATE and IDLE.

Limits: a command without its message literals has at most `max_line_octets`, small literals included. The messages of
an APPEND go into a sink piece by piece, each at most `append_limit` octets, and all of a command together at most that
or `swallow_limit`, whichever is more. A literal that is too large is refused before it is sent; when the client sends
it unasked (`{n+}`) it is swallowed, or above `swallow_limit` the session ends.

Deviation: a bare LF ends a line like CRLF, since no client can mean anything else by it here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pymx.proto.imap.lexer import Cursor

MAX_MESSAGES = 128  # messages in one APPEND (RFC 3502)

_LITERAL = re.compile(rb"\{(\d{1,19})(\+?)\}\Z")
_COMMAND = re.compile(rb'([^\x00-\x20(){%*"\\\x7f-\xff+]{1,255}) ([A-Za-z][A-Za-z0-9.-]{0,31})(?= |\Z|\r)')
_SUB_COMMAND = re.compile(rb" ([A-Za-z]{1,31})(?= |\Z|\r)")
# Commands that bring messages (REPLACE: RFC 8508), and those of them whose literal is the mailbox's name.
_APPEND = re.compile(rb"[^ ]+ (?:APPEND|(?:UID )?REPLACE) ", re.IGNORECASE)
_APPEND_NAME = re.compile(rb"[^ ]+ (?:APPEND|(?:UID )?REPLACE [^ ]+) \Z", re.IGNORECASE)
_LOGOUT = re.compile(rb'[^\x00-\x20(){%*"\\\x7f-\xff+]{1,255} LOGOUT\r?\Z', re.IGNORECASE)
_TAG = re.compile(rb'([^\x00-\x20(){%*"\\\x7f-\xff+]{1,255}) ')


class Sink(Protocol):
    """Where a message literal goes."""

    def feed(self, data: bytes) -> None: ...

    def finish(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Request:
    """A whole command: tag, name in capitals (`UID FETCH` is one name), and its arguments."""

    tag: bytes
    name: bytes
    arguments: Cursor


@dataclass(frozen=True, slots=True)
class Continuation:
    """The client waits for `+` before it sends a literal."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that was not taken. `status` is BAD or NO; `fatal`: the stream can't be followed any further."""

    tag: bytes
    status: str
    code: str
    text: str
    fatal: bool = False


Event = Request | Continuation | Refused

_MISSING = Refused(b"*", "BAD", "", "Missing tag or command")


class LineTooLong(Exception):
    """A line of AUTHENTICATE or IDLE is over the limit."""


class Receiver:
    """Collects one command at a time."""

    __slots__ = (
        "_buffer",
        "_large",
        "_line",
        "_literals",
        "_parts",
        "_refused",
        "_scanned",
        "_sink",
        "_skip_line",
        "_small",
        "_wanted",
        "append_limit",
        "make_sink",
        "max_line_octets",
        "swallow_limit",
    )

    def __init__(self, *, max_line_octets: int, make_sink: Callable[[], Sink]) -> None:
        self.max_line_octets = max_line_octets
        self.make_sink = make_sink
        self.append_limit = 0  # 0: no APPEND yet, its literals count as small ones
        self.swallow_limit = 0
        self._buffer = bytearray()
        self._scanned = 0
        self._reset()

    def _reset(self) -> None:
        self._line = b""
        self._literals: list[object] = []
        self._small = 0  # octets of the command so far, small literals included
        self._large = 0  # octets of its messages
        self._wanted = -1  # octets missing of the literal being read; -1: in a line
        self._parts: list[bytes] = []
        self._sink: Sink | None = None
        self._refused: Refused | None = None
        self._skip_line = False

    def feed(self, data: bytes) -> None:
        self._buffer += data

    @property
    def buffered_octets(self) -> int:
        return len(self._buffer)

    @property
    def in_command(self) -> bool:
        """Whether a command has begun and is not complete."""
        return bool(self._line) or self._wanted >= 0 or bool(self._buffer)

    def clear(self) -> None:
        """Forget everything received (before TLS begins: RFC 3501 s. 6.2.1)."""
        self._buffer = bytearray()
        self._scanned = 0
        self._reset()

    def logout_waits(self) -> bool:
        """Whether LOGOUT is among the whole lines that wait, while a command runs; literals are passed over."""
        start = 0
        while (end := self._buffer.find(b"\n", start)) >= 0:
            line = bytes(self._buffer[start:end])
            if _LOGOUT.match(line):
                return True
            literal = _LITERAL.search(line.removesuffix(b"\r"))
            start = end + 1 + (int(literal[1]) if literal else 0)
        return False

    def next_line(self) -> bytes | None:
        """The next line without its line end. Raises LineTooLong."""
        line = self._take_line(self.max_line_octets)
        if line is None and len(self._buffer) > self.max_line_octets:
            raise LineTooLong
        return line

    def _take_line(self, limit: int) -> bytes | None:
        end = self._buffer.find(b"\n", self._scanned, limit + 2)
        if end < 0:
            self._scanned = min(len(self._buffer), limit + 2)
            return None
        self._scanned = 0
        stop = end - 1 if end and self._buffer[end - 1] == 0x0D else end
        line = bytes(self._buffer[:stop])
        del self._buffer[: end + 1]
        return line

    def next_event(self) -> Event | None:
        while True:
            if self._wanted >= 0:
                if not self._read_literal():
                    return None
                continue
            if self._skip_line:
                return self._skip()
            left = max(0, self.max_line_octets - self._small)
            line = self._take_line(left)
            if line is None:
                if len(self._buffer) <= left + 1:
                    return None
                self._refuse("BAD", "TOOBIG", "Command line is too long")
                self._skip_line = True
                continue
            event = self._line_done(line)
            if event is not None:
                return event

    def _skip(self) -> Event | None:
        """Drop octets up to the end of the line, looking whether a literal would follow."""
        end = self._buffer.find(b"\n")
        self._scanned = 0
        if end < 0:
            if len(self._buffer) > 64:
                del self._buffer[:-64]
            return None
        literal = _LITERAL.search(bytes(self._buffer[:end]).rstrip(b"\r"))
        del self._buffer[: end + 1]
        refused = self._finish_refused()
        if literal is not None and literal[2]:
            # What follows is a literal of a command nobody read: it must not be taken for commands.
            return Refused(refused.tag, refused.status, refused.code, refused.text, fatal=True)
        return refused

    def _refuse(self, status: str, code: str, text: str, *, fatal: bool = False) -> Refused:
        match = _TAG.match(self._line or bytes(self._buffer[:300]))
        self._refused = Refused(match[1] if match else b"*", status, code, text, fatal)
        return self._refused

    def _finish_refused(self) -> Refused:
        assert self._refused is not None
        refused = self._refused
        self._reset()
        return refused

    def _line_done(self, line: bytes) -> Event | None:
        self._line = self._line + line if self._line else line
        self._small += len(line) + 2
        literal = _LITERAL.search(line)
        if literal is None:
            if self._refused is not None:
                return self._finish_refused()
            return self._request()
        return self._announced(int(literal[1]), literal[2] == b"+", len(self._line) - len(literal[0]))

    def _announced(self, size: int, unasked: bool, start: int) -> Event | None:
        """A literal of `size` octets comes next; `start` is where its announcement begins in the line."""
        refused = self._refused
        sink = False
        if refused is None:
            sink = self.append_limit > 0 and self._is_message(start)
            refused = self._judge(size, sink)
        if refused is not None:
            if not unasked:
                return self._finish_refused()  # the client will not send it, so the command ends here
            if size > self.swallow_limit:
                self._refused = Refused(refused.tag, refused.status, refused.code, refused.text, fatal=True)
                return self._finish_refused()
        self._line += b"\r\n"
        self._wanted = size
        if sink and refused is None:
            self._sink = self.make_sink()
        return None if unasked else Continuation()

    def _is_message(self, start: int) -> bool:
        """Whether a literal that begins at `start` is a message of an APPEND (and not its mailbox name or a URL)."""
        head = self._line[: min(start, 300)]
        if _APPEND.match(head) is None or (start <= 300 and _APPEND_NAME.match(head) is not None):
            return False
        # A URL among the parts of a message (CATENATE, RFC 4469) is no message.
        if self._line[max(0, start - 5) : start].upper() not in (b" URL ", b"(URL "):
            return True
        return self._line[:start].upper().find(b" CATENATE (") < 0

    def _judge(self, size: int, message: bool) -> Refused | None:
        if message:
            if size > self.append_limit:
                return self._refuse("NO", "TOOBIG", "Message is too large")
            if len(self._literals) >= MAX_MESSAGES:
                return self._refuse("NO", "LIMIT", "Too many messages in one APPEND")
            if self._large + size > max(self.append_limit, self.swallow_limit):
                return self._refuse("NO", "TOOBIG", "The messages of one APPEND are too large together")
            self._large += size
            return None
        if self._small + size > self.max_line_octets:
            return self._refuse("BAD", "TOOBIG", "Literal is too large")
        self._small += size
        return None

    def _read_literal(self) -> bool:
        """Take octets of the literal; whether it is complete."""
        if self._wanted:
            if not self._buffer:
                return False
            if len(self._buffer) <= self._wanted:
                piece = bytes(self._buffer)
                self._buffer = bytearray()
            else:
                piece = bytes(self._buffer[: self._wanted])
                del self._buffer[: self._wanted]
            self._wanted -= len(piece)
            if self._refused is None:
                if self._sink is not None:
                    self._sink.feed(piece)
                else:
                    self._parts.append(piece)
            if self._wanted:
                return False
        if self._refused is None:
            if self._sink is not None:
                self._literals.append(self._sink.finish())
                self._sink = None
            else:
                self._literals.append(b"".join(self._parts))
                self._parts = []
        self._wanted = -1
        self._scanned = 0
        return True

    def _request(self) -> Event:
        line, literals = self._line, self._literals
        self._reset()
        match = _COMMAND.match(line)
        if match is None:
            tag = _TAG.match(line)
            return Refused(tag[1], "BAD", "", "Missing command") if tag else _MISSING
        name, position = match[2].upper(), match.end()
        if name == b"UID":
            sub = _SUB_COMMAND.match(line, position)
            if sub is None:
                return Refused(match[1], "BAD", "", "Missing command after UID")
            name, position = b"UID " + sub[1].upper(), sub.end()
        return Request(match[1], name, Cursor(line, literals, position))
