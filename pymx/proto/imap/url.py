"""IMAP URLs of messages and their parts (RFC 5092), as CATENATE takes them (RFC 4469 s. 4).

Absolute (`imap://user@host/mailbox/;UID=1`), from the root (`/mailbox;UIDVALIDITY=2/;UID=1/;SECTION=1.MIME`) or
relative to the selected mailbox (`;UID=1`). What is no such URL raises `BadUrl`; whether there is such a message is
another matter. URLAUTH (RFC 4467) is not understood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from pymx.proto.imap.commands.fetch import section_of
from pymx.proto.imap.errors import Bad
from pymx.proto.imap.lexer import MAX_32
from pymx.proto.imap.section import Section

_SERVER = re.compile(r"imap://(?:([^/@]*)@)?([^/@]+)(?=/)", re.IGNORECASE)
_MESSAGE = re.compile(
    r"(?:(?:/(?P<mailbox>[^;]+?)(?:;UIDVALIDITY=(?P<validity>[1-9]\d{0,9}))?/)|/?);UID=(?P<uid>[1-9]\d{0,9})"
    r"(?:/;SECTION=(?P<section>[^;]+?))?(?:/;PARTIAL=(?P<offset>\d{1,19})(?:\.(?P<length>[1-9]\d{0,18}))?)?/?",
    re.IGNORECASE,
)
# RFC 3986: what may stand unescaped; a stray percent sign is an error of its own.
_ALLOWED = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*")


class BadUrl(Exception):
    """No URL of a message."""


@dataclass(frozen=True, slots=True)
class MessageUrl:
    """`mailbox` None: the selected one; `user` and `host` None: not said; `partial` is (offset, length or None)."""

    user: str | None
    host: str | None
    mailbox: str | None
    uidvalidity: int | None
    uid: int
    section: Section
    partial: tuple[int, int | None] | None


def _text(escaped: str) -> str:
    try:
        return unquote_to_bytes(escaped).decode("utf-8")  # s. 3: names are UTF-8, not modified UTF-7
    except UnicodeDecodeError:
        raise BadUrl from None


def parse_url(url: str) -> MessageUrl:
    """Raises BadUrl."""
    if not _ALLOWED.fullmatch(url):
        raise BadUrl
    user = host = None
    at = 0
    if server := _SERVER.match(url):
        user = _text(server[1].partition(";")[0]) if server[1] else None  # without ;AUTH=
        host = server[2].lower()
        at = server.end()
    match = _MESSAGE.fullmatch(url, at)
    if match is None or (host is not None and match["mailbox"] is None):
        raise BadUrl
    validity, uid = int(match["validity"] or 0), int(match["uid"])
    if max(validity, uid) > MAX_32:
        raise BadUrl
    section = Section()
    if match["section"]:
        try:
            section = section_of(_text(match["section"]).encode())
        except Bad:
            raise BadUrl from None
    partial = None
    if match["offset"] is not None:
        partial = int(match["offset"]), int(match["length"]) if match["length"] else None
    mailbox = None if match["mailbox"] is None else _text(match["mailbox"])
    return MessageUrl(user, host, mailbox, validity or None, uid, section, partial)
