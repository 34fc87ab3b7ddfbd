"""Trace fields: Received (RFC 5321 s. 4.4), Return-Path (s. 4.4), Delivered-To (RFC 9228).

All go through `build_field`; what a peer called itself is cut down to the letters a name or an address literal may
have, so that nothing it says can close a comment or look like a clause of ours.
"""

from __future__ import annotations

import re

from pymx.mail.address import Address
from pymx.mail.date import format_date
from pymx.mail.envelope import Listener, Origin
from pymx.mail.header import build_field, count, find

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9.:_\[\]-]")
_MAX_NAME = 255


def _name(text: str) -> str:
    return _NOT_IN_A_NAME.sub("?", text[:_MAX_NAME])


def received(*, hostname: str, origin: Origin, queue_id: str, now: float, recipient: Address | None = None) -> bytes:
    """The Received field of this hop. `recipient` only if the message has no other: the clause would show it to them.

    Deviation: mail from our own users names this host where RFC 5321 s. 4.4 wants the client: where they are is
    nobody's business.
    """
    tls = ""
    if origin.tls:
        version, _, cipher = origin.tls.partition(" ")
        tls = f" (using {_name(version)} with cipher {_name(cipher)})" if cipher else f" (using {_name(version)})"
    destination = f" for <{recipient}>" if recipient is not None else ""
    clauses = f"by {hostname} with {origin.protocol} id {queue_id}{destination}; {format_date(now)}"
    if origin.listener is Listener.LOCAL:
        # RFC 3848 has no word for mail that is made here, so there is no "with" clause
        return build_field("Received", f"from {hostname} by {hostname} id {queue_id}{destination}; {format_date(now)}")
    if origin.listener is Listener.SUBMISSION:
        return build_field("Received", f"from {hostname}{tls} {clauses}")
    return build_field("Received", f"from {_from_clause(origin)}{tls} {clauses}")


def _from_clause(origin: Origin) -> str:
    """Extended-Domain (RFC 5321 s. 4.4): the name in EHLO, then in parentheses what we know of the peer."""
    helo = _name(origin.helo) or "unknown"
    if not origin.peer_ip:
        return helo
    literal = f"IPv6:{origin.peer_ip}" if ":" in origin.peer_ip else origin.peer_ip
    confirmed = _name(origin.peer_name) + " " if origin.peer_name else ""
    return f"{helo} ({confirmed}[{_name(literal)}])"


def return_path(mail_from: Address | None) -> bytes:
    """The Return-Path field, written at final delivery only; `<>` for the null reverse-path."""
    return build_field("Return-Path", f"<{mail_from or ''}>", fold=False)


def delivered_to(address: Address | str) -> bytes:
    """The Delivered-To field of the address a message was delivered to."""
    return build_field("Delivered-To", str(address), fold=False)


def count_received(block: bytes) -> int:
    """How many hops the header block tells of."""
    return count(block, "received")


def count_received_by(block: bytes, hostname: str) -> int:
    """How many hops the header block tells of that were at the host of that name."""
    by = re.compile(rb"[ \t]by[ \t]+" + re.escape(hostname.encode("ascii")) + rb"[ \t;]", re.IGNORECASE)
    return sum(1 for _, field in find(block, "received") if by.search(b" " + field.value + b" "))


def was_delivered_to(block: bytes) -> frozenset[str]:
    """The addresses, in lower case, that Delivered-To fields say the message was delivered to."""
    return frozenset(field.value.decode("utf-8", "replace").strip().lower() for _, field in find(block, "delivered-to"))
