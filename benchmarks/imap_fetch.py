"""IMAP in numbers: flag listings, headers, whole messages, push, and memory per idle TLS session.

    .venv/bin/python benchmarks/imap_fetch.py [MESSAGES] [IDLE_SESSIONS]

The server runs in a child process on uvloop over a store in a directory here (not tmpfs); the client counts what comes.
CPU is the server's (user + system), read from /proc. Prints one line per figure.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pymx.accounts.account import Account
from pymx.config.model import Imap, Mail, Tls
from pymx.imapd.server import ImapServer
from pymx.ms.deliveries import Delivery
from pymx.ms.owner import Owner
from pymx.ms.store import Append, Store
from pymx.net.listener import Caps, Server
from pymx.net.sessions import Sessions
from pymx.net.tls import Certificates
from pymx.proto.imap.render import render
from pymx.spool import Content

OWNER = Owner("example.test", "alice")
MESSAGE = (
    b"Return-Path: <a@example.test>\r\nReceived: from x by y; Tue, 24 Nov 2026 10:00:00 +0000\r\n"
    b"From: Alice <a@example.test>\r\nTo: Bob <b@example.test>\r\nSubject: a usual message\r\n"
    b"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@example.test>\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + b"Some words of a usual message, line by line.\r\n" * 80
)


class Anybody:
    """Every login is alice."""

    async def login(self, login: str, password: str, *, peer_ip: str) -> Account:
        return Account(1, "alice@example.test", "example.test", "alice", 0)


def certificate(directory: Path) -> Tls:
    files = [str(directory / "cert.pem"), str(directory / "key.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=localhost", "-days", "2", "-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True)
    return Tls(certificate=files[0], private_key=files[1])


async def serve(directory: Path, messages: int, ready: int) -> None:
    mail = Mail(root=str(directory))
    store = Store(mail, render=render, runtime_dir=None, hostname="localhost")
    await store.start()
    content = Content.from_bytes(MESSAGE)
    for start in range(0, messages, 500):
        count = min(500, messages - start)
        await store.append(OWNER, "INBOX", [Append(content, start % 3 and 1, (), None)] * count)
    sessions = Sessions()
    sessions.start()
    imap = Imap(max_connections=100_000, max_connections_per_ip=100_000)
    made = ImapServer(
        store,
        Anybody(),  # type: ignore[arg-type]
        imap=imap,
        mail=mail,
        hostname="localhost",
        tls=None,
        implicit_tls=True,
        caps=Caps(imap.max_connections, imap.max_connections_per_ip, []),
        sessions=sessions,
    )
    sock = socket.create_server(("127.0.0.1", 0), backlog=512)
    sock.setblocking(False)
    server = Server("imap", sock, made.factory, ssl=Certificates(certificate(directory)).context())
    await server.start()
    os.write(ready, f"{sock.getsockname()[1]}\n".encode())
    control = await asyncio.get_running_loop().run_in_executor(None, _lines)
    while await control.get() == "deliver":
        await store.deliver([Delivery(OWNER, "INBOX", content)])
        os.write(ready, f"{time.monotonic()}\n".encode())
    server.close()
    await store.close()


def _lines() -> asyncio.Queue[str]:
    """Lines of standard input, from a thread."""
    import threading

    queue: asyncio.Queue[str] = asyncio.Queue()
    loop = LOOP[0]

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(queue.put_nowait, line.strip())
        loop.call_soon_threadsafe(queue.put_nowait, "")

    threading.Thread(target=read, daemon=True).start()
    return queue


LOOP: list[asyncio.AbstractEventLoop] = []


async def _child(directory: Path, messages: int) -> None:
    LOOP.append(asyncio.get_running_loop())
    await serve(directory, messages, 1)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def private_kb(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_"))


class Client:
    def __init__(self, port: int) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.sock = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
        self.rest = b""
        self.until(b"\r\n")

    def until(self, mark: bytes) -> int:
        """Read until `mark`; how much it was."""
        total, tail = 0, self.rest
        while mark not in tail:
            data = self.sock.recv(262_144)
            if not data:
                raise ConnectionError(tail)
            total += len(data)
            tail = tail[-64:] + data
        self.rest = b""
        return total

    def ask(self, command: str) -> int:
        self.sock.sendall(b"x " + command.encode() + b"\r\n")
        return self.until(b"\r\nx OK") if "FETCH" in command else self.until(b"x OK")


def main() -> None:
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    idle = int(sys.argv[2]) if len(sys.argv) > 2 else 500
    directory = Path(tempfile.mkdtemp(prefix="imap-bench-", dir=Path(__file__).parent))
    child = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(directory), str(messages)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        port = int(child.stdout.readline())
        client = Client(port)
        client.ask("LOGIN a b")

        def measure(what: str, command: str, count: int) -> None:
            figures = []
            for _ in range(3):
                start, before = time.perf_counter(), cpu_s(child.pid)
                octets = client.ask(command)
                figures.append((time.perf_counter() - start, cpu_s(child.pid) - before, octets))
            wall, cpu, octets = sorted(figures)[1]
            print(
                f"{what:48} {wall * 1e3:9.1f} ms  {wall / count * 1e6:8.2f} us/message"
                f"  server CPU {cpu / count * 1e6:8.2f} us/message  {octets / 1e6:8.1f} MB"
            )

        few = min(messages, 2000)
        measure(f"SELECT of {messages}", "SELECT INBOX", 1)
        measure(f"UID FETCH 1:* (UID FLAGS), {messages}", "UID FETCH 1:* (UID FLAGS)", messages)
        measure(
            "UID FETCH 1:* (FLAGS RFC822.SIZE INTERNALDATE)", "UID FETCH 1:* (FLAGS RFC822.SIZE INTERNALDATE)", messages
        )
        measure(f"UID FETCH 1:{few} (ENVELOPE)", f"UID FETCH 1:{few} (ENVELOPE)", few)
        measure(f"UID FETCH 1:{few} (BODY.PEEK[HEADER])", f"UID FETCH 1:{few} (BODY.PEEK[HEADER])", few)
        measure(f"UID FETCH 1:{few} (BODY.PEEK[])", f"UID FETCH 1:{few} (BODY.PEEK[])", few)
        measure("UID SEARCH UNSEEN", "UID SEARCH UNSEEN", messages)
        measure("NOOP", "NOOP", 1)
        client.ask("EXAMINE INBOX")
        client.sock.sendall(b"x IDLE\r\n")
        client.until(b"+ idling\r\n")
        waits = []
        for _ in range(50):
            child.stdin.write("deliver\n")
            child.stdin.flush()
            client.until(b"RECENT\r\n")
            waits.append((time.monotonic() - float(child.stdout.readline())) * 1e3)
        waits.sort()
        print(f"push after delivery (IDLE): p50 {waits[25]:.2f} ms, p95 {waits[47]:.2f} ms")
        before = private_kb(child.pid)
        clients = []
        for _ in range(idle):
            each = Client(port)
            each.ask("LOGIN a b")
            each.ask("EXAMINE Archive")
            each.sock.sendall(b"x IDLE\r\n")
            each.until(b"+ idling\r\n")
            clients.append(each)
        print(f"idle TLS session in IDLE: {(private_kb(child.pid) - before) / idle:.1f} KB each, {idle} sessions")
        print(f"process with them: {private_kb(child.pid) / 1024:.1f} MB private")
    finally:
        child.stdin.close()
        child.wait(30)
        shutil.rmtree(directory)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--serve":
        import uvloop

        uvloop.run(_child(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        main()
