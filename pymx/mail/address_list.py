"""Address fields (RFC 5322 s. 3.4, 4.4) read tolerantly: whatever stands there, in linear time, and nothing is raised.

What has no domain or no local part is completed with the words that Dovecot uses, since None there means a group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from pymx.mail.text import decode_header, fold

MAX_ADDRESS_FIELD = 256 * 1024
MAX_HIDDEN = 100

MISSING_MAILBOX = b"MISSING_MAILBOX"
MISSING_DOMAIN = b"MISSING_DOMAIN"

# (display name, source route, mailbox, host); host None and mailbox set: a group begins; both None: it ends.
Address = tuple[bytes | None, bytes | None, bytes | None, bytes | None]

# One address of the common kind with the comma behind it; all loops are possessive, so a miss costs no second look.
_PLAIN = re.compile(
    rb" *+(?:(?:\"([^\"\\]*+)\" *+|([^\"\\<>()@,:;\[\]\t]*+))<([^\s\"\\<>()@,:;\[\]]++)@([^\s\"\\<>()@,:;\[\]]++)>"
    rb"|([^\s\"\\<>()@,:;\[\]]++)@([^\s\"\\<>()@,:;\[\]]++)) *+(?:,|\Z)"
)
_TOKEN = re.compile(
    rb"(?P<space>[ \t\r\n]++)|\"(?P<quoted>(?:[^\"\\]|\\.)*+)(?:\"|\\?\Z)|(?P<literal>\[[^\[\]\r\n]*+\])"
    rb"|(?P<special>[<>@,:;()])|(?P<atom>(?:[^ \t\r\n\"<>@,:;()\[]|\[)[^ \t\r\n\"<>@,:;()\[]*+)",
    re.DOTALL,
)
_COMMENT_EDGE = re.compile(rb"[()]|\\.", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
# What may part an address or write it otherwise: comments, escapes, quotes, white space at a dot or "@".
_PARTED = re.compile(rb"[(\\]|\"@|[ \t][.@]|[.@][ \t]")


def hidden(value: bytes) -> list[str]:
    """The addresses of an unfolded field, folded for search, that do not stand in it as such (`user(comment)@host`)."""
    if _PARTED.search(value) is None:
        return []
    shown = fold(decode_header(value[:MAX_ADDRESS_FIELD]))
    found = []
    for _, _, mailbox, host in islice(addresses(value), MAX_HIDDEN):
        if mailbox and host and mailbox is not MISSING_MAILBOX and host is not MISSING_DOMAIN:
            found.append(fold((mailbox + b"@" + host).decode("utf-8", "replace")))
    return [address for address in found if address not in shown]


def addresses(value: bytes) -> Iterator[Address]:
    """The addresses of an unfolded address field, groups as pairs of marks, in order."""
    value = value[:MAX_ADDRESS_FIELD]
    position, end = 0, len(value)
    while position < end:
        match = _PLAIN.match(value, position)
        if match is None:
            yield from _Reader(value, position)
            return
        quoted, phrase, mailbox, host, bare_mailbox, bare_host = match.groups()
        if bare_host is not None:
            yield None, None, bare_mailbox, bare_host
        else:
            name = quoted if quoted is not None else phrase.rstrip(b" ")
            if b"  " in name and quoted is None:
                name = b" ".join(name.split())
            yield name or None, None, mailbox, host
        position = match.end()


class _Reader:
    """Address list by RFC 5322 s. 3.4 and 4.4, token by token; wrong turns end at the next comma.

    A word is (text, whether white space or a comment stood before it).
    """

    __slots__ = ("_angle", "_at", "_comment", "_gap", "_in_group", "_phrase", "_position", "_route", "_value", "_words")

    def __init__(self, value: bytes, position: int) -> None:
        self._value = value
        self._position = position
        self._in_group = False
        self._reset()

    def _reset(self) -> None:
        self._words: list[tuple[bytes, bool]] = []
        self._phrase: bytes | None = None
        self._route: bytes | None = None
        self._angle = ""  # "", "open" or "closed"
        self._comment: bytes | None = None
        self._gap = False
        self._at = -1  # where the address's "@" is among the words

    def __iter__(self) -> Iterator[Address]:
        value = self._value
        while (match := _TOKEN.match(value, self._position)) is not None:
            self._position = match.end()
            kind = match.lastgroup
            text = match[0]
            if kind == "space":
                self._gap = True
            elif kind == "special":
                if text == b",":
                    if self._in_route():
                        self._add(text)
                    elif self._words or self._angle:
                        yield from self._finish()
                elif text == b";":
                    if self._words or self._angle:
                        yield from self._finish()
                    self._reset()  # a comment in an empty group is nobody's name
                    if self._in_group:
                        self._in_group = False
                        yield None, None, None, None
                elif text == b":" and not self._angle and not self._in_group and self._at < 0:
                    yield None, None, _join(self._words) or b"", None
                    self._in_group = True
                    self._reset()
                else:
                    self._special(text)
            elif kind == "quoted":
                inner = match["quoted"]
                self._add(_ESCAPE.sub(rb"\1", inner) if b"\\" in inner else inner)
            else:
                self._add(text)
        yield from self._finish()
        if self._in_group:
            yield None, None, None, None

    def _add(self, text: bytes) -> None:
        if self._angle != "closed":
            if not self._words:
                self._comment = None  # only what stands behind an address names its owner
            self._words.append((text, self._gap))
        self._gap = False

    def _in_route(self) -> bool:
        """Inside `<@one,@two:` a comma separates hops, not addresses."""
        return self._angle == "open" and self._route is None and bool(self._words) and self._words[0][0] == b"@"

    def _special(self, text: bytes) -> None:
        if text == b"(":
            self._skip_comment()
        elif text == b"<" and not self._angle:
            self._phrase = _join(self._words)
            self._words = []
            self._at = -1
            self._angle = "open"
        elif text == b">" and self._angle == "open":
            self._angle = "closed"
        elif text == b"@":
            if self._at < 0:
                self._at = len(self._words)
            self._add(text)
        elif text == b":" and self._in_route():
            self._route = b"".join(word for word, _ in self._words)
            self._words = []
            self._at = -1

    def _skip_comment(self) -> None:
        start = self._position
        depth = 1
        while depth and (edge := _COMMENT_EDGE.search(self._value, self._position)) is not None:
            self._position = edge.end()
            depth += {b"(": 1, b")": -1}.get(edge[0], 0)
        if depth:
            self._position = len(self._value)
        text = self._value[start : self._position - (not depth)].strip(b" \t")
        self._comment = _ESCAPE.sub(rb"\1", text)
        self._gap = True

    def _finish(self) -> Iterator[Address]:
        words, angle = self._words, self._angle
        name = self._phrase
        at = self._at if self._at >= 0 else len(words)
        before, after = words[:at], words[at + 1 :]
        first = 0
        for n in range(len(before) - 1, 0, -1):
            # Words apart are one local part only around a dot (RFC 5322 s. 4.4); else the first ones are a name.
            if before[n][1] and before[n][0][:1] != b"." and before[n - 1][0][-1:] != b".":
                first = n
                break
        mailbox = b"".join(word for word, _ in before[first:])
        last = len(after)
        for n in range(1, len(after)):
            if after[n][0] == b"@" or (after[n][1] and after[n][0][:1] != b"." and after[n - 1][0][-1:] != b"."):
                last = n
                break
        host = b"".join(word for word, _ in after[:last])
        if not angle:
            name = _join(before[:first])
            if first and at == len(words):
                name, mailbox = _join(before), b""
            name = name or self._comment
        elif not name:
            name = self._comment
        route = self._route
        self._reset()
        if words or name or route:
            yield name or None, route, mailbox or MISSING_MAILBOX, host or MISSING_DOMAIN


def _join(words: list[tuple[bytes, bool]]) -> bytes:
    return b"".join(b" " + word if gap and n else word for n, (word, gap) in enumerate(words))
