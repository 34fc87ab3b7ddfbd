"""BINARY[section] of a message (RFC 3516): a part with its Content-Transfer-Encoding undone.

A section without part numbers is the whole message: there, every encoded part is replaced by its content and its
header says so. `UnknownEncoding` is raised where an encoding is none that we know.

The way back is `in_lines`, for messages with binary parts that come by APPEND.
"""

from __future__ import annotations

import re
from base64 import encodebytes
from collections.abc import Iterator

from pymx.mail.mime import Part, parse
from pymx.mail.text import decode_base64, decode_quoted_printable
from pymx.proto.imap.section import part_at

_IDENTITY = frozenset({b"7bit", b"8bit", b"binary"})
_ENCODING_FIELD = re.compile(
    rb"(?<![^\n])Content-Transfer-Encoding[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+\n?", re.IGNORECASE
)


class UnknownEncoding(Exception):
    """Answered NO [UNKNOWN-CTE] (s. 4.3)."""


def extract_binary(message: bytes, path: tuple[int, ...], part: Part | None = None) -> bytes | None:
    """The content of the part at `path`, None when there is none; `part` is `parse(message)` if the caller has it."""
    root = part if part is not None else parse(message)
    if not path:
        return _whole(message, root)
    found = part_at(root, path)
    if found is None:
        return None
    if found == "empty":
        return b""
    assert isinstance(found, Part)
    return _content(message, found)


def _content(message: bytes, part: Part) -> bytes:
    octets = message[part.body_start : part.body_end]
    encoding = part.encoding.lower()
    if encoding in _IDENTITY or part.type == b"multipart" or part.message is not None:
        return octets  # RFC 2045 s. 6.4: composite types are not encoded
    if encoding == b"base64":
        return decode_base64(octets)
    if encoding == b"quoted-printable":
        return decode_quoted_printable(octets)
    raise UnknownEncoding


def _whole(message: bytes, root: Part) -> bytes:
    out: list[bytes] = []
    position = 0
    for leaf in _leaves(root):
        content = _content(message, leaf)
        if leaf.encoding.lower() in _IDENTITY:
            continue
        header = message[leaf.header_start : leaf.body_start]
        out.append(message[position : leaf.header_start])
        out.append(_ENCODING_FIELD.sub(b"Content-Transfer-Encoding: binary\r\n", header, count=1))
        out.append(content)
        position = leaf.body_end
    out.append(message[position:])
    return b"".join(out)


def in_lines(message: bytes) -> Iterator[bytes]:
    """The pieces of the message with its binary parts in base64; s. 4.4: "the server MAY modify the CTE"."""
    position = 0
    for leaf in _leaves(parse(message)):
        if leaf.encoding.lower() != b"binary":
            continue
        header = message[leaf.header_start : leaf.body_start]
        yield message[position : leaf.header_start]
        yield _ENCODING_FIELD.sub(b"Content-Transfer-Encoding: base64\r\n", header, count=1)
        position = leaf.body_end
        lines = encodebytes(message[leaf.body_start : position]).replace(b"\n", b"\r\n")
        # A delimiter that follows brings the last line's end.
        yield lines if position == len(message) else lines.removesuffix(b"\r\n")
    yield message[position:]


def _leaves(part: Part) -> Iterator[Part]:
    if part.children:
        for child in part.children:
            yield from _leaves(child)
    elif part.message is not None:
        yield from _leaves(part.message)
    elif part.type != b"multipart":
        yield part
