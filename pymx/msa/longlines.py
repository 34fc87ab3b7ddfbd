"""Body lines of more than 998 octets (RFC 5322 s. 2.1.1): found cheaply, mended by encoding the part they are in.

PURE. A relay may break such a line, and with it the DKIM signature. A text part becomes quoted-printable, any other
base64; a part that is one of these already is wrapped anew. Left alone, and so refused by the caller: what is inside
multipart/signed, multipart/encrypted or an attached message, since changing it would break another's signature, and
long lines outside of parts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator

from pymx.mail import header
from pymx.mail.mime import Part, parse

MAX_LINE_OCTETS = 998
MAX_MENDED_OCTETS = 16 * 1024 * 1024  # larger messages are not taken into memory for it

_REACH = MAX_LINE_OCTETS + 2  # a line that is short enough has its LF within this many octets
_SEALED = frozenset({b"signed", b"encrypted"})
_PLAIN_ENCODINGS = frozenset({b"7bit", b"8bit", b"binary"})


class CannotMend(ValueError):
    """The long line is where nothing may be changed."""


def has_long_line(chunks: Iterable[bytes]) -> bool:
    """Is any line of the text longer than 998 octets? About one step per 1,000 octets, not one per line."""
    carried = 0  # octets of an unfinished line in earlier chunks
    for chunk in chunks:
        position = 0
        if carried:
            end = chunk.find(b"\n", 0, max(0, _REACH - carried))
            if end < 0:
                if carried + len(chunk) >= _REACH:
                    return True
                carried += len(chunk)
                continue
            position, carried = end + 1, 0
        while position + _REACH <= len(chunk):
            end = chunk.rfind(b"\n", position, position + _REACH)
            if end < 0:
                return True
            position = end + 1
        carried = len(chunk) - max(position, chunk.rfind(b"\n", position) + 1)
    return carried > MAX_LINE_OCTETS


def mended(message: bytes) -> bytes:
    """The message with every such line gone. Raises CannotMend."""
    pieces: list[bytes] = []
    position = 0
    for part, is_root in _long_leaves(message):
        head, body = _encoded(message, part, is_root=is_root)
        gap = message[part.header_end : part.body_start] or b"\r\n"
        pieces += [message[position : part.header_start], head, gap, body]
        position = part.body_end
    pieces.append(message[position:])
    out = b"".join(pieces)
    if has_long_line([header.split_head(out)[1]]):
        raise CannotMend
    return out


def _long_leaves(message: bytes) -> Iterator[tuple[Part, bool]]:
    """The parts to encode, in the order of the message."""
    root = parse(message)
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if part.type == b"multipart":
            if part.subtype not in _SEALED:
                waiting += reversed(part.children)
        elif part.type != b"message" and has_long_line([message[part.body_start : part.body_end]]):
            yield part, part is root


def _encoded(message: bytes, part: Part, *, is_root: bool) -> tuple[bytes, bytes]:
    """The part's header block and body in an encoding with short lines."""
    body = message[part.body_start : part.body_end]
    head = message[part.header_start : part.header_end]
    if not is_root and any(not field.name for field in header.iter_fields(head)):
        raise CannotMend  # readers disagree on where the body of such a part begins
    encoding = part.encoding.lower()
    if encoding == b"base64" or (encoding in _PLAIN_ENCODINGS and part.type != b"text"):
        try:
            data = base64.b64decode(body) if encoding == b"base64" else body
        except binascii.Error:
            raise CannotMend from None
        return _with_encoding(head, "base64", b"", is_root=is_root), base64.encodebytes(data).replace(b"\n", b"\r\n")
    if encoding == b"quoted-printable":
        return head, _quoted_printable(binascii.a2b_qp(body))
    if encoding in _PLAIN_ENCODINGS:
        return _with_encoding(head, "quoted-printable", body, is_root=is_root), _quoted_printable(body)
    raise CannotMend


def _quoted_printable(body: bytes) -> bytes:
    # b2a_qp takes its line end from the first LF it finds; lines are encoded with LF alone to be sure of it
    return binascii.b2a_qp(body.replace(b"\r\n", b"\n"), istext=True).replace(b"\n", b"\r\n")


def _with_encoding(head: bytes, encoding: str, text: bytes, *, is_root: bool) -> bytes:
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
