"""Names of message files (Maildir, with Dovecot's S= and W=).

    secs.M<µs>P<pid>Q<n>.<host>,S=<octets on disk>,W=<octets on the wire>:2,<flags><keywords>[,<rest>]

What stands before the colon is the *base*, the message's identity, and never changes. Flags are in ASCII order, then
keyword letters `a`–`z` (bit n = letter n). Letters we don't know and what follows a second comma are kept.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import time

from pymx.mail.flags import LETTER_BITS, maildir_letters

LETTERS = 26
LETTER_MASK = (1 << LETTERS) - 1
_FLAG_BYTES = {ord(letter): bit for letter, bit in LETTER_BITS.items()}
_WIRE = re.compile(rb",W=(\d+)(?:[,:]|$)")
_DISK = re.compile(rb",S=(\d+)(?:[,:]|$)")
_TIME = re.compile(rb"(\d+)(?:\.M(\d+))?")
_counter = itertools.count(1)


def host_part(hostname: str) -> bytes:
    """A host name as it may stand in a base: no `/`, `:` or `,` (Maildir's octal escapes)."""
    text = hostname.replace("/", "\\057").replace(":", "\\072").replace(",", "\\054")
    return text.encode("ascii", "replace").replace(b"?", b"_") or b"localhost"


def new_base(host: bytes, disk_octets: int, wire_octets: int) -> bytes:
    """A base nobody else has: time, process, counter, host."""
    now = time.time_ns()
    return b"%d.M%06dP%dQ%d.%s,S=%d,W=%d" % (
        now // 1_000_000_000,
        now // 1000 % 1_000_000,
        os.getpid(),
        next(_counter),
        host,
        disk_octets,
        wire_octets,
    )


def base_of(name: bytes) -> bytes:
    return name.partition(b":")[0]


@functools.lru_cache(maxsize=4096)
def _flags_of(info: bytes) -> tuple[int, int]:
    flags = keywords = 0
    for letter in info.partition(b",")[0]:
        if 97 <= letter <= 122:
            keywords |= 1 << (letter - 97)
        else:
            flags |= _FLAG_BYTES.get(letter, 0)
    return flags, keywords


def flags_of(name: bytes) -> tuple[int, int]:
    """Flags and keyword bits (0–25) that a name shows."""
    return _flags_of(name.partition(b":2,")[2])


@functools.lru_cache(maxsize=4096)
def _info(flags: int, letters: int, old: bytes) -> bytes:
    kept, comma, rest = old.partition(b",")
    upper = set(maildir_letters(flags).encode())
    upper.update(c for c in kept if c not in _FLAG_BYTES and not 97 <= c <= 122)
    lower = bytes(97 + n for n in range(LETTERS) if letters >> n & 1)
    return b":2," + bytes(sorted(upper)) + lower + comma + rest


def before_flags(name: bytes) -> bytes:
    """What of a name stays when flags change."""
    base, _, info = name.partition(b":2,")
    return base if info else base_of(name)


def with_flags(name: bytes, flags: int, keywords: int) -> bytes:
    """The same message's name with these flags, as it stands in `cur/`."""
    return before_flags(name) + _info(flags, keywords & LETTER_MASK, name.partition(b":2,")[2])


def wire_octets(name: bytes) -> int | None:
    """The size the name gives (W=), if it does."""
    found = _WIRE.search(name)
    return int(found[1]) if found else None


def disk_octets(name: bytes) -> int | None:
    """The size on disk the name gives (S=), if it does."""
    found = _DISK.search(name)
    return int(found[1]) if found else None


def arrival(base: bytes) -> tuple[int, int]:
    """When a message came, as its base has it: seconds, microseconds. Those without a UID get theirs in this order."""
    found = _TIME.match(base)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)
