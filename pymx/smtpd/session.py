"""One SMTP or LMTP connection: input, replies, dispatch, time limits (RFC 5321 s. 3 and 4, RFC 2033).

A subclass of aiosmtpd's SMTP. What is its own is the name, the protocol's life cycle hooks and the shape (a loop that
dispatches `command → coroutine`); its reader, its per-connection introspection and its commands are replaced:

- Commands come from a table that is built once (`pymx.smtpd.commands`), one file per family.
- Input is collected in one buffer, read in commands or in chunks; nothing reads a message line by line.
- Replies are collected too, and written when the input is drained (RFC 2920 s. 3.2).
- A peer that goes away never cancels a delivery: the handler's `data()` runs to its end, the reply goes nowhere.
- One sweep per second looks at all sessions. A command must be complete within the command timeout however its octets
  drip in; message data may take as long as it makes progress.

What goes wrong in a handler without being an SmtpError is logged once with its traceback and becomes 451 4.3.0.
"""

from __future__ import annotations

import asyncio
import enum
import random
from typing import TYPE_CHECKING, cast

from aiosmtpd.smtp import SMTP

from pymx import log, metrics
from pymx.log import Log
from pymx.net import tls
from pymx.net.listener import peer_of
from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import Reply, SmtpError
from pymx.smtpd.handler import SessionFacts, Transaction
from pymx.smtpd.wire import wire

if TYPE_CHECKING:
    from pymx.smtpd.engine import Engine
    from pymx.smtpd.intake import Intake

MAX_COMMAND_OCTETS = 4096  # RFC 5321 s. 4.5.3.1.4 asks for 512 and more with extensions
MAX_LINE_OCTETS = 12_288 + 64  # RFC 4954 s. 4: a SASL response has up to 12,288 octets
_MAX_DROPPED_LINE_OCTETS = 1_048_576  # of an endless line, then the session ends
_MAX_BARE_NEWLINES = 3  # command lines without CRLF; a peer that sends more is not a mail server
_INPUT_HIGH_WATER = 262_144
_MAX_REPLIES_HELD = 64  # the longest, EHLO's, has some 200 octets
_RATE_WINDOW_S = 60.0
_CLOSE_TIMEOUT_S = 30.0  # for the last replies to be taken by the peer

_log = log.get("smtpd")


class SessionEnd(Exception):
    """The session is over: `last` is still to be said, `reason` is for the log."""

    def __init__(self, last: Reply | None, reason: str) -> None:
        super().__init__(reason)
        self.last = last
        self.reason = reason


class Phase(enum.Enum):
    """What a session waits for; decides which limit of time holds."""

    BUSY = enum.auto()  # a handler is at work: its own limits hold
    COMMAND = enum.auto()
    DATA = enum.auto()
    WRITE = enum.auto()  # the peer does not take its replies
    CLOSING = enum.auto()


class Session(SMTP):
    """The protocol object of one connection. Commands use its methods; nobody else does but `Sessions`."""

    # Where most sessions agree the value stands here, and an idle session has no entry of its own.
    intake: Intake | None = None  # an unfinished BDAT message
    transaction: Transaction | None = None
    mail_from = ""  # of the transaction, for the log
    rcpt_to: tuple[str, ...] = ()  # recipients of the transaction
    smtputf8 = False
    in_sync = True  # False while message data is being read: an error then leaves us in the middle of it
    errors = 0
    commands = 0
    messages = 0
    recipients = 0
    _bare_newlines = 0
    _scanned = 0
    _received = 0
    _rate_since = 0.0
    _data_since = 0.0  # when the message on its way began
    _early = 0  # octets of the input that came before the greeting
    _rate_received = 0
    _eof = False
    _lost = False
    _leaving: SessionEnd | None = None  # to be said when no transaction is open
    _finished = False
    _entered = False
    _reading_paused = False
    _writable: asyncio.Future[None] | None = None
    _waiter: asyncio.Future[None] | None = None
    _ending: SessionEnd | None = None
    _bound_log: Log | None = None

    def __init__(self, engine: Engine) -> None:
        # aiosmtpd's __init__ inspects itself and its handler for every connection; none of what it makes is used here
        self.engine = engine
        self._loop = asyncio.get_running_loop()
        self._input = bytearray()
        self._replies: list[bytes] = []
        self._phase = Phase.BUSY
        self._started = self._since = self._loop.time()

    # The life of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection = cast(asyncio.Transport, transport)  # uvloop's are Transports in all but name
        peer = peer_of(transport)
        if peer is None:
            self._lost = True
            self._connection.abort()
        ip, port = peer or ("", 0)
        self.facts = SessionFacts(f"{random.getrandbits(40):010x}", self.engine.listener, ip, port)
        if self.engine.implicit_tls:
            self.facts.tls = tls.describe(transport)
        self.engine.sessions.add(self)
        self.engine.sessions.spawn(self._run())

    def data_received(self, data: bytes) -> None:
        if self._finished:
            return
        self._input += data
        self._received += len(data)
        if len(self._input) > _INPUT_HIGH_WATER and not self._reading_paused and not self._lost:
            self._reading_paused = True
            self._connection.pause_reading()
        if self._waiter is not None:
            self._wake()

    def eof_received(self) -> bool:
        """The peer will send no more; it may still wait for replies (True keeps plain connections half open)."""
        self._eof = True
        self._wake()
        return not self.facts.tls  # TLS has no half-close

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._wake()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if self._finished:
            self.engine.sessions.discard(self)

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Limits of time, and the end of the server

    def sweep(self, now: float) -> None:
        smtp = self.engine.smtp
        waited = now - self._since
        if self._phase is Phase.COMMAND:
            if waited > smtp.command_timeout_s:
                self.end(SessionEnd(reply.TIMED_OUT, "no command within command_timeout_s"))
            elif now - self._started > smtp.session_timeout_s:
                self.end(SessionEnd(reply.TIMED_OUT, "session longer than session_timeout_s"))
        elif self._phase is Phase.DATA:
            if waited > smtp.data_timeout_s:
                self.end(SessionEnd(reply.TIMED_OUT, "no data within data_timeout_s"))
            elif now - self._data_since > smtp.message_timeout_s:
                self.end(SessionEnd(reply.TIMED_OUT, "message longer under way than message_timeout_s"))
            elif now - self._rate_since >= _RATE_WINDOW_S:
                octets = self._received - self._rate_received
                if octets < smtp.min_data_rate_octets * (now - self._rate_since):
                    self.end(SessionEnd(reply.TIMED_OUT, "data slower than min_data_rate_octets"))
                self._rate_since, self._rate_received = now, self._received
        elif (self._phase is Phase.WRITE and waited > smtp.command_timeout_s) or (
            self._phase is Phase.CLOSING and waited > _CLOSE_TIMEOUT_S
        ):
            self._connection.abort()

    def shutdown(self) -> None:
        """421 when no command is in progress and no transaction is open; else when it is done."""
        self._leave(SessionEnd(reply.SHUTTING_DOWN, "server shutdown"))

    @property
    def listener(self) -> str:
        return self.engine.listener.value

    @property
    def account(self) -> str:
        return self.facts.account

    def dismiss(self) -> None:
        """421 at the next wait for input, in the middle of a transaction too: whoever is there may send no more."""
        self._leaving = SessionEnd(reply.LOGIN_OVER, "the account was changed")
        self.end(self._leaving)

    def _leave(self, end: SessionEnd) -> None:
        self._leaving = self._leaving or end
        if self._phase is Phase.COMMAND and self.transaction is None:
            self.end(self._leaving)

    def end(self, end: SessionEnd) -> None:
        """Make the session end at its next wait for input."""
        if self._ending is None:
            self._ending = end
        self._wake()

    # Input

    async def _more(self) -> None:
        """Wait until there is more input. Raises SessionEnd when there will be none."""
        if self._replies:
            await self.flush()
        if self._reading_paused and not self._lost:
            self._reading_paused = False
            self._connection.resume_reading()
        if self._ending is not None:
            raise self._ending
        if self._lost or self._eof:
            raise SessionEnd(None, "connection closed by the peer" if self._eof else "connection lost")
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def read_line(self) -> bytes:
        """The next line without its CRLF. Raises SmtpError for a line that can't be a command, SessionEnd."""
        data = self._input
        end = data.find(b"\n")
        if end < 0:
            end = await self._wait_for_line()
        line = bytes(data[: end + 1])
        del data[: end + 1]
        if self._early > 0:
            # RFC 5321 s. 4.3.1: a client waits for the greeting. What it said before is answered, but not done.
            self._early -= len(line)
            raise SmtpError(reply.TALKED_EARLY, "sent before the greeting")
        if len(line) > MAX_LINE_OCTETS:
            raise SmtpError(reply.LINE_TOO_LONG)
        if line[-2:-1] != b"\r" or line.find(b"\r", 0, -2) >= 0:
            self._bare_newlines += 1
            raise SmtpError(
                reply.BARE_NEWLINE, "bare CR or LF in a command", close=self._bare_newlines >= _MAX_BARE_NEWLINES
            )
        if b"\0" in line:
            raise SmtpError(reply.INVALID_COMMAND_LINE, "NUL in a command")
        return line[:-2]

    async def _wait_for_line(self) -> int:
        """Wait for a line end; the octets of an endless line are dropped. Returns its index in the input."""
        data = self._input
        self._since = self._loop.time()  # once per line: octets that drip in do not buy time
        dropped = 0
        while True:
            searched = len(data)
            if searched > MAX_LINE_OCTETS:
                dropped += searched - MAX_LINE_OCTETS
                if dropped > _MAX_DROPPED_LINE_OCTETS:
                    raise SessionEnd(reply.LINE_TOO_LONG, "endless line")
                del data[MAX_LINE_OCTETS:]
                searched = MAX_LINE_OCTETS
            self._phase = Phase.COMMAND
            await self._more()
            self._phase = Phase.BUSY
            end = data.find(b"\n", searched)
            if end >= 0:
                return end

    def begin_data(self) -> None:
        """Message data comes next: the limits for data hold until `end_data`."""
        self._rate_since, self._rate_received = self._loop.time(), self._received
        if self.intake is None or not self._data_since:
            self._data_since = self._rate_since  # the chunks of BDAT are one message
        self.in_sync = False

    def end_data(self, rest: bytes = b"") -> None:
        """The data has ended; `rest` is what was read past its end."""
        self.in_sync = True
        if rest:
            self._input[:0] = rest

    async def read_some(self, limit: int = -1) -> bytes:
        """Message octets as they come, at least one, at most `limit`. Raises SessionEnd."""
        data = self._input
        if not data:
            self._since = self._loop.time()
            self._phase = Phase.DATA
            await self._more()
            while not data:
                await self._more()
            self._phase = Phase.BUSY
        if limit < 0 or len(data) <= limit:
            piece = bytes(data)
            data.clear()
        else:
            piece = bytes(data[:limit])
            del data[:limit]
        return piece

    def drop_input(self) -> None:
        """Forget what arrived and was not read (RFC 3207 s. 4.2)."""
        self._input.clear()

    # Replies

    def say(self, answer: Reply) -> None:
        self._replies.append(wire(answer))

    def say_wire(self, data: bytes) -> None:
        """A reply in wire form: greeting, EHLO, 334."""
        self._replies.append(data)

    async def flush(self) -> None:
        """Write the collected replies, and wait when the peer does not take them."""
        data = b"".join(self._replies)
        self._replies.clear()
        if self._lost:
            return
        self._connection.write(data)
        if self._writable is not None:
            phase, self._phase = self._phase, Phase.WRITE
            since, self._since = self._since, self._loop.time()
            await self._writable
            self._phase, self._since = phase, since

    def refuse(self, error: SmtpError, event: str, **fields: object) -> None:
        """Say and log a refusal. Raises SessionEnd when it is one too many, or the error says so."""
        self.say(error.reply)
        self.log.info(
            event, reply=_short(error.reply), reason=error.reason, helo=self.facts.helo, tls=self.facts.tls, **fields
        )
        metrics.add(event)
        if error.reply.code >= 500:
            self.errors += 1
        if error.close:
            raise SessionEnd(None, error.reason)
        if self.errors >= self.engine.smtp.max_errors:
            raise SessionEnd(reply.TOO_MANY_ERRORS, "max_errors")

    # The conversation

    @property
    def log(self) -> Log:
        if self._bound_log is None:
            self._bound_log = _log.bind(
                session=self.facts.id, listener=self.facts.listener.value, peer_ip=self.facts.peer_ip
            )
        return self._bound_log

    def reset(self) -> None:
        """Forget the transaction (RSET, EHLO, the end of one)."""
        self.transaction = None
        self.intake = None
        self.rcpt_to = ()
        self._data_since = 0.0
        self.smtputf8 = False

    async def upgrade(self) -> None:
        """STARTTLS after the go-ahead is said. What the peer told us in plain text is forgotten (RFC 3207 s. 4.2)."""
        assert self.engine.tls is not None
        self.drop_input()
        await self.flush()
        if self._lost or self._eof:
            raise SessionEnd(None, "connection lost before the TLS handshake")
        self.drop_input()
        self._reading_paused = False
        try:
            self._connection = await tls.upgrade(self, self._connection, self.engine.tls)
        except OSError as e:
            self._connection.abort()
            self._lost = True  # after a failed handshake nobody calls connection_lost
            raise SessionEnd(None, f"TLS handshake failed: {tls.why(e)}") from None
        self.facts.tls = tls.describe(self._connection)
        self.facts.helo = ""
        self.facts.esmtp = False
        self.reset()

    async def _run(self) -> None:
        """The session's task, from greeting to goodbye."""
        reason = ""
        try:
            await self._greet()
            while True:
                await self._command()
        except SessionEnd as end:
            reason = end.reason
            if end.last is not None:
                self.say(end.last)
        finally:
            self._finish(reason)

    async def _greet(self) -> None:
        engine = self.engine
        if self._lost:
            raise SessionEnd(None, "connection lost before the greeting")
        metrics.add("smtp_connections")
        if engine.caps is not None:
            if not engine.caps.enter(self.facts.peer_ip):
                self.refuse(
                    SmtpError(reply.TOO_MANY_CONNECTIONS, "max_connections or max_connections_per_ip", close=True),
                    "connection_refused",
                )
            self._entered = True
        try:
            await engine.handler.connected(self.facts)
        except SmtpError as error:
            error.close = True
            self.refuse(error, "connection_refused")
        except Exception:
            self.log.exception("smtp_error", stage="connect")
            raise SessionEnd(reply.UNEXPECTED_FAILURE, "error in connected()") from None
        if self._input and not engine.lmtp:
            self._early = len(self._input)
            self.facts.early_talker = True
            metrics.add("smtp_early_talkers")
        self.say_wire(engine.greeting)

    async def _command(self) -> None:
        """Read one command, run it, reply."""
        if len(self._replies) > _MAX_REPLIES_HELD:
            await self.flush()
        if self._leaving is not None and self.transaction is None:
            raise self._leaving
        event = "command_refused"
        verb = b""
        try:
            line = await self.read_line()
            self.commands += 1
            if self.commands > self.engine.smtp.max_commands:
                raise SessionEnd(reply.TOO_MANY_COMMANDS, "max_commands")
            verb, _, argument = line.partition(b" ")
            command = self.engine.commands.get(verb.upper())
            if command is None:
                raise SmtpError(reply.UNKNOWN_COMMAND, "unknown command")
            event = command.refused
            if len(line) > command.max_octets:
                raise SmtpError(reply.LINE_TOO_LONG)
            try:
                text = str(argument, "utf-8").strip(" \t")
            except UnicodeDecodeError:
                raise SmtpError(reply.INVALID_COMMAND_LINE, "argument is not UTF-8") from None
            answer = await command.run(self, text)
            if answer is not None:
                self.say(answer)
        except SmtpError as error:
            self.refuse(error, event)
        except SessionEnd:
            raise
        except Exception:
            self.log.exception("smtp_error", stage=verb.decode("ascii", "replace"))
            if not self.in_sync:
                raise SessionEnd(reply.UNEXPECTED_FAILURE, "error in the middle of message data") from None
            self.say(reply.TEMPORARY_FAILURE)

    def _finish(self, reason: str) -> None:
        """Write the connection's line, say what is left to say, and close."""
        self._finished = True
        self._phase = Phase.CLOSING
        self._since = self._loop.time()
        if self._entered and self.engine.caps is not None:
            self.engine.caps.leave(self.facts.peer_ip)
        self.reset()
        self._input = bytearray()
        try:
            self._record(reason)
        finally:
            if self._lost:
                self.engine.sessions.discard(self)
            else:
                self._connection.write(b"".join(self._replies))
                self._connection.close()

    def _record(self, reason: str) -> None:
        facts = self.facts
        counts = {
            "messages": self.messages,
            "recipients": self.recipients,
            "commands": self.commands,
            "errors": self.errors,
            "size_octets": self._received,
        }
        self.log.info(
            "smtp_session",
            helo=facts.helo,
            tls=facts.tls,
            account=facts.account,
            **counts,
            duration_ms=round((self._loop.time() - self._started) * 1000),
            reason=reason,
        )
        self.engine.handler.closed(facts, counts)


def _short(answer: Reply) -> str:
    return f"{answer.code} {answer.enhanced}".rstrip()
