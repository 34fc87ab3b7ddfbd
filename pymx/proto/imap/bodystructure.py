"""BODY and BODYSTRUCTURE of a message (RFC 3501 s. 7.4.2).

Always legal, whatever the message holds: a multipart without parts gets one empty text part, which `section` gives as
empty too, a part whose type can't be read is text/plain (RFC 2045 s. 5.2), text without charset is us-ascii (s. 5.2),
empty strings stand where NIL is not allowed. Types are lower case; names of parameters stay as they came.
"""

from __future__ import annotations

from pymx.mail.mime import Parameters, Part
from pymx.proto.imap.envelope import envelope_of_fields, nstring, string

_DEFAULT_PARAMS = b'("charset" "us-ascii")'
_EMPTY_TEXT = b'("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 0 0'


def bodystructure(part: Part, *, extended: bool) -> bytes:
    """The value of BODYSTRUCTURE (`extended`), or of BODY without extension data."""
    if part.type == b"multipart":
        return _multipart(part, extended=extended)
    text = part.type == b"text"
    out = b"(%b %b %b %b %b %b %d" % (
        string(part.type),
        string(part.subtype),
        _params(part.params, text=text),
        nstring(part.content_id),
        nstring(part.description),
        string(part.encoding),
        part.octets,
    )
    if text:
        out += b" %d" % part.lines
    elif part.message is not None:
        inner = part.message
        out += b" %b %b %d" % (envelope_of_fields(inner.fields), bodystructure(inner, extended=extended), part.lines)
    if extended:
        out += b" " + nstring(part.md5) + _extension(part)
    return out + b")"


def _multipart(part: Part, *, extended: bool) -> bytes:
    if part.children:
        parts = b"".join([bodystructure(child, extended=extended) for child in part.children])
    else:
        # The grammar asks for at least one part.
        parts = _EMPTY_TEXT + (b" NIL NIL NIL NIL)" if extended else b")")
    if not extended:
        return b"(%b %b)" % (parts, string(part.subtype))
    return b"(%b %b %b%b)" % (parts, string(part.subtype), _params(part.params, text=False), _extension(part))


def _params(params: Parameters, *, text: bool) -> bytes:
    if not params:
        return _DEFAULT_PARAMS if text else b"NIL"
    shown = [b"%b %b" % (string(name), string(value)) for name, value in params]
    if text and not any(name.lower() == b"charset" for name, _ in params):
        shown.append(b'"charset" "us-ascii"')
    return b"(" + b" ".join(shown) + b")"


def _extension(part: Part) -> bytes:
    """Disposition, language and location, with a space before each."""
    fields = part.fields
    disposition = b"NIL"
    if b"content-disposition" in fields and (given := part.disposition) is not None:
        disposition = b"(%b %b)" % (string(given[0]), _params(given[1], text=False))
    language = b"NIL"
    if b"content-language" in fields and (tags := part.languages):
        language = string(tags[0]) if len(tags) == 1 else b"(" + b" ".join([string(tag) for tag in tags]) + b")"
    return b" %b %b %b" % (disposition, language, nstring(part.location))
