"""ENVELOPE and BODYSTRUCTURE of a whole message, as the index keeps them (RFC 3501 s. 7.4.2)."""

from __future__ import annotations

from pymx.mail.mime import parse
from pymx.proto.imap.bodystructure import bodystructure
from pymx.proto.imap.envelope import envelope_of_fields


def render(message: bytes) -> tuple[bytes, bytes]:
    """(ENVELOPE, BODYSTRUCTURE) of a message in wire form; any bytes will do."""
    part = parse(message)
    return envelope_of_fields(part.fields), bodystructure(part, extended=True)
