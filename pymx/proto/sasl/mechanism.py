"""What a SASL mechanism looks like (RFC 4422 s. 3): octets in, a challenge or credentials out.

The protocol around it (AUTH of SMTP, AUTHENTICATE of IMAP) does the base64 and the continuation lines. Passwords are
checked elsewhere: a mechanism only reads what the client said. `SaslError` means that it said nothing sensible.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class SaslError(Exception):
    """The client's response does not follow the mechanism."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the server says next; the client answers it."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the client wants to be known as; `authzid` is "" or equal to `login` (we know no acting for others)."""

    login: str
    password: str = field(repr=False)
    authzid: str = ""


class Mechanism(Protocol):
    """One exchange of one client; use once."""

    def initial(self) -> Challenge:
        """The first challenge, for a client that sent no initial response."""

    def step(self, response: bytes) -> Challenge | Credentials:
        """Take the client's next response. Raises SaslError."""


def decode_text(data: bytes, what: str) -> str:
    """UTF-8 without NUL. Raises SaslError."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise SaslError(f"{what} is not UTF-8") from None
    if "\0" in text:
        raise SaslError(f"{what} holds a NUL")
    return text
