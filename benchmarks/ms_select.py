"""SELECT, FETCH rows, STORE, COPY and EXPUNGE on one mailbox of many messages.

python benchmarks/ms_select.py [messages] [directory]
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from pymx.config.model import Mail
from pymx.ms.mailbox import Mailbox
from pymx.ms.owner import Owner
from pymx.ms.store import Store


def fill(directory: Path, messages: int) -> None:
    """A Maildir as another server left it: files and uidlist, no index."""
    for part in ("cur", "new", "tmp"):
        (directory / part).mkdir(parents=True)
    text = b"Subject: x\n\nbody\n"
    first = directory / "tmp" / "first"
    first.write_bytes(text)
    lines = [f"3 V1700000000 N{messages + 1} G{'ab' * 16}\n"]
    links = 0
    for uid in range(1, messages + 1):
        if links == 30_000:
            first = directory / "tmp" / f"first{uid}"
            first.write_bytes(text)
            links = 0
        links += 1
        base = f"1700000000.M{uid:06d}P1Q{uid}.mx,S={len(text)},W={len(text) + 3}"
        os.link(first, directory / "cur" / f"{base}:2,S")
        lines.append(f"{uid} :{base}\n")
    (directory / "dovecot-uidlist").write_text("".join(lines))


async def timed(what: str, work: object) -> object:
    start = time.perf_counter()
    result = await work  # type: ignore[misc]
    print(f"{what}: {(time.perf_counter() - start) * 1000:,.1f} ms")
    return result


async def fetch(mailbox: Mailbox) -> int:
    count = 0
    async for batch in mailbox.rows(mailbox.uids):
        count += len(batch)
    return count


async def main() -> None:
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    owner = Owner("example.test", "alice")
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else ".") as path:
        fill(Path(path) / "mail" / "example.test" / "alice", messages)
        for what in ("without index", "another process"):
            store = Store(Mail(root=f"{path}/mail"), render=None, runtime_dir=Path(path) / "run", hostname="mx.test")
            await store.start()
            mailbox = await timed(f"SELECT {what}", store.open(owner, "INBOX", read_only=False))
            assert isinstance(mailbox, Mailbox)
            for again in range(2):
                other = await timed(f"  again {again}", store.open(owner, "INBOX", read_only=False))
                assert isinstance(other, Mailbox)
                other.close()
            await timed("  refresh, nothing new", mailbox.refresh())
            await timed("  rows of all", fetch(mailbox))
            await timed("  rows of all again", fetch(mailbox))
            if what == "another process":
                await timed("  STORE +FLAGS \\Flagged, all", mailbox.store_flags(mailbox.uids, "add", 4, []))
                await timed("  refresh", mailbox.refresh())
                await timed("  STORE +FLAGS \\Deleted, 1,000", mailbox.store_flags(mailbox.uids[:1000], "add", 8, []))
                await timed("  EXPUNGE 1,000", mailbox.expunge(None))
                await timed("  refresh", mailbox.refresh())
                await store.create(owner, "Copies")
                await timed("  COPY 1,000", mailbox.copy(mailbox.uids[:1000], "Copies"))
            mailbox.close()
            await store.close()


if __name__ == "__main__":
    asyncio.run(main())
