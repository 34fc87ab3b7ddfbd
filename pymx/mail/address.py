"""Mailbox addresses and SMTP paths (RFC 5321 s. 4.1.2, RFC 6531 s. 3.3).

`parse_address` takes an addr-spec, `parse_path` the bracketed path of MAIL FROM and RCPT TO (source routes are
read and dropped, RFC 5321 appendix C). Both raise `AddressError` for everything outside the grammar: what is let
through here is later written into other servers' command lines.

Lookups use `Address.key`: RFC 5321 makes the local part case-sensitive, but no mailbox provider does, and the
accounts database compares without case.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import idna

MAX_LOCAL_PART_OCTETS = 64  # RFC 5321 s. 4.5.3.1.1
MAX_DOMAIN_OCTETS = 255  # s. 4.5.3.1.2
MAX_PATH_OCTETS = 256  # s. 4.5.3.1.3

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\u0080-\U0010ffff]"
_DOT_STRING = re.compile(rf"{_ATEXT}+(?:\.{_ATEXT}+)*\Z")
_QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e\u0080-\U0010ffff]|\\[\x20-\x7e])*)"\Z')
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?\Z")
_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # what octets outside UTF-8 become in a str ("surrogateescape")
_LITERAL = re.compile(r"\[(?:IPv6:[0-9A-Fa-f:.]{2,45}|[0-9]{1,3}(?:\.[0-9]{1,3}){3})\]\Z")
# Local part (dot-string or quoted-string), "@", domain: enough to find where the address ends.
_PATH = re.compile(
    r"<(?:(?P<route>@[^:<>\s]+(?:,@[^:<>\s]+)*):)?"
    r"(?P<address>(?:\"(?:[^\"\\\r\n]|\\.)*\"|[^\"<>@\s]+)(?:@[^<>@\s]*)?)?>"
)


class AddressError(ValueError):
    """The text is not an address. The message says why and may be shown to the peer."""


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox: `local_part` without quoting, `domain` lower case (U-labels as U-labels; "" only for postmaster)."""

    local_part: str
    domain: str

    def __str__(self) -> str:
        local = self.local_part
        if not _DOT_STRING.match(local):
            local = '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return f"{local}@{self.domain}" if self.domain else local

    @property
    def key(self) -> str:
        """What the accounts database is asked for: lower case, unquoted."""
        return f"{self.local_part}@{self.domain}".lower()

    @property
    def is_ascii(self) -> bool:
        return self.local_part.isascii() and self.domain.isascii()

    @property
    def ascii_domain(self) -> str:
        """The domain in A-labels, for DNS and for remotes without SMTPUTF8."""
        return domain_to_ascii(self.domain)

    def without_detail(self, delimiter: str) -> Address:
        """The address with its subaddress removed (RFC 5233 s. 1): alice+x@d → alice@d. No delimiter: as it is."""
        head, sep, _ = self.local_part.partition(delimiter) if delimiter else (self.local_part, "", "")
        return Address(head, self.domain) if sep and head else self

    def detail(self, delimiter: str) -> str:
        """The subaddress: alice+x@d → x, or ""."""
        head, sep, tail = self.local_part.partition(delimiter) if delimiter else (self.local_part, "", "")
        return tail if sep and head else ""


def domain_to_ascii(domain: str) -> str:
    """`domain` in A-labels, lower case. Raises AddressError when IDNA 2008 has no form for it."""
    if domain.isascii():
        return domain.lower()
    try:
        return idna.encode(domain, uts46=True).decode("ascii").lower()
    except idna.IDNAError as e:
        raise AddressError(f"domain {domain!r} has no IDNA form: {e}") from None


def parse_domain(text: str) -> str:
    """A domain or address literal in normal form (lower case). Raises AddressError."""
    if text.startswith("["):
        if not _LITERAL.match(text):
            raise AddressError("malformed address literal")
        return text.lower()
    text = text.rstrip(".")  # a trailing dot is outside the grammar, but common and unambiguous
    if not text or len(text.encode("utf-8")) > MAX_DOMAIN_OCTETS:
        raise AddressError("domain is empty or longer than 255 octets")
    ascii_form = domain_to_ascii(text)
    for label in ascii_form.split("."):
        if not _LABEL.match(label):
            raise AddressError(f"malformed domain label {label!r}")
    return text.lower()


def parse_address(text: str) -> Address:
    """An addr-spec as an Address. Raises AddressError."""
    local, at, domain = text.rpartition("@")
    if not text.isascii() and _NOT_UTF8.search(text):
        raise AddressError("address is not UTF-8")
    if not at:
        raise AddressError("address has no domain")
    return Address(_parse_local_part(local), parse_domain(domain))


def _parse_local_part(text: str) -> str:
    if len(text.encode("utf-8")) > MAX_LOCAL_PART_OCTETS + 2 * text.startswith('"'):
        raise AddressError("local part is longer than 64 octets")
    if _DOT_STRING.match(text):
        return text
    quoted = _QUOTED.match(text)
    if not quoted:
        raise AddressError("malformed local part")
    return re.sub(r"\\(.)", r"\1", quoted[1])


def parse_path(text: str) -> tuple[Address | None, str]:
    """A path at the start of `text`: (address, what follows it). The null path `<>` gives None.

    `<postmaster>` without a domain is allowed for RCPT (RFC 5321 s. 4.1.1.3): Address("postmaster", "").
    Raises AddressError.
    """
    match = _PATH.match(text)
    if not match:
        raise AddressError("path must be an address in angle brackets")
    if len(match[0].encode("utf-8")) > MAX_PATH_OCTETS + 2 and not match["route"]:
        raise AddressError("path is longer than 256 octets")
    rest = text[match.end() :]
    if match["address"] is None:
        if match["route"]:
            raise AddressError("path is a route without an address")
        return None, rest
    if match["address"].lower() == "postmaster":
        return Address("postmaster", ""), rest
    return parse_address(match["address"]), rest
