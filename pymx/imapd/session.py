"""One IMAP connection: bytes to the receiver, requests through the command table, one after the other.

A session at rest has no task: `data_received` asks the receiver, and only a whole command starts one, which goes on
while there are more and then ends. IDLE rests in the same way; a hint from the store or DONE starts the next task. A
client that goes away stops searches and sorts; other work is finished, and the task ends at the next thing to send. A
LOGOUT that comes while a search, sort or thread runs stops it too; one that was sent together with it does not, since
who sends both at once may wait for the answer.

Time is looked at by `sweep`, once a second: login timeout, autologout (RFC 3501 s. 5.4), "still here" in IDLE, commands
that take long (RFC 9585), and a client that does not read. What goes wrong inside is logged once with its traceback and
answered NO [SERVERBUG].
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, cast

from pymx import metrics
from pymx.imapd.client import Client, Disconnected, MailboxGone
from pymx.imapd.compression import BrokenStream
from pymx.imapd.dispatch import perform, reply_bad
from pymx.imapd.incoming import Incoming
from pymx.imapd.telling import tell
from pymx.imapd.trouble import no_text
from pymx.ms.errors import StoreError
from pymx.ms.mailbox import Mailbox
from pymx.net.listener import peer_of
from pymx.net.tls import upgrade, why
from pymx.proto.imap.errors import Bad, No
from pymx.proto.imap.receiver import Continuation, Event, LineTooLong, Receiver, Refused, Request

if TYPE_CHECKING:
    from pymx.imapd.server import ImapServer

_GOODBYES = {"shutdown": "Server is shutting down.", "account changed": "Your account was changed, log in again."}
STILL_HERE_S = 120.0
KEEP_MESSAGE_S = 10.0
IN_PROGRESS_S = 10.0
_STOPPABLE = frozenset(
    {b"SEARCH", b"UID SEARCH", b"SORT", b"UID SORT", b"THREAD", b"UID THREAD"}
)  # they only look, so LOGOUT need not wait for them
_STREAMED = frozenset({b"FETCH", b"UID FETCH"})  # stop within a literal, where no line may come between


class Session(asyncio.Protocol):
    """The protocol of a connection, and the `Wire` of its client."""

    __slots__ = (
        "__weakref__",
        "_client",
        "_commands",
        "_counted",
        "_dirty",
        "_drained",
        "_ended",
        "_eof",
        "_gone",
        "_idle_tag",
        "_incoming",
        "_last_input",
        "_last_output",
        "_line",
        "_loop",
        "_paused",
        "_reading_paused",
        "_server",
        "_slow_since",
        "_started",
        "_stoppable",
        "_task",
        "_transport",
        "_watched",
    )

    def __init__(self, server: ImapServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._incoming = Incoming(
            Receiver(
                max_line_octets=min(server.imap.max_login_octets, server.imap.max_line_octets), make_sink=server.sink
            )
        )
        self._idle_tag: bytes | None = None
        self._dirty = False
        self._line: asyncio.Future[None] | None = None  # AUTHENTICATE waits for a line
        self._drained: asyncio.Future[None] | None = None
        self._paused = False
        self._reading_paused = False
        self._eof = False
        self._gone = False
        self._ended = ""
        self._counted = False
        self._commands = 0
        self._stoppable = False  # the command that runs only looks for something
        self._watched: Mailbox | None = None
        self._slow_since = 0.0  # when the command began or the client last heard of it; 0: never to be told
        self._started = self._last_input = self._last_output = self._loop.time()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = peer_of(transport)
        peer_ip, _ = peer or ("", 0)
        server = self._server
        # weak, so that a session whose connection has ended is gone at once and not when the collector comes by
        self._client = Client(server, weakref.proxy(self), peer_ip, secure=server.implicit_tls)
        if peer is None:
            server.log.info("connection_refused", listener="imap", reason="connection lost before the greeting")
            self.abort()
            return
        refusal = server.limits.refuses(peer_ip) if server.limits is not None else None
        if refusal is not None:
            server.log.info("connection_refused", peer_ip=peer_ip, listener="imap", reason=refusal.reason)
            metrics.add("imap_connections_refused")
            self._transport.write(b"* BYE [UNAVAILABLE] %b.\r\n" % refusal.text.encode())
            self._end(refusal.reason)
            return
        if not server.caps.enter(peer_ip):
            self._transport.write(b"* BYE [UNAVAILABLE] Too many connections.\r\n")
            self._end("too many connections")
            return
        self._counted = True
        server.sessions.add(self)
        metrics.add("imap_connections")
        capabilities = server.greeting_capabilities(peer_ip, secure=self._client.secure)
        self._transport.write(b"* OK [CAPABILITY %b] %b ready.\r\n" % (capabilities, server.hostname.encode()))

    def data_received(self, data: bytes) -> None:
        self._last_input = self._loop.time()
        if self._ended:
            return
        self._incoming.put(data)
        if self._task is None:
            self._wake()
            return
        if self._line is not None and not self._line.done():
            self._line.set_result(None)
        if self._stoppable and self._client.mailbox is not None and self._incoming.logout_waits():
            self._client.mailbox.stop()
        imap = self._server.imap
        limit = imap.max_login_octets if self._client.owner is None else imap.max_waiting_octets
        if self._incoming.waiting_octets > limit and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._eof = True
        # Commands that came before the end are still answered, where the transport can be half open.
        return self._task is not None and not self._client.secure

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._paused = False
        for waiter in (self._drained, self._line):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        if not self._ended:
            self._ended = "connection lost" if exc else "disconnected"
        if self._task is None:
            self._finish()
        elif self._client.mailbox is not None:
            self._client.mailbox.stop()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._last_output = self._loop.time()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # --- Wire

    def send(self, data: bytes) -> None:
        if self._transport is not None and not self._gone and not self._transport.is_closing():
            if (compression := self._incoming.compression) is not None:
                data = compression.pack(data)
                if self._idle_tag is not None:
                    compression.rest()
            self._transport.write(data)
            self._last_output = self._loop.time()

    async def drained(self) -> None:
        if self._paused and not self._gone:
            self._drained = self._loop.create_future()
            await self._drained
            self._drained = None
        if self._gone:
            raise Disconnected

    async def read_line(self) -> bytes:
        """The next line, for AUTHENTICATE. Raises Bad when it is too long."""
        self._client.flush()
        while True:
            try:
                line = self._incoming.next_line()
            except LineTooLong:
                self._end("line too long")
                raise Bad("Line is too long") from None
            if line is not None:
                return line
            self._resume_reading()
            self._line = self._loop.create_future()
            await self._line
            self._line = None
            if self._gone:
                raise Disconnected

    async def start_tls(self) -> None:
        """Go over to TLS; what came in plain text behind STARTTLS is forgotten (RFC 3501 s. 6.2.1)."""
        assert self._server.tls is not None
        assert self._transport is not None
        self._client.flush()
        self._incoming.clear()
        try:
            self._transport = await upgrade(self, self._transport, self._server.tls)
        except OSError as e:
            self._gone = True
            self._ended = self._ended or f"TLS handshake failed: {why(e)}"
            self._transport.abort()
            raise Disconnected from None
        self._reading_paused = False
        self._client.secure = True

    def abort(self) -> None:
        """Cut the connection: what was sent can't be made right any more."""
        self._ended = self._ended or "aborted"
        if self._transport is not None:
            self._transport.abort()

    def begin_idle(self) -> None:
        """IDLE (RFC 2177): from now on the client hears of changes at once."""
        client = self._client
        self._idle_tag = client.tag
        self._incoming.rest()
        self._dirty = True
        self._watch()

    @property
    def compressed(self) -> bool:
        return self._incoming.compression is not None

    def begin_compression(self) -> None:
        """From now on both sides send DEFLATE."""
        self._client.flush()
        self._incoming.begin_compression()

    @property
    def busy(self) -> bool:
        """A command runs."""
        return self._task is not None

    # --- Live

    def sweep(self, now: float) -> None:
        client = self._client
        imap = self._server.imap
        if self._ended:
            if self._transport is not None and now - self._last_output > 60:
                self._transport.abort()  # said BYE, and the client does not even close
            return
        silent = now - self._last_input
        if client.owner is None:
            if now - self._started > imap.login_timeout_s:
                self._bye("Timed out waiting for a login.", "login timeout")
            return
        if self._task is not None:
            if self._paused and now - self._last_output > imap.idle_timeout_s and self._transport is not None:
                self._ended = "client does not read"
                self._transport.abort()
            elif self._slow_since and now - self._slow_since > IN_PROGRESS_S and not self._paused:
                self._slow_since = now
                self.send(b'* OK [INPROGRESS ("%b" NIL NIL)] Still working on it.\r\n' % client.tag)
            return
        if silent > imap.idle_timeout_s:
            self._bye("Autologout; idle for too long.", "idle timeout")
        elif self._idle_tag is not None and now - self._last_output > STILL_HERE_S:
            client.write(b"* OK Still here\r\n")
            client.flush()
        elif silent > KEEP_MESSAGE_S:
            client.forget_message()
            self._incoming.rest()

    def shutdown(self) -> None:
        """BYE now, or after the command that runs."""
        self._leave("shutdown")

    @property
    def listener(self) -> str:
        return "imap"

    @property
    def account(self) -> str:
        return self._client.login

    def dismiss(self) -> None:
        """BYE: whoever is there has to log in anew."""
        self._leave("account changed")

    def _leave(self, reason: str) -> None:
        if self._task is None or self._line is not None:
            self._bye(_GOODBYES[reason], reason)
        else:
            self._client.leaving = self._client.leaving or reason

    def _bye(self, text: str, reason: str) -> None:
        if self._ended:
            return
        self._client.write(b"* BYE %b\r\n" % text.encode())
        self._client.flush()
        self._end(reason)

    def _end(self, reason: str) -> None:
        """Close after what is written has gone out."""
        self._ended = self._ended or reason
        if self._transport is not None:
            self._transport.close()

    def _finish(self) -> None:
        """The last thing a session does: free what it holds, write its line in the log."""
        self._transport = None
        client, server = self._client, self._server
        client.stop_notifying()
        client.unselect()
        self._watched = None
        self._incoming.clear()
        if not self._counted:
            return
        self._counted = False
        server.caps.leave(client.peer_ip)
        server.sessions.discard(self)
        server.log.info(
            "imap_session",
            account=client.login,
            peer_ip=client.peer_ip,
            tls=client.secure,
            commands=self._commands,
            size_octets=client.octets_out,
            duration_ms=round((self._loop.time() - self._started) * 1000),
            reason=self._ended,
            client_id=client.client_id,
        )

    # --- commands

    def _wake(self) -> None:
        """Start a task if there is something to do."""
        event = None
        if self._idle_tag is None:
            try:
                event = self._incoming.next_event()
            except BrokenStream:
                self._broken()
                return
            if event is None:
                return
        self._spawn(event)

    def _spawn(self, event: Event | None) -> None:
        self._task = self._server.sessions.spawn(self._work(event))

    async def _work(self, event: Event | None) -> None:
        try:
            await self._serve(event)
        except Disconnected:
            pass
        except MailboxGone:
            self._bye("Selected mailbox is gone.", "mailbox gone")
        except LineTooLong:
            self._bye("Line is too long.", "line too long")
        except BrokenStream:
            self._broken()
        except StoreError as error:
            self._server.log.warning("imap_push_failed", account=self._client.login, reason=error.reason)
            self._bye("Mailbox is not available.", "store failed")
        except Exception as error:  # the session's loop: nothing may escape
            self._server.log.exception("imap_session_failed", account=self._client.login, error=repr(error))
            self._bye("Internal error.", "internal error")
        finally:
            self._task = None
        if self._gone:
            self._finish()
            return
        self._client.flush()
        if self._client.leaving in _GOODBYES:
            self._bye(_GOODBYES[self._client.leaving], self._client.leaving)
        elif self._client.leaving:
            self._end(self._client.leaving)
        elif self._eof:
            self._end("disconnected")
        else:
            self._resume_reading()

    def _broken(self) -> None:
        self._bye("Compressed data is broken.", "broken compression")

    def _resume_reading(self) -> None:
        if self._reading_paused and self._transport is not None and not self._gone:
            self._reading_paused = False
            self._transport.resume_reading()

    async def _serve(self, event: Event | None) -> None:
        """Do what there is to do; returns when the client has to send more."""
        while not self._client.leaving and not self._ended:
            if self._idle_tag is not None:
                if not await self._idle():
                    return
                continue
            event = event or self._incoming.next_event()
            if event is None:
                if not await self._push():
                    return
                continue
            await self._handle(event)
            event = None
            if self._client.octets_out and self._paused:
                await self.drained()

    async def _idle(self) -> bool:
        """One step of IDLE; whether there is more to do."""
        line = self._incoming.next_line()
        if line is not None:
            self._commands += 1
            tag, self._idle_tag = self._idle_tag, None
            self._watch()
            if line.strip().upper() == b"DONE":
                self._client.write(b"%b OK Idle completed.\r\n" % (tag or b"*"))
            else:
                reply_bad(self._client, tag or b"*", "Expected DONE")
                self._check_errors()
            return True
        return await self._push()

    async def _handle(self, event: Event) -> None:
        client = self._client
        match event:
            case Request():
                self._commands += 1
                await self._command(event)
            case Continuation():
                client.write(b"+ OK\r\n")
                client.flush()
            case Refused(tag, "NO", code, text):
                client.write(b"%b %b\r\n" % (tag, no_text(No(text, code=code))))
            case Refused(tag, _, code, text):
                reply_bad(client, tag, text, code)
        self._check_errors()
        if isinstance(event, Refused) and event.fatal:
            self._bye("Literal is too large.", "literal too large")

    def _check_errors(self) -> None:
        """Too many of them in a row, or before login, and the session ends."""
        if self._client.errors >= self._server.imap.max_errors:
            self._bye("Too many bad commands.", "too many errors")

    async def _command(self, request: Request) -> None:
        client = self._client
        self._slow_since = 0.0 if request.name in _STREAMED else self._loop.time()
        self._stoppable = request.name in _STOPPABLE
        self._server.running_commands += 1
        try:
            await perform(client, request)
        finally:
            self._slow_since = 0.0
            self._stoppable = False
            self._server.running_commands -= 1
        self._watch()
        receiver = self._incoming.receiver
        if client.owner is not None and not receiver.append_limit:
            limit = self._server.mail.max_message_octets
            receiver.max_line_octets = self._server.imap.max_line_octets
            receiver.append_limit = limit
            receiver.swallow_limit = max(limit, self._server.imap.max_swallowed_octets)

    # --- changes of others

    def _watch(self) -> None:
        """Hear of changes in the selected mailbox while the client is to be told at once: in IDLE, or by NOTIFY."""
        client = self._client
        pushed = self._idle_tag is not None or (client.notify is not None and client.notify.tells_messages)
        wanted = client.mailbox if pushed else None
        if wanted is self._watched:
            return
        if self._watched is not None:
            self._watched.watch(None)
        self._watched = wanted
        if wanted is not None:
            self._dirty = True
            wanted.watch(self._hint)

    def _hint(self) -> None:
        """The selected mailbox may have changed."""
        self._dirty = True
        self.wake()

    def wake(self) -> None:
        """There is something to tell."""
        if self._task is None and not self._gone and not self._ended:
            self._spawn(None)

    async def _push(self) -> bool:
        """Tell what changed, between commands or in IDLE; whether there was anything to look at."""
        client = self._client
        notify = client.notify
        if self._dirty and self._watched is not None:
            self._dirty = False
            # RFC 5465 s. 6.1: SELECTED-DELAYED keeps EXPUNGE back until a command lets it through
            await tell(client, expunge=self._idle_tag is not None or (notify is not None and notify.immediate))
        elif notify is not None and notify.dirty:
            await notify.tell()
        else:
            return False
        client.flush()
        await self.drained()
        return True
