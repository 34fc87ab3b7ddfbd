"""A body part in another Content-Transfer-Encoding, and whole messages in seven bits (RFC 2045 s. 6, RFC 6152 s. 3).

PURE. `encoded` gives one part's header block and body anew: text as quoted-printable, anything else as base64; a part
that is one of these already is wrapped anew. `seven_bit` does that to every part of a message with octets above 127,
attached messages included, and touches nothing else. What may not or can't be encoded raises `CannotEncodePart`: signed
and encrypted parts (RFC 1847 s. 2.1), 8-bit headers of parts, text between parts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator

from pymx.mail import header
from pymx.mail.mime import Part, parse

MAX_ENCODED_OCTETS = 16 * 1024 * 1024  # larger messages are not taken into memory for it
SEALED = frozenset({b"signed", b"encrypted"})

_PLAIN_ENCODINGS = frozenset({b"7bit", b"8bit", b"binary"})
_ASCII = bytes(range(128))


class CannotEncodePart(ValueError):
    """The part must stay as it is."""


def seven_bit(message: bytes) -> bytes:
    """The message without octets above 127 in its body; the header block of the whole is left as it is."""
    pieces: list[bytes] = []
    position = 0
    for start, end, data in _changes(message):
        pieces += [message[position:start], data]
        position = end
    pieces.append(message[position:])
    out = b"".join(pieces)
    if not header.split_head(out)[1].isascii():
        raise CannotEncodePart("there are octets above 127 outside of what can be encoded")
    return out


def _changes(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(start, end, what comes there), in the order of the message. Raises CannotEncodePart."""
    root = parse(message)
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if message[part.header_start : part.body_end].isascii():
            continue
        inner = list(part.children) if part.type == b"multipart" else []
        if part.type == b"message" and part.message is not None:
            inner = [part.message]
        if inner:
            if part.type == b"multipart" and part.subtype in SEALED:
                raise CannotEncodePart(f"a multipart/{part.subtype.decode()} part has octets above 127")
            if part.encoding.lower() in (b"8bit", b"binary"):
                # RFC 2045 s. 6.4: no other encoding of a composite part
                head = message[part.header_start : part.header_end]
                yield part.header_start, part.header_end, with_encoding(head, "7bit", b"", is_root=part is root)
            waiting += reversed(inner)
        elif not message[part.body_start : part.body_end].isascii():
            if part.type == b"message":
                raise CannotEncodePart(f"a message/{part.subtype.decode()} part has octets above 127")
            head, body = encoded(message, part, is_root=part is root, shortest=True)
            gap = message[part.header_end : part.body_start] or b"\r\n"
            yield part.header_start, part.body_end, head + gap + body


def encoded(message: bytes, part: Part, *, is_root: bool, shortest: bool = False) -> tuple[bytes, bytes]:
    """The part's header block and body in an encoding with short lines. Raises CannotEncodePart.

    Text stays readable as quoted-printable, unless `shortest` and base64 is.
    """
    body = message[part.body_start : part.body_end]
    head = message[part.header_start : part.header_end]
    if not is_root and any(not field.name for field in header.iter_fields(head)):
        raise CannotEncodePart("readers disagree on where the body of a part begins")
    encoding = part.encoding.lower()
    if encoding == b"base64" or (encoding in _PLAIN_ENCODINGS and part.type != b"text"):
        try:
            data = base64.b64decode(body) if encoding == b"base64" else body
        except binascii.Error:
            raise CannotEncodePart("a base64 part is damaged") from None
        return with_encoding(head, "base64", b"", is_root=is_root), _base64(data)
    if encoding == b"quoted-printable":
        return head, _quoted_printable(binascii.a2b_qp(body))
    if encoding in _PLAIN_ENCODINGS:
        kind = "base64" if shortest and _is_shorter_in_base64(body) else "quoted-printable"
        head = with_encoding(head, kind, body, is_root=is_root)
        return head, _base64(body) if kind == "base64" else _quoted_printable(body)
    raise CannotEncodePart(f"a part has the unknown encoding {encoding[:40].decode('ascii', 'replace')}")


def _is_shorter_in_base64(body: bytes) -> bool:
    """Three octets for each one above 127, or four for three of whatever."""
    return len(body.translate(None, _ASCII)) * 2 > len(body) * 0.37


def _base64(data: bytes) -> bytes:
    return base64.encodebytes(data).replace(b"\n", b"\r\n")


def _quoted_printable(body: bytes) -> bytes:
    # b2a_qp takes its line end from the first LF it finds; lines are encoded with LF alone to be sure of it
    return binascii.b2a_qp(body.replace(b"\r\n", b"\n"), istext=True).replace(b"\n", b"\r\n")


def with_encoding(head: bytes, encoding: str, text: bytes, *, is_root: bool) -> bytes:
    """The header block with another Content-Transfer-Encoding and, at the top, what makes that valid MIME."""
    out = header.remove(head, ["content-transfer-encoding"])
    if is_root and header.first(out, "mime-version") is None:
        out += header.build_field("MIME-Version", "1.0")
    if is_root and header.first(out, "content-type") is None:
        out += header.build_field("Content-Type", f"text/plain; charset={_charset(text)}")
    return out + header.build_field("Content-Transfer-Encoding", encoding)


def _charset(text: bytes) -> str:
    if text.isascii():
        return "us-ascii"
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return "unknown-8bit"  # RFC 1428
    return "utf-8"
