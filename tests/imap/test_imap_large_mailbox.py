"""A large mailbox is served in bounded memory, and the other sessions of the process are answered meanwhile.

The mailbox came from elsewhere: files in cur/, no uidlist, no index. The short form has 20,000 messages, the long one
(`-m soak`) 200,000. The server is a process of its own, and its memory is what the kernel says was its most (VmHWM).
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from imap_rig import Client
from support.tls import TlsFiles
from support.wait import wait_until

DISTINCT = 200  # messages; the others are links to them
LONGEST_S = 5.0  # until another session's NOOP is answered, on a busy machine; on a quiet one 0.1
LEAST_ANSWERS = 3  # NOOPs answered while a command runs; none or one if it held up the others
SHORTEST_S = 0.2  # a command that ends sooner says nothing about it
# What a command may take beside what was there before it. The responses of the short form are 24 MB, of the long 243.
# An integer and a place in a list for each message asked for are allowed: 40 octets, for 200,000 messages 8 MB.
FIXED_MIB = 8.0
OCTETS_PER_MESSAGE = 40


def _message(number: int) -> bytes:
    """Some 2 KB; its ENVELOPE and BODYSTRUCTURE 1.3 KB."""
    people = ",\n ".join(f'"Person {i} of {number}" <person{i}.{number}@department.example.test>' for i in range(14))
    head = (
        f"From: Sender {number} <sender{number}@example.test>\nTo: {people}\nSubject: Number {number * 7919 % 1000}\n"
        f"Date: Tue, {number % 28 + 1} Sep 2026 10:{number % 60:02}:00 +0000\nMessage-ID: <{number}@example.test>\n"
    )
    return f"{head}\n{'Words of a usual message, line by line.' * 20}\nword{number}\n".encode()


def make_mailbox(root: Path, count: int) -> None:
    """alice's folder Big, with `count` messages as another program left them."""
    home = root / "example.test" / "alice"
    for directory in ("cur", "new", "tmp"):
        for place in (home, home / ".Big"):
            (place / directory).mkdir(parents=True)
    cur = home / ".Big" / "cur"
    sources = []
    for number in range(DISTINCT):
        text = _message(number)
        source = home / ".Big" / "tmp" / f"source{number}"
        source.write_bytes(text)
        sources.append((source, len(text), len(text) + text.count(b"\n")))
    folder = os.open(cur, os.O_DIRECTORY)
    for number in range(count):
        source, octets, wire = sources[number % DISTINCT]
        os.link(source, f"{1_700_000_000 + number}.M{number}P1.old,S={octets},W={wire}:2,S", dst_dir_fd=folder)
    os.close(folder)
    for source, _, _ in sources:
        source.unlink()


@dataclass
class Running:
    """The process, and whoever speaks to it."""

    pid: int
    port: int
    tls: ssl.SSLContext
    clients: list[Client] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    async def select(self, mailbox: str, user: str = "alice", password: str = "secret") -> Client:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.tls, server_hostname="localhost"
        )
        client = Client(reader, writer, self.tls)
        self.clients.append(client)
        await client.line()
        await client.ok(f"LOGIN {user}@example.test {password}")
        if mailbox:
            await client.ok(f"SELECT {mailbox}")
        return client

    def memory_mib(self, what: str) -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) / 1024
        raise AssertionError(what)

    def forget_peak(self) -> float:
        """What there is now, in MiB, from which on the most is counted."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.memory_mib("VmRSS")


@asynccontextmanager
async def server(directory: Path, tls_files: TlsFiles) -> AsyncIterator[Running]:
    here = Path(__file__).parent
    process = await asyncio.create_subprocess_exec(
        sys.executable, here / "imap_server_process.py", directory,
        tls_files.certificate, tls_files.private_key, tls_files.ca,
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}:{here.parent.parent}"},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(30):
        port = int(await process.stdout.readline())
    running = Running(process.pid, port, tls_files.client_context(verify=False))
    try:
        yield running
    finally:
        for client in running.clients:
            await client.close()
        process.stdin.close()
        try:
            async with asyncio.timeout(30):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        process._transport.close()  # type: ignore[attr-defined]  # asyncio leaves its pipe to the collector


@dataclass
class Answers:
    """NOOPs of one other session."""

    count: int = 0
    longest_s: float = 0.0
    enough: bool = False


async def _noop(client: Client) -> None:
    client.send(b"n NOOP\r\n")
    while not (line := await client.reader.readline()).startswith(b"n OK"):
        assert line.startswith(b"* "), line


async def _ask_noop(client: Client, answers: Answers) -> None:
    while not answers.enough:
        begun = time.monotonic()
        await _noop(client)
        answers.longest_s = max(answers.longest_s, time.monotonic() - begun)
        answers.count += 1
        await asyncio.sleep(0.005)


async def _while_others_ask(
    running: Running, what: str, others: list[Client], work: Callable[[list[Answers]], Awaitable[int]]
) -> None:
    """Do `work` while `others` send NOOP after NOOP: each is answered, again and again."""
    answers = [Answers() for _ in others]
    async with asyncio.TaskGroup() as asking:
        for client, one in zip(others, answers, strict=True):
            asking.create_task(_ask_noop(client, one))
        await wait_until(lambda: all(one.count for one in answers), what="the others are answered at all")
        for one in answers:
            one.count, one.longest_s = 0, 0.0
        begun = time.monotonic()
        octets = await work(answers)
        duration_s = time.monotonic() - begun
        counts = [one.count for one in answers]
        for one in answers:
            one.enough = True  # what is under way is still waited for, and counts
    longest_s = max(one.longest_s for one in answers)
    others_heard = f"NOOPs meanwhile {counts}, longest {longest_s * 1000:.0f} ms"
    running.figures.append(f"{what}: {duration_s:.2f} s, {octets / 1e6:.1f} MB; {others_heard}")
    assert min(counts) >= LEAST_ANSWERS or duration_s < SHORTEST_S, running.figures
    assert longest_s < LONGEST_S, running.figures


async def _answer(client: Client, tag: bytes) -> tuple[int, int]:
    """Octets and lines of responses until the tagged OK; not counting that it takes long (RFC 9585)."""
    octets = lines = 0
    rest = b""
    while True:
        data = await client.reader.read(65_536)
        assert data, "the server has closed"
        octets += len(data)
        lines += data.count(b"\n") - data.count(b"* OK [INPROGRESS")
        rest = (rest + data)[-200:]
        last = rest.rpartition(b"\r\n")[0].rpartition(b"\r\n")[2]
        if rest.endswith(b"\r\n") and last.startswith(tag + b" "):
            assert last.startswith(tag + b" OK"), last
            return octets, lines


async def _served(directory: Path, tls_files: TlsFiles, count: int) -> list[str]:
    make_mailbox(directory / "mail", count)
    bound_mib = FIXED_MIB + OCTETS_PER_MESSAGE * count / 2**20
    async with server(directory, tls_files) as running:
        bob = await running.select("INBOX", "bob", "hidden")
        alice = await running.select("INBOX")
        client = await running.select("")

        async def whole(command: bytes, expected_lines: int) -> int:
            client.send(b"a " + command + b"\r\n")
            octets, lines = await _answer(client, b"a")
            assert lines == expected_lines, (command, lines)
            return octets

        await _while_others_ask(running, "SELECT, cold", [bob, alice], lambda _: whole(b"SELECT Big", 9))
        same = await running.select("Big")
        others = [bob, alice, same]

        async def slowly(command: bytes, answers: list[Answers]) -> int:
            """Read nothing until the others were answered often enough for the server to have done what it can."""
            transport = client.writer.transport
            transport.pause_reading()  # type: ignore[attr-defined]
            client.send(b"a " + command + b"\r\n")
            await wait_until(lambda: min(one.count for one in answers) >= 100)
            transport.resume_reading()  # type: ignore[attr-defined]
            octets, lines = await _answer(client, b"a")
            assert lines == count + 1
            return octets

        for command in (b"FETCH 1:* (UID FLAGS)", b"FETCH 1:* (ENVELOPE BODYSTRUCTURE)"):
            for again in ("", ", again"):
                before_mib = running.forget_peak()
                what = f"{command.decode()}{again}"
                await _while_others_ask(running, what, others, lambda answers, c=command: slowly(c, answers))
                grown_mib = running.memory_mib("VmHWM") - before_mib
                running.figures.append(f"    from {before_mib:.1f} MiB by {grown_mib:.1f}, {bound_mib:.1f} allowed")
                assert grown_mib < bound_mib, running.figures
        for command in (b"SEARCH BODY word199", b"SORT (SUBJECT REVERSE DATE) UTF-8 ALL", b"THREAD REFS UTF-8 ALL"):
            await _while_others_ask(running, command.decode(), others, lambda _, c=command: whole(c, 2))
        return running.figures


async def test_a_large_mailbox_is_served_in_bounded_memory_beside_others(tmp_path: Path, tls_files: TlsFiles) -> None:
    """Neither all rows nor all responses are held, whether the client reads or not, and no command stops the loop."""
    print(*await _served(tmp_path, tls_files, 20_000), sep="\n")


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_two_hundred_thousand_messages_are_served_in_bounded_memory_beside_others(
    tmp_path: Path, tls_files: TlsFiles
) -> None:
    """The same with ten times as many: the memory for responses is the same."""
    print(*await _served(tmp_path, tls_files, 200_000), sep="\n")
