"""How fast the queue takes in and gives out.

`python benchmarks/queue_enqueue.py [--messages N] [--queued N] [DIRECTORY]` prints one JSON line per measurement:

    enqueue      durable acceptance of 4 KB messages, from 1, 10 and 50 senders at the same time
    deliver      the same with 10 senders while the runner delivers to smtp-sink (postfix) over kept connections
    long queue   start, rebuild and first deliveries of a queue with many messages (--queued, default 20,000)

DIRECTORY has to be on a real disk. Syncs per message: run it under `strace -f -c -e trace=fsync,fdatasync`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pymx import log, metrics
from pymx.config.model import Dns, Outbound, Route
from pymx.mail.address import Address
from pymx.mail.envelope import Envelope, Listener, Origin, Recipient
from pymx.mta.deliver import Deliver
from pymx.queue.files import Disk
from pymx.queue.item import Attempt, Copy, Outcome, Report, Result, new_queue_id
from pymx.queue.manager import Manager
from pymx.queue.queue import Queue
from pymx.resolver.resolver import Resolver
from pymx.spool import Content

MESSAGE = Content.from_bytes(b"From: alice@example.test\r\nSubject: x\r\n\r\n" + (b"x" * 78 + b"\r\n") * 50)


def copy(n: int, domain: str = "remote.test") -> Copy:
    envelope = Envelope(
        Address("alice", "example.test"),
        (Recipient(Address(f"b{n}", domain)),),
        Origin(Listener.SUBMISSION, account="alice@example.test"),
    )
    return Copy(new_queue_id(), envelope, MESSAGE, False)


async def told(report: Report) -> None:
    raise AssertionError(report)


async def senders(queue: Queue, messages: int, at_once: int) -> None:
    async def one() -> None:
        for n in range(messages // at_once):
            await queue.enqueue([copy(n)])

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one())


@asynccontextmanager
async def opened(directory: Path, outbound: Outbound, disk: Disk | None = None) -> AsyncIterator[Queue]:
    queue = Queue(directory, outbound, disk=disk)
    await queue.start()
    try:
        yield queue
    finally:
        await queue.close()


async def measure_enqueue(directory: Path, messages: int, at_once: int) -> dict[str, object]:
    async with opened(directory / f"enqueue{at_once}", Outbound()) as queue:
        queue.wake = lambda: None
        started, cpu = time.monotonic(), time.process_time()
        commits = metrics.snapshot().counters.get("queue_commits", 0)
        await senders(queue, messages, at_once)
        took = time.monotonic() - started
    return {
        "what": "enqueue",
        "senders": at_once,
        "messages_per_s": round(messages / took),
        "cpu_us_per_message": round((time.process_time() - cpu) / messages * 1e6),
        "messages_per_commit": round(messages / (metrics.snapshot().counters["queue_commits"] - commits), 1),
    }


async def measure_delivery(directory: Path, messages: int, port: int) -> dict[str, object]:
    outbound = Outbound(route=[Route(domain="*", host="127.0.0.1", port=port, tls="none")])
    deliver = Deliver(Resolver(Dns(nameservers=["127.0.0.1"])), outbound, "mx.example.test")
    async with opened(directory / "deliver", outbound) as queue:
        manager = Manager(queue, deliver.attempt, told, told, find_place=deliver.place)
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.run())
            while queue.wake == queue._wake_runner:
                await asyncio.sleep(0.01)
            started, cpu = time.monotonic(), time.process_time()
            before = metrics.snapshot().counters.get("queue_delivered", 0)
            await senders(queue, messages, 10)
            accepted = time.monotonic() - started
            while metrics.snapshot().counters.get("queue_delivered", 0) - before < messages:
                await asyncio.sleep(0.005)
            drained = time.monotonic() - started
            manager.stop()
    await deliver.close()
    return {
        "what": "deliver",
        "accepted_per_s": round(messages / accepted),
        "drained_per_s": round(messages / drained),
        "cpu_us_per_message": round((time.process_time() - cpu) / messages * 1e6),
        "connections": metrics.snapshot().counters["outbound_connections"],
    }


class UnsyncedDisk(Disk):
    """For filling a queue quickly; what is measured comes after."""

    def sync(self, fd: int) -> None:
        pass

    def sync_directory(self, directory_fd: int) -> None:
        pass


async def measure_long_queue(directory: Path, messages: int) -> dict[str, object]:
    outbound = Outbound(max_queue_messages=messages + 1000)
    async with opened(directory / "long", outbound, UnsyncedDisk()) as queue:
        queue.wake = lambda: None
        for start in range(0, messages, 1000):
            await queue.enqueue([copy(n, f"d{n % 2000}.test") for n in range(start, min(start + 1000, messages))])
    first: list[float] = []

    async def attempt(attempt: Attempt) -> list[Outcome]:
        first.append(time.monotonic())
        return [Outcome(r, Result.DELIVERED, "2.0.0", "250 ok") for r in attempt.envelope.recipients]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    async with opened(directory / "long", outbound) as queue:
        manager = Manager(queue, attempt, told, told)
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.run())
            while len(first) < min(messages, 5000):
                await asyncio.sleep(0.005)
            manager.stop()
        served = len(first)
        rebuilding = time.monotonic()
        await queue.rebuild()
        rebuilt = time.monotonic() - rebuilding
    return {
        "what": "long queue",
        "messages": messages,
        "first_attempt_after_s": round(first[0] - started, 2),
        "attempts_per_s": round(served / (first[-1] - first[0])),
        "rebuild_s": round(rebuilt, 2),
        "peak_memory_growth_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1),
    }


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


async def main(directory: Path, messages: int, queued: int) -> None:
    for at_once in (1, 10, 50):
        print(json.dumps(await measure_enqueue(directory, messages, at_once)), flush=True)
    port = free_port()
    user = ["-u", "root"] if os.geteuid() == 0 else []
    sink = subprocess.Popen(["/usr/sbin/smtp-sink", *user, f"127.0.0.1:{port}", "100"])
    try:
        print(json.dumps(await measure_delivery(directory, messages, port)), flush=True)
    finally:
        sink.terminate()
        sink.wait()
    print(json.dumps(await measure_long_queue(directory, queued)), flush=True)


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--queued", type=int, default=20_000)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("/var/tmp"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as made, open(os.devnull, "w") as nowhere:
        running = log.setup(stream=nowhere)
        uvloop.run(main(Path(made), arguments.messages, arguments.queued))
        running.stop()
