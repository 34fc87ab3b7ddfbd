"""A message that failed leaves the queue, whatever state the mailbox of its sender is in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.flow import HOSTNAME, MailIn, mail_in
from support.tls import TlsFiles
from support.wait import wait_until

from pymx.mail.address import parse_address
from pymx.mail.envelope import Envelope, Listener, Origin, Recipient
from pymx.mta.bounce import Bounce
from pymx.queue.item import Attempt, Copy, Outcome, Result, new_queue_id
from pymx.queue.manager import Manager
from pymx.spool import Content

ALICE = "alice@example.test"


def waiting(sender: str, to: str, *, local: bool = False) -> Copy:
    account = sender if sender.endswith("@example.test") else ""
    envelope = Envelope(
        parse_address(sender),
        (Recipient(parse_address(to)),),
        Origin(Listener.SUBMISSION if account else Listener.SMTP, account=account),
    )
    return Copy(new_queue_id(), envelope, Content(b"Subject: hi\r\n", b"\r\nx\r\n"), local)


async def refused(attempt: Attempt) -> list[Outcome]:
    return [Outcome(r, Result.FAILED, "5.1.1", "550 5.1.1 no such user") for r in attempt.envelope.recipients]


@asynccontextmanager
async def running(flow: MailIn) -> AsyncIterator[None]:
    """The runner; every remote refuses."""

    async def submit(envelope: Envelope, content: Content) -> None:
        await flow.dispatch.submit(envelope, content)

    bounce = Bounce(submit, hostname=HOSTNAME)
    manager = Manager(
        flow.queue,
        refused,
        bounce.gave_up,
        bounce.delayed,
        local_attempt=lambda a: flow.dispatch.deliver_queued(a.queue_id, a.envelope, a.content),
    )
    task = asyncio.create_task(manager.run())
    try:
        yield
    finally:
        manager.stop()
        await task


def queued(flow: MailIn) -> set[str]:
    return {path.name for path in (flow.directory / "queue" / "messages").iterdir()}


async def test_mail_of_a_removed_user_does_not_wait_for_ever(tmp_path: Path, tls_files: TlsFiles) -> None:
    """The account is gone when the remote refuses: there is nobody to tell, now or later."""
    async with mail_in(tmp_path, tls=tls_files.server_context()) as flow:
        await flow.queue.enqueue([waiting("gone@example.test", "x@far.test")])
        async with running(flow):
            await wait_until(lambda: not queued(flow))


async def test_mail_of_a_user_over_quota_is_done_with_and_the_report_waits(tmp_path: Path, tls_files: TlsFiles) -> None:
    """Else the remote would be asked again and again for as long as the mailbox is full."""
    async with mail_in(tmp_path, tls=tls_files.server_context(), quotas={ALICE: 10}) as flow:
        message = waiting(ALICE, "x@far.test")
        await flow.queue.enqueue([message])
        async with running(flow):
            await wait_until(lambda: queued(flow) and message.queue_id not in queued(flow))
        (copy,) = [copy for copy in flow.queued if copy.local]
        assert [str(r.address) for r in copy.envelope.recipients] == [ALICE]
        assert copy.envelope.mail_from is None


@pytest.mark.parametrize("domain", ["example.test", "moved.test"])
async def test_undeliverable_mail_stays_here_although_its_domain_moved_away(
    tmp_path: Path, tls_files: TlsFiles, domain: str
) -> None:
    """It was accepted for a mailbox here; the postmaster of this server gets it, not whoever has the domain now."""
    async with mail_in(tmp_path, tls=tls_files.server_context()) as flow:
        await flow.queue.enqueue([waiting("x@far.test", f"gone@{domain}", local=True)])
        async with running(flow):
            await wait_until(lambda: flow.mailbox(ALICE))
        assert not flow.queued
        assert f"X-Pymx-Undeliverable: gone@{domain}".encode() in flow.mailbox(ALICE)[0]
