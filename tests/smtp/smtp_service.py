"""A real SMTP or LMTP service in a thread of its own, with a policy that the test decides, and dialogues as text."""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from pymx.config.model import Smtp
from pymx.mail.address import Address
from pymx.mail.envelope import Listener, Recipient
from pymx.net.listener import Caps, Server, bind
from pymx.net.sessions import Sessions
from pymx.net.tls import apply_asyncio_tls_buffer
from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import Reply, SmtpError
from pymx.smtpd.engine import Engine
from pymx.smtpd.handler import MailParameters, SessionFacts
from pymx.smtpd.session import Session
from pymx.spool import Content

QUEUED = Reply(250, "2.0.0", "OK queued")
GREETING = "220 mx.example.test ESMTP pymx"


@dataclass
class Delivered:
    mail_from: Address | None
    recipients: list[Recipient]
    parameters: MailParameters
    data: bytes
    in_memory: bool


@dataclass
class Policy:
    """Accepts everything but what it is told to refuse, and keeps what it got."""

    refused_recipients: dict[str, Exception] = field(default_factory=dict)
    refuse_connection: Exception | None = None
    refuse_mail: Exception | None = None
    refuse_data: Exception | None = None
    per_recipient: Callable[[Recipient], Reply] = lambda recipient: QUEUED
    passwords: dict[str, str] = field(default_factory=lambda: {"alice@example.test": "geheim"})
    hold_data: bool = False  # data() waits for `release`
    hold_greeting: bool = False  # connected() waits for `greet`
    greet: asyncio.Event = field(default_factory=asyncio.Event)
    delivered: list[Delivered] = field(default_factory=list)
    closed_sessions: list[tuple[SessionFacts, Mapping[str, int]]] = field(default_factory=list)
    logins: list[tuple[str, str]] = field(default_factory=list)
    delivering: threading.Event = field(default_factory=threading.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def connected(self, session: SessionFacts) -> None:
        if self.hold_greeting:
            await self.greet.wait()
        if self.refuse_connection is not None:
            raise self.refuse_connection

    async def authenticate(self, session: SessionFacts, login: str, password: str) -> str:
        self.logins.append((login, password))
        if self.passwords.get(login) != password:
            raise SmtpError(reply.AUTH_FAILED, "wrong password")
        return login

    async def mail(self, session: SessionFacts, mail_from: Address | None, parameters: MailParameters) -> Mail:
        if self.refuse_mail is not None:
            raise self.refuse_mail
        return Mail(self, mail_from, parameters)

    def closed(self, session: SessionFacts, counts: Mapping[str, int]) -> None:
        self.closed_sessions.append((session, counts))


@dataclass
class Mail:
    policy: Policy
    mail_from: Address | None
    parameters: MailParameters
    recipients: list[Recipient] = field(default_factory=list)
    seen: bytearray = field(default_factory=bytearray)  # head and body as they were told while the message came

    async def rcpt(self, recipient: Recipient) -> None:
        await asyncio.sleep(0)  # a real policy looks something up
        refused = self.policy.refused_recipients.get(str(recipient.address))
        if refused is not None:
            raise refused
        self.recipients.append(recipient)

    def body(self, head: bytes) -> Callable[[bytes], None] | None:
        assert not self.seen, "the header block is told once"
        self.seen += head
        return self.seen.extend

    async def data(self, content: Content) -> Reply:
        self.policy.delivering.set()
        if self.policy.hold_data:
            await self.policy.release.wait()
        if self.policy.refuse_data is not None:
            raise self.policy.refuse_data
        if self.seen or b"\r\n\r\n" in content.read():
            assert self.seen == content.read(), "what was told while it came is what came"
        self.policy.delivered.append(
            Delivered(self.mail_from, self.recipients, self.parameters, content.read(), content.in_memory)
        )
        return QUEUED

    async def data_per_recipient(self, content: Content) -> list[Reply]:
        await self.data(content)
        return [self.policy.per_recipient(r) for r in self.recipients]


class Service:
    """One engine behind one listening socket, on either event loop."""

    def __init__(
        self,
        spool_dir: Path,
        *,
        loop: str = "uvloop",
        listener: Listener = Listener.SMTP,
        smtp: Smtp | None = None,
        max_message_octets: int = 1_000_000,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        auth: bool = False,
        repair_newlines: bool = False,
        caps: Caps | None = None,
        address: str = "127.0.0.1:0",
    ) -> None:
        self.policy = Policy()
        self.sessions = Sessions()
        self.failures: list[str] = []
        self.log: list[tuple[str, Mapping[str, object]]] = []
        self._listener_tls = tls if implicit_tls else None
        self._loop_name = loop
        self.sock = bind(address, "test")
        self.port = self.sock.getsockname()[1] if self.sock.family != socket.AF_UNIX else 0
        self.engine = Engine(
            self.policy,
            listener=listener,
            hostname="mx.example.test",
            smtp=smtp or Smtp(),
            max_message_octets=max_message_octets,
            spool_dir=spool_dir,
            sessions=self.sessions,
            tls=tls,
            implicit_tls=implicit_tls,
            auth=auth,
            repair_newlines=repair_newlines,
            caps=caps,
        )
        self.live: list[Session] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._capture = _Capture(self.log)
        logging.getLogger("pymx.smtpd").addHandler(self._capture)
        logging.getLogger("pymx.smtpd").setLevel(logging.DEBUG)
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        """End; what went wrong unseen fails the test."""
        self.call(self._stop.set)
        self._thread.join(20)
        logging.getLogger("pymx.smtpd").removeHandler(self._capture)
        logging.getLogger("pymx.smtpd").setLevel(logging.NOTSET)
        assert not self._thread.is_alive()
        assert self.failures == []

    def call(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    def events(self, name: str) -> list[Mapping[str, object]]:
        return [fields for event, fields in list(self.log) if event == name]

    def client(self, **options: object) -> Client:
        return Client(self, **options)  # type: ignore[arg-type]

    def _run(self) -> None:
        if self._loop_name == "asyncio":
            apply_asyncio_tls_buffer()
        factory = uvloop.new_event_loop if self._loop_name == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda loop, context: self.failures.append(repr(context)))
        self._stop = asyncio.Event()
        self.sessions.start()
        server = Server("test", self.sock, self._factory, ssl=self._listener_tls)
        await server.start()
        self._ready.set()
        await self._stop.wait()
        server.close()
        self.policy.release.set()
        left = await self.sessions.drain(5)
        if left:
            self.failures.append(f"{left} sessions did not end")
        self.sessions.stop()
        await asyncio.sleep(0)  # let the transports' last callbacks run

    def _factory(self) -> Session:
        session = self.engine.factory()
        self.live.append(session)
        return session


class _Capture(logging.Handler):
    def __init__(self, into: list[tuple[str, Mapping[str, object]]]) -> None:
        super().__init__()
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = str(record.exc_info[1])
        self._into.append((record.getMessage(), fields))


class Client:
    """A connection that says exactly what the test says."""

    def __init__(self, service: Service, *, tls: ssl.SSLContext | None = None, greeted: bool = True) -> None:
        if service.sock.family == socket.AF_UNIX:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(10)
            self.sock.connect(service.sock.getsockname())
        else:
            self.sock = socket.create_connection(("127.0.0.1", service.port), timeout=10)
        if tls is not None:
            self.start_tls(tls)
        self._buffer = b""
        if greeted:
            assert self.line().startswith("220 ")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def start_tls(self, context: ssl.SSLContext) -> None:
        self.sock = context.wrap_socket(self.sock, server_hostname="mx.example.test")

    def send(self, data: bytes | str) -> None:
        self.sock.sendall(data.encode() if isinstance(data, str) else data)

    def line(self) -> str:
        """The next line without CRLF; "" when the server has closed."""
        while b"\n" not in self._buffer:
            try:
                piece = self.sock.recv(65536)
            except ConnectionResetError:
                piece = b""
            if not piece:
                assert not self._buffer
                return ""
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        assert line.endswith(b"\r"), line
        return line[:-1].decode("ascii")

    def reply(self) -> str:
        """The next reply, lines joined by "\\n"; "" when the server has closed."""
        lines = [self.line()]
        while lines[-1][3:4] == "-":
            lines.append(self.line())
        return "\n".join(lines)

    def ask(self, command: bytes | str) -> str:
        self.send((command.encode() if isinstance(command, str) else command) + b"\r\n")
        return self.reply()

    def transaction(self, to: str = "bob@example.test") -> None:
        """EHLO, MAIL, RCPT and DATA, up to 354."""
        assert self.ask("EHLO client.example").startswith("250")
        assert self.ask("MAIL FROM:<alice@example.com>") == "250 2.1.0 Sender OK"
        assert self.ask(f"RCPT TO:<{to}>") == "250 2.1.5 Recipient OK"
        assert self.ask("DATA").startswith("354 ")


def converse(client: Client, text: str) -> None:
    """Play a dialogue: `C:` is sent with CRLF, `S:` is a line to come (a glob), `S: (closed)` the end of it all."""
    for number, raw in enumerate(text.strip().splitlines(), 1):
        who, _, what = raw.strip().partition(": ")
        if who.rstrip(":") == "C":
            client.send(what + "\r\n")
            continue
        assert who == "S", f"line {number}: {raw!r}"
        line = client.line()
        wanted = "" if what == "(closed)" else what
        assert fnmatch.fnmatchcase(line, wanted.replace("[", "[[]")), f"line {number}: {line!r} is not {what!r}"
