"""A process of the server at its first start: opens one of its small databases again and again, each time a new one,
whenever it is told to (a directory on standard input), and says how that went."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import make_url, text

from pymx.accounts.banrules import Rules
from pymx.accounts.database import writing_engine
from pymx.accounts.limitstate import FILE_NAME, LimitState
from pymx.accounts.senders import Senders
from pymx.config.model import Limits, Outbound
from pymx.junk.greylist import Greylist, Times
from pymx.junk.notebook import NAME, Notebook
from pymx.queue.queue import Queue
from pymx.reports.store import Store


def _accounts(directory: Path) -> None:
    engine = writing_engine(make_url(f"sqlite:///{directory}/pymx.sqlite"), 20)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()


def _greylist(directory: Path) -> None:
    greylist = Greylist(directory / "greylist.sqlite", Times(60, 600, 6000))
    greylist.may_pass("192.0.2.0/24", "a@example.org", "b@example.com", 1000.0)
    greylist.close()


def _limits(directory: Path) -> None:
    LimitState(directory / FILE_NAME, Rules.of(Limits())).close()


def _notebook(directory: Path) -> None:
    notebook = Notebook(directory / NAME, make=True, max_tokens=1000)
    notebook.learn(7, [1, 2, 3], spam=True, now=1000.0)
    notebook.close()


def _queue(directory: Path) -> None:
    async def start() -> None:
        queue = Queue(directory / "queue", Outbound())
        await queue.start()
        await queue.close()

    asyncio.run(start())


def _reports(directory: Path) -> None:
    store = Store(directory / "reports.sqlite", max_octets=1 << 20)
    store.received()
    store.close()


def _senders(directory: Path) -> None:
    senders = Senders(directory / "forwarding.sqlite", max_senders=100)
    asyncio.run(senders.find("token"))
    senders.close()


OPEN: dict[str, tuple[str, Callable[[Path], None]]] = {
    "accounts": ("pymx.sqlite", _accounts),
    "greylist": ("greylist.sqlite", _greylist),
    "limits": (FILE_NAME, _limits),
    "notebook": (NAME, _notebook),
    "queue": ("queue/state.sqlite", _queue),
    "reports": ("reports.sqlite", _reports),
    "senders": ("forwarding.sqlite", _senders),
}


def main(name: str) -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            OPEN[name][1](Path(line.strip()))
        except Exception as e:  # told to the test, which compares
            print(f"{type(e).__name__}: {e}", flush=True)
        else:
            print("open", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
