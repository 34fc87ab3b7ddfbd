"""Flags as a client names them, split into system flags and keywords (RFC 3501 s. 2.3.2)."""

from __future__ import annotations

from collections.abc import Iterable

from pymx.mail.flags import MAX_KEYWORD_OCTETS, system_flag
from pymx.proto.imap.errors import Bad, No


def split_flags(names: Iterable[str]) -> tuple[int, tuple[str, ...]]:
    """(bits of the system flags, keywords); \\Recent can't be set by a client and is passed over."""
    bits = 0
    keywords: dict[str, str] = {}
    for name in names:
        if name.startswith("\\"):
            bit = system_flag(name)
            if bit is not None:
                bits |= bit
            elif name.lower() != "\\recent":
                raise Bad(f"Unknown system flag {name}")
        elif len(name) > MAX_KEYWORD_OCTETS:
            raise No("Keyword is too long", code="LIMIT")
        else:
            keywords.setdefault(name.lower(), name)
    return bits, tuple(keywords.values())
