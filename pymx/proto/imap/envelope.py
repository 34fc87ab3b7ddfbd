"""ENVELOPE of a message (RFC 3501 s. 7.4.2), from its header.

Never raises and always gives a legal answer, whatever the header holds: encoded words (RFC 2047) stay as they are,
octets outside ASCII go as literals, NUL as U+FFFD. Of addresses (`pymx.mail.address_list`) at most MAX_ADDRESSES per
field are told.

Deviation: a value of more than MAX_STRING octets is cut, since the index keeps what is made here.

Fields that stand twice: of address fields all addresses are taken, of the others the last field counts, as in Dovecot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice

from pymx.mail.address_list import addresses
from pymx.mail.mime import ENVELOPE_FIELDS, scan_fields
from pymx.proto.imap import response

MAX_ADDRESSES = 5000
MAX_STRING = 64 * 1024
_REPEATED_OCTETS = 128

# Nearly all there is: what may stand in a quoted string without escape.
_PLAIN_TEXT = re.compile(rb"[\t !#-\[\]-~]{0,1000}+").fullmatch
_LINE_ENDS = re.compile(rb"[\r\n]+(?=(.?))", re.DOTALL)


def envelope(header: bytes) -> bytes:
    """ENVELOPE's value, `(date subject from … message-id)`, of a header block (CRLF or LF line ends)."""
    return envelope_of_fields(scan_fields(header, ENVELOPE_FIELDS))


def envelope_of_fields(fields: Mapping[bytes, list[bytes]]) -> bytes:
    """The same from unfolded field values by lower-case name."""
    sender = from_ = _addresses(fields, b"from")
    # RFC 3501 s. 7.4.2: "If the Sender or Reply-To lines are absent … or are present but empty, the server sets the
    # corresponding member of the envelope to be the same value as the from member."
    reply_to = from_
    if b"sender" in fields and (given := _addresses(fields, b"sender")) != b"NIL":
        sender = given
    if b"reply-to" in fields and (given := _addresses(fields, b"reply-to")) != b"NIL":
        reply_to = given
    return b"(%b %b %b %b %b %b %b %b %b %b)" % (
        _text(fields, b"date"),
        _text(fields, b"subject"),
        from_,
        sender,
        reply_to,
        _addresses(fields, b"to"),
        _addresses(fields, b"cc"),
        _addresses(fields, b"bcc"),
        _text(fields, b"in-reply-to"),
        _text(fields, b"message-id"),
    )


def nstring(value: bytes | None) -> bytes:
    """`string`, or NIL for None."""
    return b"NIL" if value is None else string(value)


def string(value: bytes) -> bytes:
    """What stood in a header, as an IMAP string on one line: quoted where that is legal, else a literal."""
    if _PLAIN_TEXT(value):
        return b'"' + value + b'"'
    if len(value) > MAX_STRING:
        value = value[:MAX_STRING]
    if b"\r" in value or b"\n" in value:
        # Remains of folding: gone before white space, else a space.
        value = _LINE_ENDS.sub(lambda m: b"" if m[1] in b" \t" else b" ", value)
    if b"\0" in value:
        value = value.replace(b"\0", b"\xef\xbf\xbd")  # no IMAP string may hold NUL
    return response.string(value)


def _text(fields: Mapping[bytes, list[bytes]], name: bytes) -> bytes:
    values = fields.get(name)
    return string(values[-1]) if values else b"NIL"


def _addresses(fields: Mapping[bytes, list[bytes]], name: bytes) -> bytes:
    values = fields.get(name)
    if not values:
        return b"NIL"
    if len(values) == 1 and len(values[0]) <= _REPEATED_OCTETS:
        return _repeated(values[0])
    return _address_list(values)


@lru_cache(maxsize=1024)
def _repeated(value: bytes) -> bytes:
    """The list of a short field: in a mailbox the same few people write and are written to."""
    return _address_list([value])


def _address_list(values: Sequence[bytes]) -> bytes:
    out = [
        b"(%b %b %b %b)" % (nstring(display), nstring(route), nstring(mailbox), nstring(host))
        for display, route, mailbox, host in islice(chain.from_iterable(map(addresses, values)), MAX_ADDRESSES)
    ]
    return b"(" + b"".join(out) + b")" if out else b"NIL"
