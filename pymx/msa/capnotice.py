"""The mail that tells the postmaster that an account has met its sending caps: a stolen password, or a newsletter."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable

from pymx import log
from pymx.accounts.account import Account
from pymx.mail.address import Address
from pymx.mail.date import format_date
from pymx.mail.envelope import Envelope, Origin, Recipient
from pymx.mail.header import build_field
from pymx.proto.smtp.reply import SmtpError
from pymx.spool import Content

Submit = Callable[[Envelope, Content], Awaitable[object]]

_TEXT = """\
The account {account} may send nothing more for now:

    {reason}

If its user did not mean to send that much, somebody else has the password:

    pymxctl user passwd {account} --password-stdin     another password; all sessions end
    pymxctl queue list                                 what still waits for delivery
    pymxctl bans explain {account}                     where it was logged in from, and what it sent

If it is all right, raise account_messages_per_day or account_new_recipients_per_day in [limits]. This notice comes once
in 24 hours.
"""

_log = log.get("msa")


class CapNotice:
    """Writes and submits the notice."""

    def __init__(self, submit: Submit, *, hostname: str) -> None:
        self._submit = submit
        self._hostname = hostname

    async def __call__(self, account: Account, reason: str) -> None:
        """Never fails: what keeps it from being sent is in the log."""
        to = Address("postmaster", account.domain)
        text = _TEXT.format(account=account.email, reason=reason)
        head = b"".join(
            build_field(name, value)
            for name, value in (
                ("From", f"Mail server <postmaster@{self._hostname}>"),
                ("To", str(to)),
                ("Subject", f"{account.email} has sent as much as it may"),
                ("Date", format_date(time.time())),
                ("Message-ID", f"<{secrets.token_hex(12)}@{self._hostname}>"),
                ("Auto-Submitted", "auto-generated"),  # RFC 3834 s. 5
                ("MIME-Version", "1.0"),
                ("Content-Type", "text/plain; charset=utf-8"),
                ("Content-Transfer-Encoding", "8bit"),
            )
        )
        content = Content.from_bytes(head + b"\r\n" + text.replace("\n", "\r\n").encode())
        envelope = Envelope(
            mail_from=None,
            recipients=(Recipient(to, frozenset({"NEVER"})),),
            origin=Origin(),
            body="8BITMIME",
            smtputf8=not content.head.isascii(),
        )
        try:
            await self._submit(envelope, content)
        except SmtpError as e:
            _log.error("cap_notice_failed", account=account.email, rcpt_to=str(to), reason=e.reason)
