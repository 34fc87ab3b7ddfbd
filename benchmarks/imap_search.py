"""SEARCH, SORT and THREAD in numbers, on a mailbox that another program wrote.

    .venv/bin/python benchmarks/imap_search.py [MESSAGES]

Writes a Maildir beside this file (not in memory), opens it with an empty index, and asks the store as a session would,
in one process and without a network. "first" reads headers and makes what the index keeps; "again" is the median of
five. Prints one line per figure, with the process's CPU.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import date
from email.utils import formatdate
from pathlib import Path

from pymx.config.model import Mail
from pymx.mail import flags, search
from pymx.ms.owner import Owner
from pymx.ms.store import Store
from pymx.proto.imap.commands.thread import thread_list
from pymx.proto.imap.render import render

OWNER = Owner("example.test", "alice")
WORDS = "meeting invoice budget server release customer order question report version summary delivery".split()  # noqa: SIM905
FIRST, LAST = ("ann", "bob", "cleo", "dan", "eve", "fay"), ("lee", "ray", "kim", "fox", "may")
PEOPLE = [f"{first}.{last}" for first in FIRST for last in LAST]


def mailbox(count: int) -> Iterator[tuple[int, str, bytes]]:
    """(time, flags, message with LF line ends): threads of all sizes, one unread message in twelve."""
    chance = random.Random(1)
    threads: list[tuple[str, list[str]]] = []
    for number in range(count):
        who, when = chance.choice(PEOPLE), 1_500_000_000 + number * 1000
        own = f"<{number}.{chance.getrandbits(40):x}@shop.example>"
        references: list[str] = []
        if threads and chance.random() < 0.55:
            subject, ids = chance.choice(threads[-40:])
            references = ids[-12:]
            ids.append(own)
            subject = "Re: " + subject
        else:
            subject = " ".join(chance.choices(WORDS, k=4)).capitalize()
            threads.append((subject, [own]))
        head = [
            f"Return-Path: <{who}@shop.example>",
            f"Received: from mx.shop.example ([192.0.2.1])\n\tby mx.example.test; {formatdate(when)}",
            f'From: "{who.title()}" <{who}@shop.example>',
            f"To: Alice <alice@example.test>, {chance.choice(PEOPLE)}@shop.example",
            f"Subject: {subject}",
            f"Date: {formatdate(when - chance.randrange(300))}",
            f"Message-ID: {own}",
        ]
        if references:
            head += [f"In-Reply-To: {references[-1]}", "References: " + "\n ".join(references)]
        body = " ".join(chance.choices(WORDS, k=chance.randrange(20, 300)))
        yield when, "" if chance.random() < 0.08 else "S", ("\n".join(head) + "\n\n" + body + "\n").encode()


def write(maildir: Path, count: int) -> None:
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True)
    for number, (when, letters, message) in enumerate(mailbox(count)):
        wire = len(message) + message.count(b"\n")
        name = f"{when}.M{number:06d}P1.other,S={len(message)},W={wire}:2,{letters}"
        (maildir / "cur" / name).write_bytes(message)


async def timed(what: str, run: Callable[[], Awaitable[object]], *, times: int = 5) -> None:
    walls, cpus, found = [], [], 0
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        result = await run()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        found = len(result) if isinstance(result, (list, bytes)) else 0
    print(
        f"{what:44} {statistics.median(walls) * 1e3:10.1f} ms   CPU {statistics.median(cpus) * 1e3:10.1f} ms"
        f"   {found:8} {'octets' if isinstance(result, bytes) else 'found'}"
    )


async def measure(root: Path) -> None:
    store = Store(Mail(root=str(root)), render=render, runtime_dir=None, hostname="localhost")
    await store.start()
    started = time.perf_counter()
    box = await store.open(OWNER, "INBOX", read_only=True)
    print(f"{'open, empty index':44} {(time.perf_counter() - started) * 1e3:10.1f} ms   {len(box.uids)} messages")

    async def threads(algorithm: str) -> bytes:
        return thread_list(await box.threads(box.uids, algorithm), int)

    sender = search.Header("From", "ann.lee")
    await timed("SEARCH FROM, first", lambda: box.search(sender), times=1)
    await timed("SEARCH FROM, again", lambda: box.search(sender))
    await timed("SEARCH SUBJECT", lambda: box.search(search.Header("Subject", "invoice")))
    await timed("SEARCH NOT TO", lambda: box.search(search.Not(search.Header("To", "bob"))))
    await timed("SEARCH SENTSINCE", lambda: box.search(search.Date("sent", "since", date(2019, 1, 1))))
    await timed("SEARCH UNSEEN", lambda: box.search(search.Flags(flags.SEEN, want=False)))
    await timed("SEARCH UNSEEN FROM", lambda: box.search(search.And((search.Flags(flags.SEEN, want=False), sender))))
    await timed("SORT (ARRIVAL), first (reads dates)", lambda: box.sort(box.uids, [("ARRIVAL", False)]), times=1)
    for name in ("ARRIVAL", "DATE", "SUBJECT", "FROM", "DISPLAYFROM"):
        await timed(f"SORT ({name})", lambda name=name: box.sort(box.uids, [(name, False)]))  # type: ignore[misc]
    await timed("SORT (SUBJECT REVERSE DATE)", lambda: box.sort(box.uids, [("SUBJECT", False), ("DATE", True)]))
    for name in ("ORDEREDSUBJECT", "REFERENCES", "REFS"):
        await timed(f"THREAD {name}", lambda name=name: threads(name))  # type: ignore[misc]
    print(f"index: {sum(p.stat().st_size for p in root.rglob('pymx.index*')) / 1e6:.1f} MB")
    box.close()
    await store.close()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    root = Path(tempfile.mkdtemp(prefix="search-bench-", dir=Path(__file__).parent))
    try:
        write(root / OWNER.domain / OWNER.local_part, count)
        asyncio.run(measure(root))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
