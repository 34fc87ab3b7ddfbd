"""The beginning of a message's text as a line (RFC 8970 s. 3): for lists of messages.

Never raises. Text that was quoted from another message and what stands for pictures and links says little, so it is
left out where anything else is there. A message without text (encrypted, or attachments only) has an empty preview.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pymx.mail.mime import Part, parse
from pymx.mail.text import decode_body, html_to_text

MAX_CHARACTERS = 200  # s. 3.1: SHOULD be limited to 200, MUST NOT be more than 256
MAX_OCTETS = 262_144  # of the message that are looked at
_MAX_PARTS = 20
_QUOTED = re.compile(r"^[ \t]*[>|].*$", re.MULTILINE)
_NOISE = re.compile(r"\[(?:cid|image):[^\]\n]{0,300}\]|[\u00ad\u034f\u200b-\u200f\u2060\ufeff]|[-=_*~]{4,}")
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\s]+")


def preview(message: bytes) -> str:
    """At most MAX_CHARACTERS of a message in wire form (or of its beginning), without line ends."""
    for number, part in enumerate(_texts(parse(message[:MAX_OCTETS]))):
        if number >= _MAX_PARTS:
            break
        text = decode_body(part, message)
        if part.subtype == b"html":
            text = html_to_text(text)
        found = _line(_QUOTED.sub("", text)) or _line(text)
        if found:
            return found
    return ""


def _line(text: str) -> str:
    words = _INVISIBLE.sub(" ", _NOISE.sub("", text[: 50 * MAX_CHARACTERS])).strip()
    # What is not Unicode text can't be sent.
    return words[:MAX_CHARACTERS].encode("utf-8", "replace").decode().rstrip()


def _texts(part: Part) -> Iterator[Part]:
    """Text parts that are shown, the likeliest first."""
    if part.children:
        children = part.children
        if part.subtype == b"alternative":
            # the last that can be shown is the richest; plain text needs no guessing
            children = sorted(children, key=lambda each: each.subtype != b"plain")
        for child in children:
            yield from _texts(child)
    elif part.type == b"text" and part.subtype in (b"plain", b"html"):
        disposition = part.disposition
        if disposition is None or disposition[0] != b"attachment":
            yield part
