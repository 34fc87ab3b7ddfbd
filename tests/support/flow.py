"""Mail in without a daemon: real listeners, directory, store and queue in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pymx.accounts import passwords
from pymx.accounts.authenticate import Authenticator
from pymx.accounts.directory import Directory
from pymx.accounts.registry import Registry
from pymx.checks.pipeline import Pipeline
from pymx.config.model import Accounts, Database, Mail, Outbound, Smtp, Submission
from pymx.mail.envelope import Listener
from pymx.mailauth.dkim.sign import Signer
from pymx.mda.deliver import Mda
from pymx.ms.store import Store
from pymx.msa.submission import Submission as SubmissionPolicy
from pymx.mta.dispatch import Dispatch
from pymx.mta.inbound import Inbound
from pymx.net.listener import Server, bind
from pymx.net.sessions import Sessions
from pymx.queue.item import Copy, QueueId
from pymx.queue.queue import Queue
from pymx.smtpd.engine import Engine

T = TypeVar("T")
HOSTNAME = "mx.example.test"
PASSWORD = "correct horse"


class Noted:
    """The queue, and a note of what went into it."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.copies: list[Copy] = []

    async def enqueue(self, copies: Sequence[Copy]) -> list[QueueId]:
        ids = await self._queue.enqueue(copies)
        self.copies.extend(copies)
        return ids


@dataclass
class MailIn:
    """The running parts. `ports` has smtp, lmtp and submissions."""

    directory: Path
    accounts: Directory
    registry: Registry
    store: Store
    queue: Queue
    dispatch: Dispatch
    inbound: Inbound
    ports: dict[str, int]
    queued: list[Copy]

    async def blocking(self, function: Callable[..., T], *args: object) -> T:
        """Run a blocking client beside the servers."""
        return await asyncio.to_thread(function, *args)

    def mailbox(self, email: str) -> list[bytes]:
        """The messages in an INBOX, as they lie on disk, oldest first."""
        local_part, _, domain = email.partition("@")
        inbox = self.directory / "vmail" / domain / local_part
        files = sorted((*inbox.glob("new/*"), *inbox.glob("cur/*")), key=lambda p: p.name)
        return [path.read_bytes() for path in files]


@contextlib.asynccontextmanager
async def mail_in(
    directory: Path,
    *,
    tls: ssl.SSLContext,
    database_url: str = "",
    smtp: Smtp | None = None,
    submission: Submission | None = None,
    outbound: Outbound | None = None,
    checks: Pipeline | None = None,
    quotas: dict[str, int] | None = None,
) -> AsyncIterator[MailIn]:
    """Accounts alice@ and bob@example.test, carol@other.test; info@example.test leads to bob and to x@far.test."""
    smtp, settings = smtp or Smtp(), Accounts(bcrypt_cost=4)
    database = Database(url=database_url or f"sqlite:///{directory}/pymx.sqlite")
    registry = Registry(database)
    for domain in ("example.test", "other.test"):
        registry.add_domain(domain)
    stored = passwords.make(PASSWORD, 4)
    for email in ("alice@example.test", "bob@example.test", "carol@other.test"):
        registry.add_user(email, stored, (quotas or {}).get(email))
    registry.add_alias("info@example.test", ["bob@example.test", "x@far.test"])

    async with contextlib.AsyncExitStack() as stack:
        stack.callback(registry.close)
        accounts = Directory(database, settings, delimiter="+", hostname=HOSTNAME)
        await accounts.start()
        stack.push_async_callback(accounts.close)
        authenticator = Authenticator(accounts, settings)
        stack.callback(authenticator.close)
        store = Store(Mail(root=str(directory / "vmail")), render=None, runtime_dir=None, hostname=HOSTNAME)
        await store.start()
        stack.push_async_callback(store.close)
        queue = Queue(directory / "queue", outbound or Outbound())
        await queue.start()
        stack.push_async_callback(queue.close)
        noted = Noted(queue)
        mda = Mda(store)
        dispatch = Dispatch(accounts, mda, noted, hostname=HOSTNAME)
        inbound = Inbound(accounts, mda, dispatch, smtp=smtp, hostname=HOSTNAME, checks=checks)
        policy = SubmissionPolicy(
            accounts,
            authenticator,
            mda,
            dispatch,
            Signer(directory / "dkim"),
            submission=submission or Submission(),
            hostname=HOSTNAME,
        )
        stack.callback(policy.close)
        sessions = Sessions()
        sessions.start()
        stack.callback(sessions.stop)
        spool = directory / "spool"
        spool.mkdir()
        common = {"hostname": HOSTNAME, "smtp": smtp, "max_message_octets": 52_428_800, "spool_dir": spool}
        engines = {
            "smtp": Engine(inbound, listener=Listener.SMTP, sessions=sessions, **common),  # type: ignore[arg-type]
            "lmtp": Engine(inbound, listener=Listener.LMTP, sessions=sessions, **common),  # type: ignore[arg-type]
            "submissions": Engine(
                policy,
                listener=Listener.SUBMISSION,
                sessions=sessions,
                tls=tls,
                implicit_tls=True,
                auth=True,
                repair_newlines=True,
                **common,  # type: ignore[arg-type]
            ),
        }
        ports: dict[str, int] = {}
        for name, engine in engines.items():
            sock = bind("127.0.0.1:0", name)
            ports[name] = sock.getsockname()[1]
            server = Server(name, sock, engine.factory, ssl=tls if name == "submissions" else None)
            await server.start()
            stack.callback(server.close)
        stack.push_async_callback(sessions.drain, 5)
        yield MailIn(directory, accounts, registry, store, queue, dispatch, inbound, ports, noted.copies)
