"""What the index keeps of a message: ENVELOPE, BODYSTRUCTURE (RFC 3501 s. 7.4.2), and the keys of SEARCH and SORT."""

from __future__ import annotations

from pymx.mail.mime import MAX_FIELDS, MAX_HEADER, parse
from pymx.proto.imap.bodystructure import bodystructure
from pymx.proto.imap.envelope import envelope_of_fields
from pymx.proto.imap.keys import Keys, keys_of_fields


def render(message: bytes) -> tuple[bytes, bytes, Keys]:
    """(ENVELOPE, BODYSTRUCTURE, keys) of a message in wire form, in one pass; any bytes will do.

    Given only a message's header, the keys are still those of the message.
    """
    part = parse(message)
    stop = min(part.header_end, part.header_start + MAX_HEADER)
    lines = message.count(b"\n", part.header_start, stop)
    # A bare CR makes the edges of a value doubtful: whoever searches for it shall look into the header.
    complete = lines <= MAX_FIELDS and message.count(b"\r", part.header_start, stop) == lines
    keys = keys_of_fields(part.fields, complete=complete)
    return envelope_of_fields(part.fields), bodystructure(part, extended=True), keys
