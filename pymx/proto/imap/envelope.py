"""ENVELOPE of a message (RFC 3501 s. 7.4.2), from its header.

Never raises and always gives a legal answer, whatever the header holds: encoded words (RFC 2047) stay as they are,
octets outside ASCII go as literals, NUL as U+FFFD. Addresses are read tolerantly in linear time, at most MAX_ADDRESSES
per field; what has no domain or no local part is completed with the words that Dovecot uses, since NIL there would
mean a group.

Deviation: a value of more than MAX_STRING octets is cut, since the index keeps what is made here.

Fields that stand twice: of address fields all addresses are taken, of the others the last field counts, as in Dovecot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain, islice

from pymx.mail.mime import ENVELOPE_FIELDS, scan_fields
from pymx.proto.imap import response

MAX_ADDRESSES = 5000
MAX_ADDRESS_FIELD = 256 * 1024
MAX_STRING = 64 * 1024

MISSING_MAILBOX = b"MISSING_MAILBOX"
MISSING_DOMAIN = b"MISSING_DOMAIN"

# (display name, source route, mailbox, host); host None and mailbox set: a group begins; both None: it ends.
Address = tuple[bytes | None, bytes | None, bytes | None, bytes | None]

# Nearly all there is: what may stand in a quoted string without escape.
_PLAIN_TEXT = re.compile(rb"[\t !#-\[\]-~]{0,1000}+").fullmatch
_LINE_ENDS = re.compile(rb"[\r\n]+(?=(.?))", re.DOTALL)

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


def envelope(header: bytes) -> bytes:
    """ENVELOPE's value, `(date subject from … message-id)`, of a header block (CRLF or LF line ends)."""
    return envelope_of_fields(scan_fields(header, ENVELOPE_FIELDS))


def envelope_of_fields(fields: Mapping[bytes, list[bytes]]) -> bytes:
    """The same from unfolded field values by lower-case name."""
    sender = from_ = _addresses(fields, b"from")
    # RFC 3501 s. 7.4.2: "If the Sender or Reply-To lines are absent … or are present but empty, the server sets the
    # corresponding member of the envelope to be the same value as the from member."
    reply_to = from_
    if b"sender" in fields and (given := _addresses(fields, b"sender")) != b"NIL":
        sender = given
    if b"reply-to" in fields and (given := _addresses(fields, b"reply-to")) != b"NIL":
        reply_to = given
    return b"(%b %b %b %b %b %b %b %b %b %b)" % (
        _text(fields, b"date"),
        _text(fields, b"subject"),
        from_,
        sender,
        reply_to,
        _addresses(fields, b"to"),
        _addresses(fields, b"cc"),
        _addresses(fields, b"bcc"),
        _text(fields, b"in-reply-to"),
        _text(fields, b"message-id"),
    )


def nstring(value: bytes | None) -> bytes:
    """`string`, or NIL for None."""
    return b"NIL" if value is None else string(value)


def string(value: bytes) -> bytes:
    """What stood in a header, as an IMAP string on one line: quoted where that is legal, else a literal."""
    if _PLAIN_TEXT(value):
        return b'"' + value + b'"'
    if len(value) > MAX_STRING:
        value = value[:MAX_STRING]
    if b"\r" in value or b"\n" in value:
        # Remains of folding: gone before white space, else a space.
        value = _LINE_ENDS.sub(lambda m: b"" if m[1] in b" \t" else b" ", value)
    if b"\0" in value:
        value = value.replace(b"\0", b"\xef\xbf\xbd")  # no IMAP string may hold NUL
    return response.string(value)


def _text(fields: Mapping[bytes, list[bytes]], name: bytes) -> bytes:
    values = fields.get(name)
    return string(values[-1]) if values else b"NIL"


def _addresses(fields: Mapping[bytes, list[bytes]], name: bytes) -> bytes:
    values = fields.get(name)
    if not values:
        return b"NIL"
    out = [
        b"(%b %b %b %b)" % (nstring(display), nstring(route), nstring(mailbox), nstring(host))
        for display, route, mailbox, host in islice(chain.from_iterable(map(addresses, values)), MAX_ADDRESSES)
    ]
    return b"(" + b"".join(out) + b")" if out else b"NIL"


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
