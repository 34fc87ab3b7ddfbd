"""`dovecot-uidlist`: which message has which UID (version 3; version 1 is read).

    3 V<uidvalidity> N<next uid> G<32 hex>
    <uid>[ <A–Z><value>…] :<base>

UIDs ascend strictly, every line ends in LF. The next UID is max(N, last UID + 1); an append leaves N as it is. A line
that Dovecot can't read makes it renumber everything, so nothing is written here that `parse` would not take. Parsing is
one regular expression over the whole file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NAME = b"dovecot-uidlist"
MAX_UID = 0xFFFFFFFF
_RECORD = re.compile(rb"^([1-9][0-9]{0,9})((?: [A-Z][^ \n]*)*) :([^:\n/]+)(?::[^\n]*)?\n", re.MULTILINE)
_RECORD_V1 = re.compile(rb"^([1-9][0-9]{0,9})() ([^:\n/]+)(?::[^\n]*)?\n", re.MULTILINE)
_HEADER_V1 = re.compile(rb"1 (\d{1,10}) (\d{1,10})$")
_GUID = re.compile(rb"[0-9a-fA-F]{32}$")

Record = tuple[int, bytes, bytes]  # UID, keys as they stand (b"" or b" G…"), base


class Damaged(Exception):
    """The header can't be read: the file says nothing."""


@dataclass(slots=True)
class Header:
    """The first line."""

    uidvalidity: int
    next_uid: int
    guid: str = ""
    extra: bytes = b""  # unknown keys, each with a space before it
    version: int = 3

    def line(self) -> bytes:
        guid = b" G" + self.guid.encode() if self.guid else b""
        return b"3 V%d N%d%s%s\n" % (self.uidvalidity, self.next_uid, guid, self.extra)


@dataclass(slots=True)
class UidList:
    """A whole file, read."""

    header: Header
    records: list[Record]
    clean: bool  # False: something in it could not be read, it must be rewritten

    @property
    def next_uid(self) -> int:
        return max(self.header.next_uid, self.records[-1][0] + 1 if self.records else 1)

    def to_bytes(self) -> bytes:
        return self.header.line() + lines(self.records)


def guid_of(path: bytes) -> str:
    """The GUID that the header of a uidlist tells; "" for none. Raises FileNotFoundError, Damaged."""
    with open(path, "rb") as file:
        return parse_header(file.readline().rstrip(b"\n")).guid


def parse_header(line: bytes) -> Header:
    """The first line without its LF. Raises Damaged."""
    old = _HEADER_V1.match(line)
    if old:
        return _checked(Header(int(old[1]), int(old[2]), version=1))
    version, *keys = line.split(b" ")
    if version != b"3":
        raise Damaged("unknown version")
    header = Header(0, 0)
    for key in keys:
        value = key[1:]
        match key[:1]:
            case b"V" if value.isdigit():
                header.uidvalidity = int(value)
            case b"N" if value.isdigit():
                header.next_uid = int(value)
            case b"G" if _GUID.match(value):
                header.guid = value.decode("ascii")
            case _:
                header.extra += b" " + key
    return _checked(header)


def _checked(header: Header) -> Header:
    if not 0 < header.uidvalidity <= MAX_UID or not 0 < header.next_uid <= MAX_UID:
        raise Damaged("no UIDVALIDITY or next UID")
    return header


def parse(data: bytes) -> UidList:
    """A whole file. Raises Damaged if the header can't be read; broken lines are left out and `clean` is False."""
    first, newline, body = data.partition(b"\n")
    if not newline:
        raise Damaged("no header")
    header = parse_header(first)
    records, clean = parse_records(body, version=header.version)
    return UidList(header, records, clean and header.version == 3 and bool(header.guid))


def parse_records(body: bytes, *, version: int = 3, after: int = 0) -> tuple[list[Record], bool]:
    """The lines of `body`, ascending from above `after`; and whether all of it could be read."""
    found = (_RECORD if version == 3 else _RECORD_V1).findall(body)
    records: list[Record] = [(int(uid), keys, base) for uid, keys, base in found]
    uids = [record[0] for record in records]
    clean = len(records) == body.count(b"\n") and (not body or body.endswith(b"\n"))
    if records and (uids[0] <= after or uids[-1] > MAX_UID or uids != sorted(set(uids))):
        clean = False
        records = _ascending(records, after)
    if len({record[2] for record in records}) != len(records):
        clean = False  # Dovecot stops reading at a base it has had
    return records, clean


def _ascending(records: list[Record], after: int) -> list[Record]:
    kept = []
    last = after
    for record in records:
        if last < record[0] <= MAX_UID:
            kept.append(record)
            last = record[0]
    return kept


def lines(records: list[Record]) -> bytes:
    return b"".join([b"%d%s :%s\n" % record for record in records])


def has_base(data: bytes, base: bytes) -> bool:
    """Whether a file has a line for `base`, without parsing it."""
    needle = b" :" + base
    at = data.find(needle)
    while at >= 0:
        end = at + len(needle)
        if data[end : end + 1] in (b"\n", b":"):
            return True
        at = data.find(needle, end)
    return False
