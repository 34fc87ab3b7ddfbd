"""The child process that does slow work on mailboxes: `python -m pymx.app.upkeep`, started by the runner or by hand.

Reads one JSON object (`Task`) from standard input, gives itself the lowest priority, does the work and ends; what it
did is one JSON line (`Report`) on standard output. It may be killed at any moment.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec

from pymx.config.model import Mail
from pymx.ms import prerender
from pymx.ms.account import Account
from pymx.ms.errors import StoreError
from pymx.ms.fulltextbuild import Builder
from pymx.ms.mend import open_account
from pymx.ms.owner import Owner
from pymx.proto.imap.render import render

NICE = 19


class Task(msgspec.Struct, frozen=True):
    """What to do."""

    mail: Mail
    hostname: str
    email: str
    render: str = ""  # GUID of a mailbox whose messages are to be rendered; else the full-text index is built


class Report(msgspec.Struct, frozen=True):
    """What was done."""

    messages: int = 0
    left_out: int = 0
    dropped: int = 0
    size_octets: int = 0
    full: bool = False
    cpu_s: float = 0.0
    refused: str = ""
    error: str = ""


def work(task: Task) -> Report:
    local_part, _, domain = task.email.rpartition("@")
    account = open_account(task.mail, Owner(domain, local_part), task.hostname)
    try:
        if task.render:
            return Report(_rendered(account, task.render), cpu_s=time.process_time())
        built = Builder(account, max_percent=task.mail.fulltext_max_percent).run()
    except StoreError as error:
        return Report(error=error.reason or str(error))
    finally:
        account.close()
    return Report(
        built.messages, built.left_out, built.dropped, built.size_octets, built.full, time.process_time(), built.refused
    )


def _rendered(account: Account, guid: str) -> int:
    """How many messages were rendered."""

    def work() -> int:
        for levels in account.layout.mailboxes(account.home.root):
            if account.guid(levels) == guid:
                return prerender.run(account.box(levels), render)
        return 0

    return account.call(work)


def main() -> int:
    os.nice(NICE)
    report = work(msgspec.json.decode(sys.stdin.buffer.read(), type=Task))
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    return 1 if report.error else 0


if __name__ == "__main__":
    sys.exit(main())
