"""xtext (RFC 3461 s. 4): "+" and two upper-case hexadecimal digits stand for an octet."""

from __future__ import annotations

import re

_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*\Z")
_HEX = re.compile(r"\+([0-9A-F]{2})")


class XtextError(ValueError):
    """Not xtext, or text that may not be printed once decoded."""


def decode_xtext(text: str) -> str:
    """The decoded text, printable ASCII (RFC 3461 s. 4.4 asks for that). Raises XtextError."""
    if not _XTEXT.match(text):
        raise XtextError("malformed xtext")
    decoded = _HEX.sub(lambda m: chr(int(m[1], 16)), text)
    if not (decoded.isascii() and decoded.isprintable()):
        raise XtextError("xtext stands for characters that are not printable ASCII")
    return decoded


def encode_xtext(text: str) -> str:
    """Printable ASCII as xtext."""
    return "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text)
