"""Deliveries into the message store: messages a second and CPU a message, 4 KB each.

python benchmarks/ms_deliver.py [messages] [concurrency] [directory]
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path

from pymx.config.model import Mail
from pymx.ms.deliveries import Delivery
from pymx.ms.owner import Owner
from pymx.ms.store import Store
from pymx.proto.imap.render import render
from pymx.spool import Content

HEAD = b"".join(
    b"%s: %s\r\n" % field
    for field in (
        (b"Received", b"from client.example by mx.example.test with ESMTP; Tue, 24 Nov 2026 10:00:00 +0000"),
        (b"From", b"Alice Example <alice@example.com>"),
        (b"To", b"Bob <bob@example.test>"),
        (b"Subject", b"=?utf-8?q?a_message_of_four_kilobytes?="),
        (b"Date", b"Tue, 24 Nov 2026 10:00:00 +0000"),
        (b"Message-ID", b"<1234567890@example.com>"),
        (b"MIME-Version", b"1.0"),
        (b"Content-Type", b"text/plain; charset=utf-8"),
    )
)
MESSAGE = HEAD + b"\r\n" + b"A line of text that is about as long as lines of text are.\r\n" * 60


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(store: Store, owners: list[Owner], messages: int, concurrency: int, what: str) -> None:
    left = iter(range(messages))

    async def worker() -> None:
        for number in left:
            result = await store.deliver([Delivery(owners[number % len(owners)], "INBOX", Content.from_bytes(MESSAGE))])
            assert not isinstance(result[0], Exception), result

    for owner in owners:
        await store.deliver([Delivery(owner, "INBOX", Content.from_bytes(MESSAGE))])
    wall, cpu = time.perf_counter(), cpu_s()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    wall, cpu = time.perf_counter() - wall, cpu_s() - cpu
    print(f"{what}: {messages / wall:,.0f}/s, {cpu / messages * 1000:.3f} ms CPU each, {wall:.2f} s")


async def main() -> None:
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    concurrency = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    with tempfile.TemporaryDirectory(dir=sys.argv[3] if len(sys.argv) > 3 else ".") as path:
        for name, rendering in (("with ENVELOPE and BODYSTRUCTURE", render), ("without", None)):
            store = Store(
                Mail(root=f"{path}/{len(name)}"), render=rendering, runtime_dir=Path(path) / "run", hostname="mx.test"
            )
            await store.start()
            one = [Owner("example.test", "one")]
            await measure(store, one, messages, concurrency, f"one mailbox, {name}")
            many = [Owner("example.test", f"user{n}") for n in range(10)]
            await measure(store, many, messages, concurrency, f"ten mailboxes, {name}")
            await store.close()


if __name__ == "__main__":
    asyncio.run(main())
