"""What SEARCH, SORT and THREAD ask of a header again and again, as one tuple that the index keeps.

    0  sent           the Date field in Unix seconds, None where it can't be read
    1  sent_day       its day as it stands there (`date.toordinal`), 0 where it is unreadable, None: see the header
    2  from_text      all From fields decoded and folded for search, and addresses that don't stand in them as such,
    3  to_text        each with LF behind it; b"" when there are none, None when they are too long: see the header
    4  cc_text
    5  bcc_text
    6  subject_text
    7  base_subject   key of the base subject (RFC 5256 s. 2.1)
    8  reply          1 when the subject is one of a reply or forward
    9  from_key       key of the mailbox of the first address of From (RFC 5256 s. 3), b"" when there is none
    10 to_key
    11 cc_key
    12 from_name      key of the name that From displays (RFC 5957 s. 3), b"" when there is none
    13 to_name
    14 thread         8 octets for each message id: its own (zeros when there is none), then those it refers to

A message id is a hash (BLAKE2b, 64 bits) of the id without its quotes. Never raises, whatever the header holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b

from pymx.mail.address_list import Address, addresses, hidden
from pymx.mail.collation import base_subject, casemap
from pymx.mail.date import parse_date, unix_seconds
from pymx.mail.text import decode_header, fold

MAX_TEXT = 8192  # octets of a kind of field that are kept for search
MAX_REFERENCES = 100
_MAX_REFERENCES_OCTETS = 65_536
_REPEATED_OCTETS = 128
_MESSAGE_ID = re.compile(rb'<[ \t]*+("(?:[^"\\]|\\.)*+"|[^<>@"\s]++)[ \t]*+@[ \t]*+([^<>\s]++)[ \t]*+>', re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_NONE = bytes(8)

Fields = Mapping[bytes, Sequence[bytes]]
Keys = tuple[
    int | None,
    int | None,
    bytes | None,
    bytes | None,
    bytes | None,
    bytes | None,
    bytes | None,
    bytes,
    int,
    bytes,
    bytes,
    bytes,
    bytes,
    bytes,
    bytes,
]


def keys_of_fields(fields: Fields, *, complete: bool) -> Keys:
    """The keys of unfolded fields by lower-case name; not `complete`: the header has more than were looked at."""
    sent, day = _sent(fields)
    subjects = fields.get(b"subject", ())
    base, reply = base_subject(decode_header(subjects[-1])) if subjects else ("", False)
    (sender, sender_name), (recipient, recipient_name), (copied, _) = (
        _sort_keys(fields.get(name, ())) for name in (b"from", b"to", b"cc")
    )
    return (
        sent,
        day if complete else None,
        _text(fields, b"from", complete),
        _text(fields, b"to", complete),
        _text(fields, b"cc", complete),
        _text(fields, b"bcc", complete),
        _text(fields, b"subject", complete),
        casemap(base),
        int(reply),
        sender,
        recipient,
        copied,
        sender_name,
        recipient_name,
        _thread(fields),
    )


def _sent(fields: Fields) -> tuple[int | None, int]:
    values = fields.get(b"date")
    when = parse_date(values[0].decode("utf-8", "replace")) if values else None
    return (None, 0) if when is None else (unix_seconds(when), when.toordinal())


def _text(fields: Fields, name: bytes, complete: bool) -> bytes | None:
    values = fields.get(name, ())
    if not complete or sum(map(len, values)) > MAX_TEXT:
        return None
    if name == b"subject":
        return _lines([fold(decode_header(value)) for value in values])
    if len(values) == 1 and len(values[0]) <= _REPEATED_OCTETS:
        return _repeated(values[0])
    return _address_text(values)


@lru_cache(maxsize=1024)
def _repeated(value: bytes) -> bytes:
    """The text of a short field: in a mailbox the same few people write and are written to."""
    return _address_text([value])


def _address_text(values: Sequence[bytes]) -> bytes:
    shown = [fold(decode_header(value)) for value in values]
    return _lines([*shown, *(address for value in values for address in hidden(value))])


def _lines(texts: Sequence[str]) -> bytes:
    return b"".join([text.encode("utf-8", "surrogatepass") + b"\n" for text in texts])


def _sort_keys(values: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The keys of the mailbox of the first address, and of the name that is displayed of it."""
    if len(values) == 1 and len(values[0]) <= _REPEATED_OCTETS:
        return _repeated_sort_keys(values[0])
    return _first_sort_keys(values)


@lru_cache(maxsize=1024)
def _repeated_sort_keys(value: bytes) -> tuple[bytes, bytes]:
    return _first_sort_keys([value])


def _first_sort_keys(values: Sequence[bytes]) -> tuple[bytes, bytes]:
    first = next((address for value in values for address in addresses(value)), None)
    return _mailbox(first), _displayed(first)


def _mailbox(address: Address | None) -> bytes:
    return casemap(address[2].decode("utf-8", "replace")) if address is not None and address[2] else b""


def _displayed(address: Address | None) -> bytes:
    """The name, else the address; for a group the group's name."""
    if address is None:
        return b""
    name, _, mailbox, host = address
    if name:
        return casemap(decode_header(name))
    shown = mailbox or b""
    return casemap((shown + b"@" + host if host else shown).decode("utf-8", "replace"))


def _thread(fields: Fields) -> bytes:
    own = _ids(fields.get(b"message-id", ()), 1)
    # RFC 5256 s. 3 (REFERENCES, step 1): In-Reply-To counts only without valid References, and only its first id.
    others = _ids(fields.get(b"references", ()), MAX_REFERENCES) or _ids(fields.get(b"in-reply-to", ()), 1)
    return b"".join([*(own or [_NONE]), *others])


def _ids(values: Sequence[bytes], limit: int) -> list[bytes]:
    """The last `limit` message ids (of one that can have only one, the first)."""
    if not values:
        return []
    text = values[-1] if len(values) == 1 else b" ".join(values)
    if limit == 1:
        match = _MESSAGE_ID.search(text[:_MAX_REFERENCES_OCTETS])
        return [_hash(match)] if match else []
    return [_hash(match) for match in list(_MESSAGE_ID.finditer(text[-_MAX_REFERENCES_OCTETS:]))[-limit:]]


def _hash(match: re.Match[bytes]) -> bytes:
    local = match[1]
    if local.startswith(b'"'):
        local = _ESCAPE.sub(rb"\1", local[1:-1])
    return blake2b(local + b"@" + match[2], digest_size=8).digest()
