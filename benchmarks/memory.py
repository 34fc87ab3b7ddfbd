"""Memory of a running server: proportional set size (PSS) of a process and its children, and of sessions in IDLE.

    python benchmarks/memory.py PID [--idle 1000 --rounds 3 --users DIRECTORY/users.txt --imaps 3993]
        [--compress [--sent 40000 --what commands|text|random]]

With --idle it opens so many TLS sessions, each with INBOX selected and in IDLE, measures, closes them, measures again.
With --compress they are compressed, and each has sent so many octets before: commands as a client sends them, or a
message for a folder that isn't there, whose attachment is a picture in base64, or which is of random octets (BINARY).
The files of Python and its libraries count in parts when other Python processes run, so what is not of files (anonymous
memory) is shown beside the sum.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import random
import resource
import ssl
import zlib
from pathlib import Path


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *(int(child) for child in children.split())]


def measure(pid: int) -> tuple[float, float]:
    """(PSS, anonymous part of it) of all processes, in MiB."""
    found = {"Pss:": 0, "Pss_Anon:": 0}
    for process in family(pid):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            words = line.split()
            if words[0] in found:
                found[words[0]] += int(words[1])
    return found["Pss:"] / 1024, found["Pss_Anon:"] / 1024


def show(what: str, pid: int) -> None:
    total, anonymous = measure(pid)
    print(f"{what:28} {total:6.1f} MiB, anonymous {anonymous:6.1f}", flush=True)


class Connection:
    """One session of the client; `compress` is for both directions."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self._reader = reader
        self._text = b""
        self._in: zlib._Decompress | None = None
        self._out: zlib._Compress | None = None

    def compress(self) -> None:
        self._in = zlib.decompressobj(-zlib.MAX_WBITS)
        self._out = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)

    async def ask(self, command: bytes) -> bytes:
        """Send a command, whose tag is one letter; its tagged line, or the one that lets it go on."""
        data = command + b"\r\n"
        if self._out is not None:
            data = self._out.compress(data) + self._out.flush(zlib.Z_SYNC_FLUSH)
        self.writer.write(data)
        while not (line := await self.line()).startswith((command[:1] + b" ", b"+")):
            pass
        return line

    async def line(self) -> bytes:
        while b"\n" not in self._text:
            data = await self._reader.read(65536)
            assert data, "the server has closed"
            self._text += data if self._in is None else self._in.decompress(data)
        line, _, self._text = self._text.partition(b"\n")
        return line


def said(what: str, octets: int, chance: random.Random) -> list[bytes]:
    """Commands of so many octets together."""
    if what != "commands":
        message = b"Subject: picture\r\n\r\n" + chance.randbytes(octets)
        if what == "text":
            message = base64.encodebytes(message).replace(b"\n", b"\r\n")
        return [b"d APPEND missing ~{%d+}\r\n%b" % (octets, message[:octets])]
    commands = [b"d UID FETCH 1:* (FLAGS)"]
    uid = chance.randrange(1000, 90000)
    while octets > sum(map(len, commands)):
        uids = [uid := uid + chance.choice((1, 1, 1, 2, 3, 7, 40)) for _ in range(chance.randrange(1, 50))]
        numbers = b",".join(b"%d" % number for number in uids)
        commands += (
            b"d UID FETCH %b (UID RFC822.SIZE FLAGS BODY.PEEK[HEADER.FIELDS (From To Cc Bcc Subject Date Message-ID"
            b" Priority X-Priority References Newsgroups In-Reply-To Content-Type Reply-To)])" % numbers,
            b"d UID FETCH %d (UID RFC822.SIZE BODY.PEEK[])" % uid,
            b"d UID STORE %d +FLAGS (\\Seen)" % uid,
            b"d NOOP",
        )
    return commands


async def open_idle(arguments: argparse.Namespace, login: str, password: str, seed: int) -> Connection:
    tls = ssl.create_default_context()
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    connection = Connection(*await asyncio.open_connection("127.0.0.1", arguments.imaps, ssl=tls))
    await connection.line()
    begin = [f"a LOGIN {login} {password}".encode(), *([b"z COMPRESS DEFLATE"] if arguments.compress else [])]
    for command in begin:
        assert b" OK" in (line := await connection.ask(command)), line
    if arguments.compress:
        connection.compress()
    rest = said(arguments.what, arguments.sent, random.Random(seed)) if arguments.sent else []
    for command in (b"b SELECT INBOX", *rest, b"c IDLE"):
        line = await connection.ask(command)
        assert b" BAD " not in line, line
    return connection


async def idle_rounds(pid: int, arguments: argparse.Namespace) -> None:
    users = [line.split() for line in arguments.users.read_text().splitlines()]
    gate = asyncio.Semaphore(arguments.at_once)
    seeds = itertools.count()

    async def one(number: int) -> Connection:
        async with gate:
            login, password = users[number % len(users)]
            return await open_idle(arguments, login, password, next(seeds))

    for number in range(1, arguments.rounds + 1):
        before = measure(pid)[1]
        connections = await asyncio.gather(*map(one, range(arguments.idle)))
        await asyncio.sleep(3)
        show(f"round {number}, {arguments.idle} in IDLE", pid)
        print(f"{'':28} {1024 * (measure(pid)[1] - before) / arguments.idle:6.1f} KiB for each", flush=True)
        for connection in connections:
            connection.writer.close()
        await asyncio.sleep(8)
        show(f"round {number}, closed", pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pid", type=int)
    parser.add_argument("--idle", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=Path)
    parser.add_argument("--imaps", type=int, default=3993)
    parser.add_argument("--at-once", type=int, default=20, help="so many are opened at a time")
    parser.add_argument("--compress", action="store_true")
    parser.add_argument("--sent", type=int, default=0)
    parser.add_argument("--what", choices=("commands", "text", "random"), default="commands")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    for process in family(arguments.pid):
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        print(process, *(" ".join(line.split()[:2]) for line in text.splitlines() if line.startswith(("Pss:", "Rss:"))))
    show("all", arguments.pid)
    if arguments.idle:
        asyncio.run(idle_rounds(arguments.pid, arguments))


if __name__ == "__main__":
    main()
