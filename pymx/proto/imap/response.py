"""Strings, flags and lists as they stand in responses (RFC 3501 s. 4.3, 7)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pymx.mail.flags import flags_text

_ATOM = re.compile(rb'[^\x00-\x20(){%*"\\\]\x7f-\xff]+')
_QUOTABLE = re.compile(rb"[\x20-\x7e\t]*")
_SPECIAL = re.compile(rb'(["\\])')
_TEXT = re.compile(r"[^\x20-\x7e]")


def string(text: bytes) -> bytes:
    """A quoted string where that is possible, else a literal."""
    if len(text) <= 1000 and _QUOTABLE.fullmatch(text):
        return b'"%b"' % (_SPECIAL.sub(rb"\\\1", text) if b'"' in text or b"\\" in text else text)
    return b"{%d}\r\n%b" % (len(text), text)


def utf8_string(text: str) -> bytes:
    """A quoted string of UTF-8 (RFC 9755 s. 3), or a literal if it holds what can't be quoted."""
    octets = text.encode("utf-8", "replace")
    if len(octets) > 1000 or not text.isprintable():
        return literal(octets)
    return b'"%b"' % _SPECIAL.sub(rb"\\\1", octets)


def nstring(text: bytes | None) -> bytes:
    return b"NIL" if text is None else string(text)


def astring(text: bytes) -> bytes:
    """An atom if it is one (and can't be read as NIL), else a string."""
    if _ATOM.fullmatch(text) and text.upper() != b"NIL":
        return text
    return string(text)


def literal(octets: bytes) -> bytes:
    return b"{%d}\r\n%b" % (len(octets), octets)


def text_line(text: str) -> bytes:
    """Human text: what a client said earlier must not start a line of its own."""
    return _TEXT.sub("?", text).encode()


def flag_list(flags: int, keywords: int, names: Sequence[str], *, recent: bool = False) -> bytes:
    """`\\Seen $Forwarded …` without parentheses; `names` are the keywords by bit."""
    parts = []
    text = flags_text(flags)
    if text:
        parts.append(text)
    if recent:
        parts.append("\\Recent")
    bit = 0
    while keywords:
        if keywords & 1 and bit < len(names) and names[bit]:
            parts.append(names[bit])
        keywords >>= 1
        bit += 1
    return " ".join(parts).encode("ascii", "replace")


def parenthesised(items: Iterable[bytes]) -> bytes:
    return b"(%b)" % b" ".join(items)
