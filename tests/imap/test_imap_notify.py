"""NOTIFY (RFC 5465) where it is more than a dialogue: other processes and programs, limits, and what is left behind."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from imap_rig import ALICE, running
from support.tls import TlsFiles
from support.wait import wait_until

from pymx.config.model import Imap, Mail
from pymx.imapd.client import Client
from pymx.imapd.namespace import Namespace
from pymx.imapd.notify import Notifications
from pymx.ms.deliveries import Delivered, Delivery
from pymx.ms.store import Store
from pymx.proto.imap.commands.notify import EventGroup
from pymx.proto.imap.render import render
from pymx.spool import Content

MESSAGE = b"From: a@example.test\r\nSubject: hello\r\n\r\nText\r\n"
EVERYTHING = "MessageNew MessageExpunge FlagChange"


async def test_what_another_process_does_is_told_at_once(tmp_path: Path, tls_files: TlsFiles) -> None:
    """A worker tells what the runner or another worker delivered, made and subscribed, by hints alone."""
    runtime = tmp_path / "run"
    async with running(tmp_path, tls_files, runtime_dir=runtime) as rig:
        other = Store(Mail(root=str(tmp_path / "mail")), render=render, runtime_dir=runtime, hostname="mx.example.test")
        await other.start()
        client = await rig.login()
        await client.ok("SELECT Sent")
        await client.ok(f"NOTIFY SET (selected {EVERYTHING}) (personal {EVERYTHING} MailboxName SubscriptionChange)")
        before = time.monotonic()
        (done,) = await other.deliver([Delivery(ALICE, "INBOX", Content.from_bytes(MESSAGE))])
        assert isinstance(done, Delivered)
        assert await client.line() == b"* STATUS INBOX (MESSAGES 1 UIDNEXT 2)"
        await other.deliver([Delivery(ALICE, "Sent", Content.from_bytes(MESSAGE))])
        assert await client.line() == b"* 1 EXISTS"
        assert await client.line() == b"* 1 RECENT"
        await other.create(ALICE, "Made")
        assert await client.line() == b'* LIST () "." Made'
        assert (await client.line()).startswith(b"* STATUS Made (MESSAGES 0 UIDNEXT 1 ")
        await other.subscribe(ALICE, "Made")
        assert await client.line() == b'* LIST (\\Subscribed) "." Made'
        assert time.monotonic() - before < 10, "not by hints, but by the poll behind them"
        await client.close()
        await other.close()


async def test_what_other_programs_deliver_is_told(tmp_path: Path, tls_files: TlsFiles) -> None:
    """A file put into `new/` of a mailbox that nobody has selected."""
    async with running(tmp_path, tls_files) as rig:
        client = await rig.login()
        await client.ok(f"NOTIFY SET STATUS (mailboxes Junk {EVERYTHING})")
        box = tmp_path / "mail" / "example.test" / "alice" / ".Junk"
        (box / "tmp" / "1.x").write_bytes(MESSAGE.replace(b"\r\n", b"\n"))
        (box / "tmp" / "1.x").rename(box / "new" / "1.x")
        assert (await client.line()).startswith(b"* STATUS Junk (MESSAGES 1 UIDNEXT 2")
        await client.close()


async def test_too_many_mailboxes_are_refused_and_end_what_grows_too_large(tmp_path: Path, tls_files: TlsFiles) -> None:
    """RFC 5465 s. 5.8: memory is bounded, and the client knows that it is told no more."""
    async with running(tmp_path, tls_files, imap=Imap(max_notify_mailboxes=7)) as rig:
        client, other = await rig.login(), await rig.login()
        await client.ok(f"NOTIFY SET (personal {EVERYTHING})")
        await other.ok("CREATE Seven")
        assert (await client.line()).startswith(b"* STATUS Seven (MESSAGES 0")
        await rig.deliver(MESSAGE, "Seven")
        assert (await client.line()).startswith(b"* STATUS Seven (MESSAGES 1")
        await other.ok("CREATE Eight")
        assert (await client.line()).startswith(b"* OK [NOTIFICATIONOVERFLOW]")
        await rig.deliver(MESSAGE)
        assert len(await client.ok("NOOP")) == 1
        assert (await client.ask(f"NOTIFY SET (personal {EVERYTHING})"))[-1].startswith(b"NO [NOTIFICATIONOVERFLOW]")
        await client.ok(f"NOTIFY SET (mailboxes INBOX {EVERYTHING})")
        await rig.deliver(MESSAGE)
        assert (await client.line()).startswith(b"* STATUS INBOX (MESSAGES 2 UIDNEXT 3")
        await client.close()
        await other.close()


async def test_many_changes_are_few_responses(tmp_path: Path, tls_files: TlsFiles) -> None:
    """What happens while a client does not read is told as the state it led to."""
    async with running(tmp_path, tls_files) as rig:
        client = await rig.login()
        await client.ok(f"NOTIFY SET (personal {EVERYTHING})")
        items = [Delivery(ALICE, "INBOX", Content.from_bytes(MESSAGE)) for _ in range(60)]
        await rig.store.deliver(items)
        lines = 0
        while b"MESSAGES 60 " not in await client.line():
            lines += 1
        assert lines < 60
        await client.close()


async def test_nothing_is_left_of_a_session_that_ends(tmp_path: Path, tls_files: TlsFiles) -> None:
    """No callback, no watch, no mailbox held: also of one that asked several times."""
    async with running(tmp_path, tls_files) as rig:
        client = await rig.select()
        for _ in range(3):
            await client.ok(f"NOTIFY SET STATUS (selected {EVERYTHING}) (personal {EVERYTHING} MailboxName)")
        assert rig.store.hints._callbacks
        assert rig.store.watch._boxes
        await client.close()
        await wait_until(lambda: not rig.store.hints._callbacks and not rig.store.watch._boxes)


async def test_idle_and_compression_go_together_with_it(tmp_path: Path, tls_files: TlsFiles) -> None:
    """RFC 5465 s. 4: in IDLE it is the same, and after DONE it goes on."""
    async with running(tmp_path, tls_files) as rig:
        client, other = await rig.select(), await rig.select()
        await client.ok(f"NOTIFY SET (selected-delayed {EVERYTHING}) (mailboxes Sent {EVERYTHING})")
        client.send(b"i IDLE\r\n")
        assert await client.line() == b"+ idling"
        await rig.deliver(MESSAGE, "Sent")
        assert (await client.line()).startswith(b"* STATUS Sent (MESSAGES 1 UIDNEXT 2")
        await other.append(MESSAGE, flags="\\Deleted")
        assert [await client.line(), await client.line()] == [b"* 1 EXISTS", b"* 1 RECENT"]
        await other.ok("EXPUNGE")
        assert await client.line() == b"* 1 EXPUNGE"
        client.send(b"DONE\r\n")
        assert (await client.answer("i"))[-1].startswith(b"OK")
        await rig.deliver(MESSAGE, "Sent")
        assert (await client.line()).startswith(b"* STATUS Sent (MESSAGES 2 UIDNEXT 3")
        await client.close()
        await other.close()


async def test_new_messages_come_with_their_modseq_once_condstore_is_enabled(
    tmp_path: Path, tls_files: TlsFiles
) -> None:
    """RFC 7162 s. 3.1: all FETCH responses that others cause have it."""
    async with running(tmp_path, tls_files) as rig:
        client = await rig.select()
        await client.ok("ENABLE CONDSTORE")
        await client.ok("NOTIFY SET (selected (MessageNew (UID) MessageExpunge))")
        await rig.deliver(MESSAGE)
        assert [await client.line() for _ in range(2)] == [b"* 1 EXISTS", b"* 1 RECENT"]
        assert (await client.line()).startswith(b"* 1 FETCH (UID 1 MODSEQ (")
        await client.close()


async def test_sessions_that_watch_many_mailboxes_share_them(tmp_path: Path, tls_files: TlsFiles) -> None:
    """Also of an account with more mailboxes than are kept for nobody; the lock of a mailbox is one for all."""
    async with running(tmp_path, tls_files) as rig:
        for n in range(205):
            await rig.store.create(ALICE, f"Box{n}")
        clients = [await rig.login() for _ in range(2)]
        for client in clients:
            await client.ok(f"NOTIFY SET (personal {EVERYTHING} MailboxName)")
        watched = [box.name for box in rig.store.watch._boxes]
        assert len(watched) == len(set(watched)) == 211
        for client in clients:
            await client.close()


async def test_message_that_cannot_be_fetched_as_asked_ends_nothing(tmp_path: Path, tls_files: TlsFiles) -> None:
    """RFC 3516 s. 4.3: a part that can't be decoded is refused, here untagged; what follows is told as asked."""
    strange = MESSAGE.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: x-strange\r\n\r\n")
    async with running(tmp_path, tls_files) as rig:
        client = await rig.select()
        await client.ok("NOTIFY SET (selected (MessageNew (BINARY[1]) MessageExpunge))")
        await rig.deliver(strange)
        assert [await client.line() for _ in range(2)] == [b"* 1 EXISTS", b"* 1 RECENT"]
        assert (await client.line()).startswith(b"* NO [UNKNOWN-CTE]")
        await rig.deliver(MESSAGE)
        assert [await client.line() for _ in range(2)] == [b"* 2 EXISTS", b"* 2 RECENT"]
        assert await client.line() == b"* 2 FETCH (BINARY[1] {6}\r\nText\r\n)"
        await client.close()


def test_asking_for_many_names_takes_no_time_for_each_mailbox() -> None:
    """Wishes of 64 KB meet each of an account's mailboxes, in the loop that serves everybody."""
    groups = [EventGroup(scope, tuple(f"q{n}" for n in range(1000)), frozenset()) for scope in ("MAILBOXES", "SUBTREE")]
    wanted = Notifications(cast(Client, SimpleNamespace(namespace=Namespace("", "."))), groups * 14)
    before = time.process_time()
    for n in range(1000):
        assert wanted._events(f"Box{n}.below.it", subscribed=True) == frozenset()
    assert time.process_time() - before < 1
