"""BODY[section] of a message (RFC 3501 s. 6.4.5): a slice of the wire form, or chosen header fields.

`extract` gives None when the message has no such part (the answer is NIL then). The part numbered 1 of a message that
is not multipart is its body; HEADER and TEXT with a path belong to message/rfc822 parts only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pymx.mail.mime import Part, end_of_header, parse

# A field with its continuation lines.
_FIELD = re.compile(rb"[^\n]*+\n(?:[ \t][^\n]*+\n?)*+|[^\n]++\Z")


@dataclass(frozen=True, slots=True)
class Section:
    """What stands between BODY[ and ]: the part numbers and "", "HEADER", "HEADER.FIELDS", "HEADER.FIELDS.NOT",
    "TEXT" or "MIME"; `fields` for the two with field names.
    """

    path: tuple[int, ...] = ()
    text: str = ""
    fields: tuple[bytes, ...] = ()


def extract(message: bytes, section: Section, part: Part | None = None) -> bytes | None:
    """The octets of `section`; `part` is `parse(message)` when the caller has it already."""
    if not section.path:
        if section.text == "":
            return message
        if section.text == "MIME":
            return None
        if part is None and section.text.startswith("HEADER"):
            return _header(message, 0, *end_of_header(message), section)
    root = part if part is not None else parse(message)
    if not section.path:
        return _of_message(message, root, section)
    found = part_at(root, section.path)
    if found is None:
        return None
    if found == "empty":
        return b"" if section.text in ("", "MIME") else None
    assert isinstance(found, Part)
    if section.text == "":
        return message[found.body_start : found.body_end]
    if section.text == "MIME":
        return message[found.header_start : found.body_start]
    return None if found.message is None else _of_message(message, found.message, section)


def part_at(root: Part, path: tuple[int, ...]) -> Part | str | None:
    """The part at `path`; "empty" for the one part that a multipart without parts pretends to have."""
    part = root
    container: Part | None = root  # a multipart, or the root of a message
    for step, number in enumerate(path, 1):
        if container is None:
            return None
        if container.type != b"multipart":
            # The body of a message that is not multipart has the number 1.
            if number != 1:
                return None
            part, container = container, container.message
        elif not container.children:
            return "empty" if number == 1 and step == len(path) else None
        elif not 1 <= number <= len(container.children):
            return None
        else:
            part = container.children[number - 1]
            container = part if part.type == b"multipart" else part.message
    return part


def _of_message(message: bytes, root: Part, section: Section) -> bytes:
    if section.text == "TEXT":
        return message[root.body_start : root.body_end]
    return _header(message, root.header_start, root.header_end, root.body_start, section)


def _header(message: bytes, start: int, end: int, body_start: int, section: Section) -> bytes:
    if section.text == "HEADER":
        return message[start:body_start]
    names = {name.lower() for name in section.fields}
    keep = section.text == "HEADER.FIELDS"
    chosen = b"".join(
        [
            raw
            for raw in _FIELD.findall(message[start:end])
            if (raw.partition(b":")[0].rstrip(b" \t").lower() in names) is keep
        ]
    )
    if chosen and not chosen.endswith(b"\n"):
        chosen += b"\r\n"
    # RFC 3501 s. 6.4.5: "the delimiting blank line between the header and the text is always included".
    return chosen + b"\r\n"
