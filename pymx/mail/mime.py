"""MIME structure of a message, with the byte offsets of every part (RFC 2045, RFC 2046).

`parse` makes one pass over the wire form and copies nothing but the few header fields that IMAP shows. It accepts every
byte string: what is broken is read as leniently as RFC 2045 s. 5.2 asks, and never raises. Time is linear in the size,
because no octet is looked at again by a deeper level: the only search is for "LF -- " and every hit is held against all
open boundaries at once, the longest first.

Limits: MAX_DEPTH levels (what lies deeper is one opaque application/octet-stream), MAX_PARTS parts (what follows is
epilogue), MAX_HEADER octets and MAX_FIELDS fields per header, MAX_PARAMETERS parameters per field, MAX_BOUNDARY octets
per boundary.

The line end before a delimiter is the delimiter's (RFC 2046 s. 5.1.1), even where it is a header's empty line. A
delimiter also ends a header that has no empty line; one that is the last line of a torn message opens no part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_DEPTH = 32
MAX_PARTS = 1000
MAX_HEADER = 1024 * 1024  # octets of one header that are looked at
MAX_FIELDS = 10_000
MAX_PARAMETERS = 200
MAX_BOUNDARY = 255
MAX_STRUCTURED = 64 * 1024  # octets of one structured field value that are looked at

MIME_FIELDS = frozenset(
    {
        b"content-type",
        b"content-transfer-encoding",
        b"content-disposition",
        b"content-id",
        b"content-description",
        b"content-md5",
        b"content-language",
        b"content-location",
    }
)
ENVELOPE_FIELDS = frozenset(
    {
        b"date",
        b"subject",
        b"from",
        b"sender",
        b"reply-to",
        b"to",
        b"cc",
        b"bcc",
        b"in-reply-to",
        b"message-id",
    }
)
_MESSAGE_FIELDS = MIME_FIELDS | ENVELOPE_FIELDS | {b"references"}

Parameters = list[tuple[bytes, bytes]]

_EMPTY_LINE = re.compile(rb"\n\r?\n")
_HEADER_STOP = re.compile(rb"\n(?:\r?\n|--)")
_TYPE = re.compile(rb"[ \t\r]*+([^ \t\r()<>@,;:\\\"/\[\]?=]++)[ \t]*+(?:/[ \t]*+([^ \t\r()<>@,;:\\\"/\[\]?=]++))?")
_PARAMETER = re.compile(
    rb";[ \t\r]*+([^ \t\r;=\"]++)[ \t\r]*+=[ \t\r]*+(?:\"((?:[^\"\\]|\\.)*+)(?:\"|\\?\Z)|([^;]*+))", re.DOTALL
)
_COMMENT_EDGE = re.compile(rb"[\"()\\]")
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_SECTIONED = re.compile(rb"([^*]+)\*(?:([0-9]{1,5})(\*)?)\Z")


@dataclass(slots=True, eq=False)
class Part:
    """One body part, or the message itself (the root, and `message` of a message/rfc822 part).

    Offsets are into the parsed bytes: the header is [header_start, header_end), with the empty line it reaches to
    body_start; the body is [body_start, body_end). `type`, `subtype` are lower case. `lines` counts the line ends of
    the body for text and message/rfc822, else it is 0. `fields` holds the unfolded values of the fields that IMAP
    shows, by lower-case name.
    """

    header_start: int
    header_end: int
    body_start: int
    body_end: int = 0
    lines: int = 0
    type: bytes = b"text"
    subtype: bytes = b"plain"
    params: Parameters = field(default_factory=list)
    children: list[Part] = field(default_factory=list)
    message: Part | None = None
    fields: Mapping[bytes, list[bytes]] = field(default_factory=dict)

    @property
    def octets(self) -> int:
        return self.body_end - self.body_start

    def first(self, name: bytes) -> bytes | None:
        """The value of the first field `name`, or None."""
        values = self.fields.get(name)
        return values[0] if values else None

    def parameter(self, name: bytes) -> bytes | None:
        """A parameter of Content-Type by its lower-case name."""
        return next((value for key, value in self.params if key.lower() == name), None)

    @property
    def encoding(self) -> bytes:
        """Content-Transfer-Encoding as it stands, without comments; 7bit when absent (RFC 2045 s. 6.1)."""
        value = self.first(b"content-transfer-encoding")
        if not value:
            return b"7bit"
        words = strip_comments(value).split(None, 1)
        return words[0].rstrip(b";") or b"7bit" if words else b"7bit"

    @property
    def content_id(self) -> bytes | None:
        return self.first(b"content-id")

    @property
    def description(self) -> bytes | None:
        return self.first(b"content-description")

    @property
    def md5(self) -> bytes | None:
        return self.first(b"content-md5")

    @property
    def location(self) -> bytes | None:
        return self.first(b"content-location")

    @property
    def disposition(self) -> tuple[bytes, Parameters] | None:
        """Content-Disposition as (kind, parameters), or None (RFC 2183)."""
        value = self.first(b"content-disposition")
        if value is None:
            return None
        kind, _, params = parse_content_type(value)
        return (kind, params) if kind else None

    @property
    def languages(self) -> list[bytes]:
        """The tags of Content-Language (RFC 3282)."""
        value = self.first(b"content-language")
        if not value:
            return []
        tags = (tag.strip(b' \t\r"') for tag in strip_comments(value).split(b",", MAX_PARAMETERS))
        return [tag for tag in tags if tag]


def parse(data: bytes) -> Part:
    """The structure of a message; any bytes will do."""
    return _Scanner(data).message()


def end_of_header(data: bytes) -> tuple[int, int]:
    """(end of the last field, start of the body) of a message, without reading its body."""
    if data.startswith((b"\r\n", b"\n")):
        return 0, 2 if data[0] == 13 else 1
    stop = _EMPTY_LINE.search(data)
    return (stop.start() + 1, stop.end()) if stop else (len(data), len(data))


def scan_fields(block: bytes, names: frozenset[bytes]) -> dict[bytes, list[bytes]]:
    """The unfolded values of the fields called `names` (lower case), in order, from a header block.

    Line ends may be CRLF or LF; folding is undone by dropping the line end (RFC 5322 s. 2.2.3).
    """
    text = block[:MAX_HEADER].replace(b"\r\n", b"\n")
    if b"\n " in text or b"\n\t" in text:
        text = text.replace(b"\n ", b" ").replace(b"\n\t", b"\t")
    found: dict[bytes, list[bytes]] = {}
    for line in text.split(b"\n", MAX_FIELDS):
        name, colon, value = line.partition(b":")
        name = name.lower()
        if name not in names:
            # Obsolete syntax allows white space before the colon (RFC 5322 s. 4.5).
            if name[-1:] not in b" \t" or not name or name.rstrip(b" \t") not in names:
                continue
            name = name.rstrip(b" \t")
        if colon:
            found.setdefault(name, []).append(value.strip(b" \t\r\n"))
    return found


def strip_comments(value: bytes) -> bytes:
    """`value` with each comment (nested ones too) replaced by a space; quoted strings are left alone."""
    if b"(" not in value:
        return value
    out: list[bytes] = []
    kept_to = depth = 0
    quoted = False
    position = 0
    while (edge := _COMMENT_EDGE.search(value, position)) is not None:
        position = edge.end()
        char = edge[0]
        if char == b"\\":
            position += 1
        elif quoted:
            quoted = char != b'"'
        elif char == b"(":
            if not depth:
                out += (value[kept_to : position - 1], b" ")
            depth += 1
        elif char == b")":
            if depth:
                depth -= 1
                kept_to = position
        elif not depth:
            quoted = True
    if not depth:
        out.append(value[kept_to:])
    return b"".join(out)


def parse_content_type(value: bytes) -> tuple[bytes, bytes, Parameters]:
    """`type/subtype; parameters` as (type, subtype, parameters); b"" for what is missing.

    Serves Content-Disposition too, whose kind is the type. Parameters are unquoted but not decoded: RFC 2231
    continuations are joined to one parameter whose name keeps the final asterisk when it is an extended value.
    """
    value = strip_comments(value[:MAX_STRUCTURED])
    head = _TYPE.match(value)
    if head is None:
        return b"", b"", _parameters(value, max(value.find(b";"), 0)) if b";" in value else []
    return head[1], head[2] or b"", _parameters(value, head.end()) if b"=" in value else []


def _parameters(value: bytes, position: int) -> Parameters:
    params: Parameters = []
    sectioned = False
    for match in _PARAMETER.finditer(value, position):
        name, quoted, token = match.groups()
        if quoted is None:
            text = token.strip(b" \t\r")
        else:
            text = _ESCAPE.sub(rb"\1", quoted) if b"\\" in quoted else quoted
        sectioned = sectioned or b"*" in name
        params.append((name, text))
        if len(params) >= MAX_PARAMETERS:
            break
    return _join_sections(params) if sectioned else params


def _join_sections(params: Parameters) -> Parameters:
    """Join RFC 2231 s. 3 continuations (`name*0`, `name*1*`); sections with gaps or twice are left as they are."""
    plain: Parameters = []
    sections: dict[bytes, list[tuple[int, bytes, bytes, bool]]] = {}
    for name, text in params:
        match = _SECTIONED.match(name)
        if match is None:
            plain.append((name, text))
        else:
            sections.setdefault(match[1].lower(), []).append((int(match[2]), name, text, match[3] is not None))
    for pieces in sections.values():
        pieces.sort(key=lambda piece: piece[0])
        if any(number != expected for expected, (number, *_) in enumerate(pieces)):
            plain.extend((name, text) for _, name, text, _ in pieces)
            continue
        extended = any(is_extended for *_, is_extended in pieces)
        base = pieces[0][1].partition(b"*")[0]
        joined = b"".join(text if is_extended or not extended else _percent(text) for *_, text, is_extended in pieces)
        if extended and not pieces[0][3]:
            joined = b"''" + joined  # the first section must carry charset and language (RFC 2231 s. 4.1)
        plain.append((base + b"*" if extended else base, joined))
    return plain


def _percent(text: bytes) -> bytes:
    """Escape what an extended value can't hold, so that a plain section may stand among extended ones."""
    return re.sub(rb"[^!#$&+\-.^_`{|}~A-Za-z0-9 ]", lambda m: b"%%%02X" % m[0][0], text)


@dataclass(slots=True, frozen=True)
class _Delimiter:
    """A delimiter line: where it begins, where the next line begins, whose boundary it is, and whether it closes."""

    start: int
    after: int
    level: int
    closes: bool


class _Scanner:
    """The one pass: recursion follows the nesting (at most MAX_DEPTH), each octet is searched once."""

    __slots__ = ("_boundaries", "_count", "_data", "_lengths", "_levels")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._boundaries: list[bytes] = []
        self._levels: dict[bytes, int] = {}
        self._lengths: list[int] = []
        self._count = 0

    def message(self) -> Part:
        part, _ = self._part(0, 0, _MESSAGE_FIELDS, digest=False)
        return part

    def _part(self, start: int, depth: int, names: frozenset[bytes], *, digest: bool) -> tuple[Part, _Delimiter | None]:
        """The part that starts at `start`, and the delimiter that ended it (None: the end of the data)."""
        self._count += 1
        header_end, body_start, stop = self._header(start)
        fields = scan_fields(self._data[start : min(header_end, start + MAX_HEADER)], names)
        part = Part(start, header_end, body_start, fields=fields)
        self._classify(part, digest=digest)
        if stop is not None:
            pass
        elif depth >= MAX_DEPTH and (part.type == b"multipart" or _is_message(part)):
            part.type, part.subtype, part.params = b"application", b"octet-stream", []
            stop = self._leaf(part)
        elif part.type == b"multipart" and (boundary := _boundary(part)):
            stop = self._multipart(part, boundary, depth)
        elif _is_message(part) and self._count < MAX_PARTS:
            part.message, stop = self._part(body_start, depth + 1, _MESSAGE_FIELDS, digest=False)
            part.body_end = self._end_before(stop, body_start)
        else:
            stop = self._leaf(part)
        if stop is not None and stop.start <= part.body_start:
            # No body: the line end before the delimiter, be it the empty line, is the delimiter's.
            part.body_start = part.body_end = self._end_before(stop, start)
            part.header_end = min(header_end, part.body_start)
        if _is_message(part):
            if part.message is None:
                part.message = Part(body_start, body_start, body_start, part.body_end)
            part.lines = self._data.count(b"\n", body_start, part.body_end)
        elif part.type == b"text":
            part.lines = self._data.count(b"\n", body_start, part.body_end)
        return part, stop

    def _header(self, start: int) -> tuple[int, int, _Delimiter | None]:
        """(end of the fields, start of the body, delimiter that cut the header short)."""
        data = self._data
        if data.startswith(b"\r\n", start):
            return start, start + 2, None
        if data.startswith(b"\n", start):
            return start, start + 1, None
        if self._boundaries and data.startswith(b"--", start) and (cut := self._delimiter_at(start)):
            return start, start, cut
        position = start
        while (stop := _HEADER_STOP.search(data, position)) is not None:
            line = stop.start() + 1
            if data[line] != 45:  # "-"
                return line, stop.end(), None
            if self._boundaries and (cut := self._delimiter_at(line)):
                return line, line, cut
            position = line
        return len(data), len(data), None

    @staticmethod
    def _classify(part: Part, *, digest: bool) -> None:
        value = part.first(b"content-type")
        if value is None:
            if digest:
                part.type, part.subtype = b"message", b"rfc822"
            return
        kind, subtype, params = parse_content_type(value)
        part.params = params
        if kind and subtype:
            part.type, part.subtype = kind.lower(), subtype.lower()
        elif kind.lower() == b"multipart":
            part.type, part.subtype = b"multipart", b"mixed"

    def _leaf(self, part: Part) -> _Delimiter | None:
        stop = self._next(part.body_start) if self._boundaries else None
        part.body_end = self._end_before(stop, part.body_start)
        return stop

    def _multipart(self, part: Part, boundary: bytes, depth: int) -> _Delimiter | None:
        level = len(self._boundaries)
        self._open(boundary)
        digest = part.subtype == b"digest"
        stop = self._next(part.body_start)
        while stop is not None and stop.level == level and not stop.closes:
            if self._count >= MAX_PARTS:
                self._close(level)
                stop = self._next(stop.after)
                break
            child, stop = self._part(stop.after, depth + 1, MIME_FIELDS, digest=digest)
            part.children.append(child)
        else:
            self._close(level)
            if stop is not None and stop.level == level:
                # What follows the close delimiter is the epilogue, up to a delimiter of an outer multipart.
                stop = self._next(stop.after) if self._boundaries else None
        part.body_end = self._end_before(stop, part.body_start)
        return stop

    def _open(self, boundary: bytes) -> None:
        self._boundaries.append(boundary)
        self._index()

    def _close(self, level: int) -> None:
        del self._boundaries[level:]
        self._index()

    def _index(self) -> None:
        # An inner boundary that equals an outer one hides it, as it does for a reader going inwards out.
        self._levels = {boundary: level for level, boundary in enumerate(self._boundaries)}
        self._lengths = sorted({len(boundary) for boundary in self._boundaries}, reverse=True)

    def _next(self, position: int) -> _Delimiter | None:
        """The first delimiter line at or after `position`, which is the start of a line."""
        if not self._boundaries:
            return None
        find = self._data.find
        if self._data.startswith(b"--", position) and (hit := self._delimiter_at(position)):
            return hit
        # One octet is sought many times faster than three, and base64 has no dash before the delimiter.
        dash = find(b"-", position)
        if dash < 0:
            return None
        position = max(position, dash - 1)
        while (at := find(b"\n--", position)) >= 0:
            if hit := self._delimiter_at(at + 1):
                return hit
            position = at + 1
        return None

    def _delimiter_at(self, start: int) -> _Delimiter | None:
        """The delimiter whose "--" stands at `start`, or None.

        RFC 2046 s. 5.1.1: comparisons "must compare the boundary value with the beginning of each candidate line. An
        exact match of the entire candidate line is not required". Hence the longest boundary wins.
        """
        data = self._data
        lengths = self._lengths
        line = data[start + 2 : start + 2 + lengths[0]]
        newline = line.find(b"\n")
        if newline >= 0:
            line = line[:newline]
        available = len(line)
        for length in lengths:
            if length <= available and (level := self._levels.get(line[:length])) is not None:
                end = start + 2 + length
                newline = data.find(b"\n", end)
                if newline < 0:  # nothing follows
                    return _Delimiter(start, len(data), level, True)
                return _Delimiter(start, newline + 1, level, data.startswith(b"--", end))
        return None

    def _end_before(self, stop: _Delimiter | None, body_start: int) -> int:
        """Where a body ends that `stop` ended: before the line end that belongs to the delimiter."""
        data = self._data
        if stop is None:
            return len(data)
        end = stop.start
        if end > body_start:
            end -= 1
            if end > body_start and data[end - 1] == 13:
                end -= 1
        return end


def _is_message(part: Part) -> bool:
    return part.type == b"message" and part.subtype == b"rfc822"


def _boundary(part: Part) -> bytes | None:
    """The boundary, cut of trailing white space, which can't be part of it (RFC 2046 s. 5.1.1)."""
    value = part.parameter(b"boundary")
    if not value:
        return None
    value = value.rstrip(b" \t")
    return value if 0 < len(value) <= MAX_BOUNDARY and b"\n" not in value else None
