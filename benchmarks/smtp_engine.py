"""CPU of the SMTP engine alone per message, and memory per idle session.

    python benchmarks/smtp_engine.py cpu  [--loop uvloop|asyncio] [--messages N] [--octets N] [--stock]
    python benchmarks/smtp_engine.py idle [--loop uvloop|asyncio] [--sessions N]

The handler accepts everything and keeps nothing, so what is measured is reading, parsing, replying, spooling and the
log line per connection. Needs Postfix's smtp-source. `--stock` measures aiosmtpd as it is, for comparison. CPU is that
of the server process by getrusage; other load on the machine lengthens the run, and hardly the CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import multiprocessing
import os
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pymx import log
from pymx.config.model import Smtp, Tls
from pymx.mail.address import Address
from pymx.mail.envelope import Listener, Recipient
from pymx.net.listener import Server, bind
from pymx.net.sessions import Sessions
from pymx.net.tls import Certificates, apply_asyncio_tls_buffer
from pymx.proto.smtp.reply import Reply
from pymx.smtpd.engine import Engine
from pymx.smtpd.handler import MailParameters, SessionFacts
from pymx.spool import Content


class NullTransaction:
    async def rcpt(self, recipient: Recipient) -> None:
        pass

    def body(self, head: bytes) -> None:
        pass

    async def data(self, content: Content) -> Reply:
        return Reply(250, "2.0.0", "OK queued as 1")

    async def data_per_recipient(self, content: Content) -> list[Reply]:
        return []


class NullHandler:
    async def connected(self, session: SessionFacts) -> None:
        pass

    async def authenticate(self, session: SessionFacts, login: str, password: str) -> str:
        return login

    async def mail(
        self, session: SessionFacts, mail_from: Address | None, parameters: MailParameters
    ) -> NullTransaction:
        return NullTransaction()

    def closed(self, session: SessionFacts, counts: Mapping[str, int]) -> None:
        pass


def certificate(directory: Path) -> Tls:
    """A self-signed ECDSA certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.example.test")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Tls(certificate=str(directory / "cert.pem"), private_key=str(directory / "key.pem"))


async def stock(pipe: Connection) -> None:
    """aiosmtpd's own server with a handler that accepts everything."""
    from aiosmtpd.smtp import SMTP

    class Accept:
        async def handle_DATA(self, server: object, session: object, envelope: object) -> str:
            return "250 OK queued as 1"

    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(Accept(), hostname="mx.example.test", data_size_limit=10**8), "127.0.0.1", 0
    )
    pipe.send({"plain": server.sockets[0].getsockname()[1]})
    await questions(pipe)


async def serve(pipe: Connection) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        certificates = Certificates(certificate(directory))
        smtp = Smtp(max_connections=20000, max_connections_per_ip=20000, max_commands=10**9)
        sessions = Sessions()
        sessions.start()
        ports = {}
        for kind in ("plain", "starttls", "implicit"):
            engine = Engine(
                NullHandler(),
                listener=Listener.SMTP,
                hostname="mx.example.test",
                smtp=smtp,
                max_message_octets=10**8,
                spool_dir=directory,
                sessions=sessions,
                tls=certificates.context() if kind == "starttls" else None,
                implicit_tls=kind == "implicit",
            )
            sock = bind("127.0.0.1:0", "benchmark")
            ports[kind] = sock.getsockname()[1]
            context = certificates.context() if kind == "implicit" else None
            await Server(kind, sock, engine.factory, ssl=context).start()
        pipe.send(ports)
        await questions(pipe)


async def questions(pipe: Connection) -> None:
    """Answer each message on the pipe with CPU seconds and memory; "" ends."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(pipe.fileno(), lambda: asked.put_nowait(pipe.recv()))
    while await asked.get():
        usage = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send({"cpu_s": usage.ru_utime + usage.ru_stime, "rss_kb": rss_kb(), "peak_kb": usage.ru_maxrss})


def rss_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise RuntimeError("no VmRSS")


def child(pipe: Connection, loop: str, is_stock: bool, core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    logging = log.setup(stream=Path(os.devnull).open("w"))  # noqa: SIM115 - for the life of the process
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard := resource.getrlimit(resource.RLIMIT_NOFILE)[1], hard))
    if loop == "asyncio":
        apply_asyncio_tls_buffer()
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(stock(pipe) if is_stock else serve(pipe))
    logging.stop()


def ask(pipe: Connection) -> dict[str, float]:
    pipe.send("?")
    answer: dict[str, float] = pipe.recv()
    return answer


def measure_cpu(pipe: Connection, port: int, messages: int, octets: int, *, connections: bool) -> dict[str, object]:
    source = shutil.which("smtp-source") or "/usr/sbin/smtp-source"
    command = [source, "-s", "20", "-l", str(octets), "-f", "alice@example.com", "-t", "bob@example.test"]
    if not connections:
        command.append("-d")
    target = f"127.0.0.1:{port}"
    subprocess.run([*command, "-m", "200", target], check=True)
    before = ask(pipe)
    start = datetime.datetime.now(datetime.UTC)
    subprocess.run([*command, "-m", str(messages), target], check=True)
    seconds = (datetime.datetime.now(datetime.UTC) - start).total_seconds()
    after = ask(pipe)
    return {
        "octets": octets,
        "connection": "one per message" if connections else "kept",
        "cpu_ms_per_message": round((after["cpu_s"] - before["cpu_s"]) / messages * 1000, 4),
        "messages_per_s": round(messages / seconds),
        "peak_rss_mb": round(after["peak_kb"] / 1024, 1),
    }


def measure_idle(pipe: Connection, kind: str, port: int, sessions: int) -> dict[str, object]:
    client_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_tls.check_hostname = False
    client_tls.verify_mode = ssl.CERT_NONE
    held = [session(kind, port, client_tls) for _ in range(20)]  # warm-up: first use of everything
    before = ask(pipe)["rss_kb"]
    held += [session(kind, port, client_tls) for _ in range(sessions)]
    each = round((ask(pipe)["rss_kb"] - before) / sessions, 1)
    for sock in held:
        sock.close()
    return {"session": kind, "kb_per_idle_session": each}


def session(kind: str, port: int, client_tls: ssl.SSLContext) -> socket.socket:
    """A connection that has said EHLO and heard the answer."""
    sock = socket.create_connection(("127.0.0.1", port))
    if kind == "implicit":
        sock = client_tls.wrap_socket(sock)
    read_until(sock, b" ESMTP pymx\r\n")
    if kind == "starttls":
        sock.sendall(b"STARTTLS\r\n")
        read_until(sock, b"start TLS\r\n")
        sock = client_tls.wrap_socket(sock)
    sock.sendall(b"EHLO client.example\r\n")
    read_until(sock, b"250 ", line=True)
    return sock


def read_until(sock: socket.socket, end: bytes, *, line: bool = False) -> None:
    data = b""
    while not (data.endswith(b"\r\n") and data.splitlines()[-1].startswith(end)) if line else not data.endswith(end):
        piece = sock.recv(4096)
        if not piece:
            raise ConnectionError(data)
        data += piece


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("cpu", "idle"))
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--octets", type=int, default=4096)
    parser.add_argument("--connections", action="store_true", help="one connection per message")
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--core", type=int, default=None, help="pin the server to this core")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard := resource.getrlimit(resource.RLIMIT_NOFILE)[1], hard))
    for kind in ("plain",) if args.what == "cpu" else ("plain", "starttls", "implicit"):
        report(args, kind)


def report(args: argparse.Namespace, kind: str) -> None:
    """Measure with a server of its own and print the result."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=child, args=(theirs, args.loop, args.stock, args.core)
    )
    process.start()
    try:
        port: int = ours.recv()[kind]
        if args.what == "cpu":
            result = measure_cpu(ours, port, args.messages, args.octets, connections=args.connections)
        else:
            result = measure_idle(ours, kind, port, args.sessions)
    finally:
        ours.send("")
        process.join(10)
        process.terminate()
    json.dump({"loop": args.loop, "stock": args.stock, **result}, sys.stdout)
    print(flush=True)


if __name__ == "__main__":
    main()
