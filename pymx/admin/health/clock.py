"""The clock: does NTP keep it, and is it right? Signatures, certificates and retries go by it.

It is compared with the Date of web servers, which needs no NTP of our own; a second of that is their rounding.
"""

from __future__ import annotations

import asyncio
import ctypes
import email.utils
from collections.abc import AsyncIterator

from pymx.admin.health.finding import Finding, fail, info, ok, warn
from pymx.admin.health.subject import Subject
from pymx.resolver.answer import DnsError

_WRONG_S = 5.0
_VERY_WRONG_S = 120.0
_WAIT_S = 5.0
_UNSYNCHRONIZED = 0x40  # STA_UNSYNC, adjtimex(2)
_REMEDY = "let NTP keep it: apt-get install systemd-timesyncd (or chrony), then timedatectl set-ntp true"


async def check(subject: Subject) -> AsyncIterator[Finding]:
    offset_s = await _offset(subject)
    synchronized = is_synchronized()
    if offset_s is not None and abs(offset_s) >= _WRONG_S:
        grade = fail if abs(offset_s) >= _VERY_WRONG_S else warn
        word = "behind" if offset_s > 0 else "ahead"
        why = "DKIM signatures and certificates are taken for expired or not yet valid"
        yield grade("clock", f"the clock is {abs(offset_s):.0f} s {word}", _REMEDY, why)
    elif synchronized is False:
        yield warn(
            "clock",
            "nothing keeps the clock right (NTP)",
            _REMEDY,
            "with a wrong clock, DKIM signatures and certificates are taken for expired or not yet valid",
        )
    elif offset_s is None and synchronized is None:
        yield info(
            "clock", "whether the clock is right can't be told: no web server answers, and the kernel says nothing"
        )
    else:
        yield ok("clock", "the clock is right" if offset_s is not None else "NTP keeps the clock")


async def _offset(subject: Subject) -> float | None:
    """Seconds that we are behind others; None when nobody tells. The middle one of three counts."""
    found = await asyncio.gather(*(_date(subject, host, port) for host, port in subject.places.dated_hosts))
    offsets = sorted(o for o in found if o is not None)
    return offsets[len(offsets) // 2] if offsets else None


async def _date(subject: Subject, host: str, port: int) -> float | None:
    try:
        async with asyncio.timeout(_WAIT_S):
            address = (await subject.resolver.addresses(host, ipv6=False))[0]
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                loop = asyncio.get_running_loop()
                asked = loop.time()
                head = await reader.readuntil(b"\r\n\r\n")
                took_s = loop.time() - asked
            finally:
                writer.close()
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"date:"):
                theirs = email.utils.parsedate_to_datetime(line[5:].strip().decode("ascii")).timestamp()
                # they cut the fraction off, and it was said somewhere on the way
                return theirs + 0.5 - (subject.now + loop.time() - subject.began - took_s / 2)
    except (TimeoutError, OSError, DnsError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    return None


def is_synchronized() -> bool | None:
    """What the kernel says of the clock; None when it can't be asked."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(512)  # struct timex, with room
        if libc.adjtimex(buffer) < 0:
            return None
    except (OSError, AttributeError):
        return None
    word = ctypes.sizeof(ctypes.c_long)
    # behind an int with its padding and four longs lies the status
    status = ctypes.c_int.from_buffer(buffer, word * 5).value
    return not status & _UNSYNCHRONIZED
