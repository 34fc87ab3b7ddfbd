"""Searches of texts in a large mailbox, without and with the full-text index: time, CPU and size of the index.

    .venv/bin/python benchmarks/imap_fulltext.py MAILDIR [--percent 100]

MAILDIR is linked (`cp -al`) into a directory beside it, and stays as it is; `bench.py maildir` makes one. Searches go
through the store as a session's do, in this process; the index is built as the child process does. Each search is said
with how many messages it found, and how many had to be read.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path

from pymx.config.model import Mail
from pymx.mail.search import Header, Text
from pymx.ms import fulltextbuild, search
from pymx.ms.fulltext import FullText
from pymx.ms.mailbox import Mailbox, _SearchView
from pymx.ms.mend import open_account
from pymx.ms.owner import Owner
from pymx.ms.searching import find, narrow
from pymx.ms.store import Store
from pymx.proto.imap.render import render

OWNER = Owner("example.test", "alice")
SEARCHES = {
    "BODY, a word in one of a thousand": Text("zyzzyva", headers=False),
    "TEXT, the same": Text("zyzzyva", headers=True),
    "BODY, a word that is nowhere": Text("qwertzuiop", headers=False),
    "TEXT, an address in 2 %": Text("rosa.fischer", headers=True),
    "HEADER of another field": Header("List-Id", "announce"),
    "BODY, two letters": Text("zy", headers=False),
    "BODY, a word in two thirds": Text("invoice", headers=False),
}


async def measure(directory: Path, percent: int) -> None:
    mail = Mail(root=str(directory), fulltext_max_percent=percent)
    store = Store(mail, render=render, runtime_dir=None, hostname="mx.test")
    await store.start()
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    async for _ in mailbox.rows(mailbox.uids):
        pass
    print(f"{len(mailbox.uids)} messages")
    for name, criterion in SEARCHES.items():
        timed(mailbox, f"without: {name}", criterion, use=False)
    account = open_account(mail, OWNER, "mx.test")
    started, cpu = time.perf_counter(), time.process_time()
    built = fulltextbuild.Builder(account, max_percent=percent).run()
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    octets, _ = account.usage()
    account.close()
    share, size = 100 * built.size_octets / octets, built.size_octets / 1e6
    print(f"built: {built.messages} messages, {took:.1f} s, CPU {cpu:.1f} s, {size:.1f} MB, {share:.0f} % of the mail")
    for name, criterion in SEARCHES.items():
        timed(mailbox, f"with: {name}", criterion, use=True)
    mailbox.close()
    await store.close()
    index = os.fsencode(directory / OWNER.domain / OWNER.local_part / "pymx.index")
    print(fulltextbuild.stats(FullText(index, 0o600)))


def timed(mailbox: Mailbox, name: str, criterion: search.Criterion, *, use: bool) -> None:
    best, found, read = 1e9, 0, 0
    for _ in range(3 if use else 1):
        view = _SearchView(mailbox)
        started = time.perf_counter()
        narrowing = narrow(mailbox._box, mailbox._guid, mailbox.uidvalidity, criterion, view.uids) if use else None
        result = find(mailbox._box, mailbox._low, criterion, view, render, lambda: False, narrowing)
        best = min(best, time.perf_counter() - started)
        found = len(result)
        if narrowing is not None and narrowing.possible:
            read = min(len(possible.intersection(view.uids)) for possible in narrowing.possible.values())
        else:
            read = len(view.uids)
    print(f"{name:45} {best:8.3f} s  found {found:6}  read {read:6}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maildir", type=Path)
    parser.add_argument("--percent", type=int, default=30)
    arguments = parser.parse_args()
    directory = arguments.maildir.resolve().parent / "imap_fulltext"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / OWNER.domain).mkdir(parents=True)
    subprocess.run(["cp", "-al", str(arguments.maildir), str(directory / OWNER.domain / OWNER.local_part)], check=True)
    asyncio.run(measure(directory, arguments.percent))


if __name__ == "__main__":
    main()
