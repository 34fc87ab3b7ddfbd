"""The mail that tells a user that the mailbox is nearly full, put straight into INBOX.

It takes no other way than the store's: no queue, no filter, no forwarding, and no limit either, so that it arrives in a
mailbox that has no room for a message any more. It counts like any other message, and asks for no further warning.
"""

from __future__ import annotations

import asyncio
import secrets
import time

from pymx import log
from pymx.mail.date import format_date
from pymx.mail.header import build_field
from pymx.ms.deliveries import Delivery
from pymx.ms.errors import StoreError
from pymx.ms.owner import Owner
from pymx.ms.quota import Crossing, percent
from pymx.ms.store import Store
from pymx.spool import Content

_TEXT = """\
Your mailbox {email} is {percent} % full:

{use}
When it is full, messages to you are refused, and the senders are told so. To make room, delete messages that you do
not need any more, large ones first, and empty the trash.

This notice is sent by the mail server when {levels} % are reached, once each.
"""
_log = log.get("mda")


class QuotaNotices:
    """Writes and delivers the notices; `close` waits for those under way."""

    def __init__(self, store: Store, *, hostname: str) -> None:
        self._store = store
        self._hostname = hostname
        self._under_way: set[asyncio.Task[None]] = set()
        store.quota_crossed = self._crossed

    async def close(self) -> None:
        await asyncio.gather(*self._under_way)

    def _crossed(self, owner: Owner, crossing: Crossing) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver(owner, crossing))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _deliver(self, owner: Owner, crossing: Crossing) -> None:
        """Never fails: what keeps it from being delivered is in the log."""
        content = notice(owner, crossing, hostname=self._hostname, now=time.time())
        (result,) = await self._store.deliver([Delivery(owner, "INBOX", content, exempt=True)])
        if isinstance(result, StoreError):
            _log.error("quota_notice_failed", account=owner.email, reason=result.reason or str(result))
        else:
            _log.info("quota_notice_delivered", account=owner.email, reason=f"{crossing.level} % reached")


def notice(owner: Owner, crossing: Crossing, *, hostname: str, now: float) -> Content:
    usage, use = crossing.usage, ""
    if owner.quota_octets:
        use += f"    {_mib(usage.octets)} of {_mib(owner.quota_octets)} MB\n"
    if owner.quota_messages:
        use += f"    {usage.messages} of {owner.quota_messages} messages\n"
    full = int(percent(owner, usage))
    text = _TEXT.format(email=owner.email, percent=full, use=use, levels="80 and 95")
    head = b"".join(
        build_field(name, value)
        for name, value in (
            ("Return-Path", "<>"),
            ("Delivered-To", owner.email),
            ("From", f"Mail server <postmaster@{hostname}>"),
            ("To", owner.email),
            ("Subject", f"Your mailbox is {full} % full"),
            ("Date", format_date(now)),
            ("Message-ID", f"<{secrets.token_hex(12)}@{hostname}>"),
            ("Auto-Submitted", "auto-generated"),  # RFC 3834 s. 5
            ("MIME-Version", "1.0"),
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Transfer-Encoding", "8bit"),
        )
    )
    return Content.from_bytes(head + b"\r\n" + text.replace("\n", "\r\n").encode())


def _mib(octets: int) -> str:
    return f"{octets / 1048576:.1f}"
