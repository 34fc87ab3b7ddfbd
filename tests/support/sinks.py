"""Remote servers for outgoing mail: Postfix's smtp-sink, and one whose every reply the test decides.

The scripted one is plain sockets and threads: aiosmtpd refuses RCPT parameters and folds the case of MAIL's, so it
could not show what a client sent.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import socket
import ssl
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from support.ports import answers, free_port
from support.programs import require, tail
from support.wait import wait_for


@dataclass(frozen=True, slots=True)
class Received:
    """One message as a remote got it; `content` in wire form."""

    helo: str
    mail_from: str
    rcpt_to: tuple[str, ...]
    content: bytes
    tls: bool = False
    mail_options: tuple[str, ...] = ()
    rcpt_options: tuple[tuple[str, ...], ...] = ()


class SmtpSink:
    """smtp-sink of the postfix package, with every message in a file. Speaks ESMTP without TLS, or LMTP.

    `options` are smtp-sink's own: `("-w", "1")` delays DATA, `("-r", "RCPT")` answers it 4xx, `("-f", "RCPT")` 5xx.
    """

    def __init__(self, directory: Path, *, lmtp: bool = False, options: tuple[str, ...] = ()) -> None:
        self._program = require("smtp-sink", "postfix")
        self._directory = directory
        self._options = (*(("-L",) if lmtp else ()), *options)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SmtpSink:
        self._directory.mkdir(parents=True, exist_ok=True)
        log = self._directory.with_suffix(".log")
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [
                    self._program,
                    *_as_this_user(),
                    *self._options,
                    "-d",
                    "message.",
                    f"127.0.0.1:{self.port}",
                    "100",
                ],
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        process = self._process

        def ready() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"smtp-sink ended with status {process.returncode}: {tail(log)}")
            return answers(self.port)

        wait_for(ready, what="smtp-sink listens")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def messages(self) -> list[Received]:
        """What came, oldest first; a message that is still being received is left out."""
        files = sorted(self._directory.glob("message.*"), key=lambda p: (p.stat().st_mtime_ns, p.name))
        return [m for m in (_parse_dump(f.read_bytes()) for f in files) if m is not None]


def _as_this_user() -> list[str]:
    return ["-u", "root"] if os.geteuid() == 0 else []


_RECEIVED = re.compile(rb"Received: from .*?\(UTC\)\n", re.DOTALL)


def _parse_dump(dump: bytes) -> Received | None:
    """smtp-sink's file: X- lines with the envelope, its Received field, the message with LF, one empty line."""
    envelope: dict[bytes, list[str]] = {}
    rest = dump
    while rest.startswith(b"X-"):
        line, _, rest = rest.partition(b"\n")
        name, _, value = line.partition(b": ")
        envelope.setdefault(name, []).append(value.decode("utf-8", "replace"))
    received = _RECEIVED.match(rest)
    if received is None or not dump.endswith(b"\n\n"):
        return None
    content = rest[received.end() : -1].replace(b"\n", b"\r\n")
    arguments = [_split_path(a) for a in envelope.get(b"X-Rcpt-Args", [])]
    mail_from, mail_options = _split_path(envelope.get(b"X-Mail-Args", ["<>"])[0])
    return Received(
        helo=envelope.get(b"X-Helo-Args", [""])[0],
        mail_from=mail_from,
        rcpt_to=tuple(path for path, _ in arguments),
        content=content,
        mail_options=mail_options,
        rcpt_options=tuple(options for _, options in arguments),
    )


def _split_path(argument: str) -> tuple[str, tuple[str, ...]]:
    path, *options = argument.split(" ")
    return path.strip("<>"), tuple(options)


# what a script may do instead of answering
DROP = "<drop>"
RESET = "<reset>"
STALL = "<stall>"


class _Dropped(Exception):
    """This connection ends here."""


class _Reset(_Dropped):
    """It ends with RST, as when the program was killed with input unread."""


@dataclass
class ScriptedRemote:
    """An SMTP server on threads of its own. Without a script it accepts everything.

    `replies` maps a verb, or a verb with an address, to the reply, e.g. `{"RCPT bad@example.org": "550 5.1.1 no",
    "DATA": "451 4.3.0 later", ".": DROP}`. "CONNECT" is the greeting, "." the reply to the final dot, "TLS" with DROP
    breaks the handshake, "CONTENT" is what happens after the first line of the content (a reply there is said, and
    nothing more). A list of replies is used up one by one, then the command succeeds. DROP closes the connection, RESET
    does so with RST, STALL never answers. `commands` is what clients said, line by line.
    """

    replies: dict[str, str | list[str]] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    implicit_tls: bool = False
    hostname: str = "remote.test"
    address: str = "127.0.0.1"
    port: int = 0
    max_message_octets: int = 50_000_000
    extensions: tuple[str, ...] = ("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN")
    login: tuple[str, str] | None = None
    messages: list[Received] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    connections: int = 0

    def start(self) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._live: list[tuple[socket.socket, threading.Thread]] = []
        self._listener = socket.create_server((self.address, self.port), backlog=100)
        self._listener.settimeout(0.05)
        self.port = int(self._listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept, name="scripted-remote")
        self._acceptor.start()

    def stop(self) -> None:
        self._stopped.set()
        self._acceptor.join()
        self._listener.close()
        for connection, thread in self._live:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    @property
    def busy(self) -> bool:
        """Whether a connection is open, or was closed and is not done with."""
        return any(thread.is_alive() for _, thread in list(self._live))

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(60)
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,), name="scripted-remote-connection")
            self._live.append((connection, thread))
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        dialogue = _Dialogue(self, connection)
        try:
            dialogue.run()
        except (_Dropped, OSError) as e:  # the client or the script has ended it
            if isinstance(e, _Reset):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            dialogue.close()

    def scripted(self, *keys: str) -> str | None:
        """The script's reply for the first of the keys that has one; acts on DROP, RESET and STALL."""
        reply = None
        with self._lock:
            for key in keys:
                found = self.replies.get(key)
                if isinstance(found, list):
                    found = found.pop(0) if found else None
                if found is not None:
                    reply = found
                    break
        if reply == STALL:
            self._stopped.wait(60)
        if reply == RESET:
            raise _Reset
        if reply in (DROP, STALL):
            raise _Dropped
        return reply


class _Dialogue:
    """One connection of a ScriptedRemote."""

    def __init__(self, remote: ScriptedRemote, connection: socket.socket) -> None:
        self._remote = remote
        self._socket = connection
        self._buffer = b""
        self._tls = False
        self._helo = ""
        self._reset()

    def _reset(self) -> None:
        self._mail: tuple[str, tuple[str, ...]] | None = None
        self._rcpt: list[tuple[str, tuple[str, ...]]] = []

    def close(self) -> None:
        self._socket.close()

    def run(self) -> None:
        if self._remote.implicit_tls:
            self._start_tls()
        greeting = self._remote.scripted("CONNECT") or f"220 {self._remote.hostname} ESMTP scripted"
        self._say(greeting)
        if not greeting.startswith("220"):
            return
        while True:
            line = self._line().decode("utf-8", "replace")
            self._remote.commands.append(line)
            if not self._command(line):
                return

    def _command(self, line: str) -> bool:
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        if verb in ("MAIL", "RCPT"):
            path, options = _split_path(argument.partition(":")[2].strip())
            scripted = self._remote.scripted(f"{verb} {path}", verb)
            if scripted is None or scripted.startswith("2"):
                if verb == "MAIL":
                    self._mail = (path, options)
                else:
                    self._rcpt.append((path, options))
            self._say(scripted or f"250 2.1.{0 if verb == 'MAIL' else 5} ok")
            return True
        scripted = self._remote.scripted(verb)
        if scripted is not None and not (verb == "DATA" and scripted.startswith("354")):
            self._say(scripted)
            if verb == "STARTTLS" and scripted.startswith("220"):
                self._start_tls()
            return not scripted.startswith("421")
        return self._ordinary(verb, argument)

    def _ordinary(self, verb: str, argument: str) -> bool:
        if verb in ("EHLO", "LHLO"):
            self._helo = argument
            self._reset()
            lines = [self._remote.hostname, f"SIZE {self._remote.max_message_octets}", *self._remote.extensions]
            if self._remote.tls is not None and not self._tls:
                lines.append("STARTTLS")
            if self._remote.login is not None and (self._tls or self._remote.tls is None):
                lines.append("AUTH PLAIN LOGIN")
            self._say(*(f"250-{x}" for x in lines[:-1]), f"250 {lines[-1]}")
        elif verb == "HELO":
            self._helo = argument
            self._say(f"250 {self._remote.hostname}")
        elif verb == "STARTTLS" and self._remote.tls is not None:
            self._say("220 2.0.0 go")
            self._start_tls()
        elif verb == "AUTH":
            self._authenticate(argument)
        elif verb == "DATA":
            self._data()
        elif verb in ("RSET", "NOOP"):
            if verb == "RSET":
                self._reset()
            self._say("250 2.0.0 ok")
        elif verb == "QUIT":
            self._say("221 2.0.0 bye")
            return False
        else:
            self._say("500 5.5.1 what?")
        return True

    def _start_tls(self) -> None:
        assert self._remote.tls is not None
        self._remote.scripted("TLS")
        self._buffer = b""
        self._socket = self._remote.tls.wrap_socket(self._socket, server_side=True)
        self._tls = True

    def _authenticate(self, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        if mechanism.upper() == "PLAIN":
            if not initial:
                self._say("334 ")
                initial = self._line().decode()
            _, user, password = base64.b64decode(initial).decode().split("\0")
        else:
            if not initial:
                self._say("334 VXNlcm5hbWU6")
                initial = self._line().decode()
            self._say("334 UGFzc3dvcmQ6")
            user = base64.b64decode(initial).decode()
            password = base64.b64decode(self._line()).decode()
        self._say("235 2.7.0 ok" if (user, password) == self._remote.login else "535 5.7.8 no")

    def _data(self) -> None:
        if self._mail is None or not self._rcpt:
            self._say("503 5.5.1 first MAIL and RCPT")
            return
        self._say("354 go on")
        content = bytearray()
        line = self._line()
        said = self._remote.scripted("CONTENT")
        if said is not None:
            self._say(said)
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(65536):
                pass  # else the reply would be lost with the connection
            raise _Dropped
        while line != b".":
            content += line.removeprefix(b".") + b"\r\n"
            line = self._line()
        scripted = self._remote.scripted(".")
        if scripted is None or scripted.startswith("2"):
            path, options = self._mail
            self._remote.messages.append(
                Received(
                    self._helo,
                    path,
                    tuple(p for p, _ in self._rcpt),
                    bytes(content),
                    self._tls,
                    options,
                    tuple(o for _, o in self._rcpt),
                )
            )
        self._say(scripted or "250 2.0.0 stored")
        self._reset()

    def _line(self) -> bytes:
        """The next line without its CRLF; a bare LF is content, as for a strict server."""
        while b"\r\n" not in self._buffer:
            data = self._socket.recv(65536)
            if not data:
                raise _Dropped
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _say(self, *lines: str) -> None:
        self._socket.sendall("".join(f"{x}\r\n" for x in lines).encode())
