"""Enhanced mail system status codes (RFC 3463, RFC 5248) as they are used here."""

from __future__ import annotations

import re

_STATUS = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?=\s|\Z)")


def split_status(text: str) -> tuple[str, str]:
    """A reply's text as (enhanced status code or "", the rest)."""
    match = _STATUS.match(text)
    return (match[0], text[match.end() :].lstrip()) if match else ("", text)
