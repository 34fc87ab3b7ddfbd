"""Body lines of more than 998 octets (RFC 5322 s. 2.1.1): found cheaply, mended by encoding the part they are in.

PURE. A relay may break such a line, and with it the DKIM signature. A text part becomes quoted-printable, any other
base64; a part that is one of these already is wrapped anew. Left alone, and so refused by the caller: what is inside
multipart/signed, multipart/encrypted or an attached message, since changing it would break another's signature, and
long lines outside of parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pymx.mail import header
from pymx.mail.mime import Part, parse
from pymx.mail.transfer import SEALED, CannotEncodePart, encoded

MAX_LINE_OCTETS = 998

_REACH = MAX_LINE_OCTETS + 2  # a line that is short enough has its LF within this many octets


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
        try:
            head, body = encoded(message, part, is_root=is_root)
        except CannotEncodePart as e:
            raise CannotMend(str(e)) from None
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
            if part.subtype not in SEALED:
                waiting += reversed(part.children)
        elif part.type != b"message" and has_long_line([message[part.body_start : part.body_end]]):
            yield part, part is root
