"""A mailbox of one's own at another server, over IMAP with TLS: is a message with a certain word in it yet?

Looked into are INBOX and the folder for junk, by its special use or its usual names.
"""

from __future__ import annotations

import imaplib
import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

_TIMEOUT_S = 30
_JUNK = ("junk", "spam", "bulk", "junk e-mail", "[gmail]/spam")


class MailboxError(Exception):
    """The mailbox can't be read. `usage`: because of what was typed."""

    def __init__(self, text: str, *, usage: bool = False) -> None:
        super().__init__(text)
        self.usage = usage


@dataclass(frozen=True, slots=True)
class Found:
    mailbox: str
    header: bytes


class Elsewhere:
    """`url` is imaps://user@host[:port]; the @ of the user may be written as %40."""

    def __init__(self, url: str, password: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "imaps" or not parts.hostname or not parts.username:
            raise MailboxError(f"{url!r}: expected imaps://user@host", usage=True)
        user, host = parts.netloc.rpartition("@")[0].partition(":")[0], parts.hostname
        try:
            self._client = imaplib.IMAP4_SSL(
                host, parts.port or 993, ssl_context=ssl.create_default_context(), timeout=_TIMEOUT_S
            )
        except (OSError, imaplib.IMAP4.error) as e:
            raise MailboxError(f"{host} can't be reached: {e}") from None
        try:
            self._client.login(unquote(user), password)
        except (OSError, imaplib.IMAP4.error) as e:
            self._client.shutdown()
            raise MailboxError(f"{host} refuses the login of {unquote(user)}: {e}") from None

    def close(self) -> None:
        try:
            self._client.logout()
        except (OSError, imaplib.IMAP4.error):
            self._client.shutdown()

    def find(self, word: str) -> Found | None:
        """The header of the message whose Subject has `word`. Raises MailboxError."""
        try:
            for mailbox in ("INBOX", *self._junk()):
                status, _ = self._client.select(f'"{mailbox}"', readonly=True)
                if status != "OK":
                    continue
                _, found = self._client.uid("SEARCH", "SUBJECT", f'"{word}"')
                uids = (found[0] or b"").split() if found else []
                if uids:
                    _, parts = self._client.uid("FETCH", uids[-1].decode(), "(BODY.PEEK[HEADER])")
                    header = next((part[1] for part in parts if isinstance(part, tuple)), b"")
                    return Found(mailbox, bytes(header))
        except (OSError, imaplib.IMAP4.error) as e:
            raise MailboxError(f"the mailbox can't be read: {e}") from None
        return None

    def _junk(self) -> list[str]:
        _, listed = self._client.list()
        found = []
        for line in listed or ():
            if not isinstance(line, bytes):
                continue
            text = line.decode("utf-8", "replace")
            attributes, _, rest = text.partition(")")
            name = rest.strip().split(" ", 1)[-1].strip('"')
            if "\\junk" in attributes.lower() or name.lower().rpartition("/")[2] in _JUNK or name.lower() in _JUNK:
                found.append(name)
        return found
