"""Where a domain wants its reports sent: the `rua` of its DMARC (RFC 7489 s. 6.2) or TLSRPT record (RFC 8460 s. 3).

A DMARC report goes to another organization only if that one says that it takes them (RFC 7489 s. 7.1): otherwise
anybody could have our mail sent to anybody. Addresses are those of mailto: and https: URIs; what else is asked for is
left out with the reason.

Raises TemporaryDnsError; whoever can't be asked now is asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from pymx.mail.address import Address, AddressError, parse_address
from pymx.mailauth.dkim.tags import TagError, parse_tags
from pymx.mailauth.dmarc.organization import record_at, registrable_domain
from pymx.mailauth.dmarc.record import find_record
from pymx.mailauth.questions import Questions, texts

MAX_DESTINATIONS = 5
_MAX_URI = 1000
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, slots=True)
class Destination:
    """`address` for mailto:, None for https:. `max_octets` 0: no limit was given."""

    uri: str
    address: Address | None
    max_octets: int = 0

    @property
    def host(self) -> str:
        return self.address.domain if self.address else urlsplit(self.uri).hostname or ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where to, and which wishes are not met: (URI, why)."""

    destinations: tuple[Destination, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


async def dmarc_wanted(resolver: Questions, domain: str) -> Wanted:
    """For the domain at whose `_dmarc` the record is."""
    record = await record_at(resolver, domain)
    if record is None or not record.tags.get("rua"):
        return Wanted()
    found, refused = _destinations(record.tags["rua"], sizes=True, https=False)
    allowed: list[Destination] = []
    for destination in found:
        accepted = await _accepted(resolver, domain, destination)
        if accepted is None:
            refused.append((destination.uri, f"{destination.host} does not say that it takes reports about {domain}"))
        else:
            allowed += accepted
    return Wanted(tuple(dict.fromkeys(allowed))[:MAX_DESTINATIONS], tuple(refused))


async def _accepted(resolver: Questions, domain: str, destination: Destination) -> Sequence[Destination] | None:
    """RFC 7489 s. 7.1: the destination, or what its host wants to have instead of it; None when it wants nothing."""
    assert destination.address is not None
    host = destination.address.ascii_domain
    if registrable_domain(host) == registrable_domain(domain):
        return [destination]
    record = find_record(await texts(resolver, f"{domain}._report._dmarc.{host}"))
    if record is None:
        return None
    # step 7: it may name other addresses, but only its own
    others, _ = _destinations(record.tags.get("rua", ""), sizes=True, https=False)
    return [other for other in others if other.address and other.address.ascii_domain == host] or [destination]


async def tls_wanted(resolver: Questions, domain: str) -> Wanted:
    """For a domain that mail was sent to."""
    records = [t for t in await texts(resolver, f"_smtp._tls.{domain}") if t.startswith(b"v=TLSRPTv1;")]
    if len(records) != 1:  # RFC 8460 s. 3: more than one is none
        return Wanted()
    try:
        tags = parse_tags(records[0], gaps=True)
    except TagError:
        return Wanted()
    found, refused = _destinations(tags.get("rua", ""), sizes=False, https=True)
    return Wanted(tuple(found), tuple(refused))


def _destinations(rua: str, *, sizes: bool, https: bool) -> tuple[list[Destination], list[tuple[str, str]]]:
    found: list[Destination] = []
    refused: list[tuple[str, str]] = []
    for uri in filter(None, (part.strip() for part in rua.split(","))):
        if len(found) >= MAX_DESTINATIONS:
            refused.append((uri[:_MAX_URI], f"only {MAX_DESTINATIONS} destinations are served"))
            continue
        try:
            found.append(parse_destination(uri, sizes=sizes, https=https))
        except ValueError as e:
            refused.append((uri[:_MAX_URI], str(e)))
    return list(dict.fromkeys(found)), refused


def parse_destination(uri: str, *, sizes: bool, https: bool) -> Destination:
    """One URI of a `rua`. `sizes`: it may end in a limit such as !10m. Raises ValueError."""
    if len(uri) > _MAX_URI or not uri.isascii() or not uri.isprintable():
        raise ValueError("not a URI")
    limit = 0
    if sizes and "!" in uri:
        uri, _, size = uri.rpartition("!")
        limit = _octets(size)
    scheme, _, rest = uri.partition(":")
    if scheme.lower() == "mailto":
        try:
            address = parse_address(unquote(rest.partition("?")[0], errors="strict"))
        except (AddressError, UnicodeDecodeError) as e:
            raise ValueError(f"not an address: {e}") from None
        if address.domain.startswith("["):
            raise ValueError("an address literal")
        return Destination(f"mailto:{address}", address, limit)
    if scheme.lower() == "https" and https:
        parts = urlsplit(uri)
        if not parts.hostname or parts.username is not None:
            raise ValueError("a URL without a host, or with a login")
        return Destination(uri, None, limit)
    raise ValueError(f"{scheme[:20]}: is not served")


def _octets(size: str) -> int:
    digits, unit = size.lower(), ""
    if digits[-1:].isalpha():
        digits, unit = digits[:-1], digits[-1]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 12) or unit not in _UNITS:
        raise ValueError(f"not a size: !{size[:20]}")
    return int(digits) * _UNITS[unit]
