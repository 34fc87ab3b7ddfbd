"""What is known of the big mail providers: their mail servers, friendly limits, and words that mean "slower". PURE.

A provider is told by the names of a domain's mail servers, because most of its customers have domains of their own.
Anybody can name a provider's servers as his, so all of the best ones must be the provider's, and what another server
says is not taken for its word: a stranger must not be able to slow down our mail to Google. Limits: connections and
messages per connection as they are known to be taken without complaint (see docs/operations.md for where they come
from); `[[outbound.provider]]` overrides each, and adds providers.

A reply that says "you send too much" or "we don't like your address" is about everything we send there, not about one
message: the provider is left alone for a while, and then sent to more slowly. What becomes of the message itself is
for `mta.trouble` to say. Replies about one mailbox (x.2.x: "this user receives mail too quickly") slow nobody down.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pymx.config.model import Outbound
from pymx.config.model import Provider as ProviderSettings
from pymx.mail.status import split_status
from pymx.mta.trouble import Event, Phase, Remote
from pymx.queue.item import LOCAL
from pymx.queue.place import Kind, Limits, Place, Strain

_MINUTE_S, _HOUR_S = 60.0, 3600.0


@dataclass(frozen=True, slots=True)
class Slower:
    """Words of a reply, and how long nothing is sent to that provider at first."""

    pattern: re.Pattern[str]
    pause_s: float


@dataclass(frozen=True, slots=True)
class Provider:
    """`mx` are host names, or domains with a dot in front. 0 = as for everybody."""

    name: str
    mx: tuple[str, ...]
    connections: int = 0
    messages_per_connection: int = 0
    per_minute: int = 0
    per_hour: int = 0
    slower: tuple[Slower, ...] = ()

    def has(self, host: str) -> bool:
        return any(host.endswith(name) if name.startswith(".") else host == name for name in self.mx)


def _slower(pattern: str, pause_s: float) -> Slower:
    return Slower(re.compile(pattern, re.IGNORECASE), pause_s)


BUILT_IN = (
    Provider(
        "google", (".google.com", ".googlemail.com"), connections=5, messages_per_connection=50,
        slower=(
            _slower(r"[45]\.7\.28\b", 30 * _MINUTE_S),  # unusual rate of mail from our address
            _slower(r"\b421 4\.7\.0 .*(try again later|temporary system problem)", 10 * _MINUTE_S),
        ),
    ),
    Provider(
        "yahoo", (".yahoodns.net",), connections=5, messages_per_connection=20,
        slower=(
            _slower(r"\[TSS?\d\d\]", 30 * _MINUTE_S),  # [TSS04]: deferred due to volume or complaints
            _slower(r"\[(?:GL|PH|BL)\d\d\]", 2 * _HOUR_S),
        ),
    ),
    Provider(
        "microsoft-consumer", (".olc.protection.outlook.com",), connections=5, messages_per_connection=50,
        slower=(
            _slower(r"\bS31(?:40|50)\b", 2 * _HOUR_S),  # our network is on their block list
            _slower(r"\b4\.7\.65\d\b|\bRP-00\d\b", 30 * _MINUTE_S),
        ),
    ),
    Provider(
        "microsoft-365", (".mail.protection.outlook.com", ".mx.microsoft"), connections=5, messages_per_connection=50,
        slower=(
            _slower(r"\b4\.7\.(?:500|65\d|75\d)\b|\bA?S777\d+\b", 30 * _MINUTE_S),
            _slower(r"\b5\.7\.(?:606|511)\b|\bS31(?:40|50)\b", 2 * _HOUR_S),
        ),
    ),
    Provider(
        "apple", (".mail.icloud.com",), connections=10, messages_per_connection=5,
        slower=(_slower(r"\[(?:CS|HM)\d\d\]", 30 * _MINUTE_S),),
    ),
    Provider("proton", (".protonmail.ch",), connections=3, messages_per_connection=20),
    Provider(
        "gmx", (".gmx.net", ".gmx.de", ".web.de"), connections=3, messages_per_connection=20,
        slower=(_slower(r"\b(?:421|450|554) .*(?:reject due to policy|try again later).*ip", 30 * _MINUTE_S),),
    ),
)  # fmt: skip

# Of anybody. Only temporary replies: with a 5xx such words are about one message or one recipient.
_EVERYBODY = (
    _slower(r"rate.?limit|\bthrottl", 15 * _MINUTE_S),
    _slower(r"\btoo (?:many|much) (?:messages|mails?|e-mails?|emails?|connections|mail)\b", 10 * _MINUTE_S),
    _slower(r"\b(?:unusual|excessive|exceeded)\b.{0,40}\b(?:rate|volume)\b", 15 * _MINUTE_S),
    _slower(r"\btemporarily deferred due to\b|\bpoor reputation\b|\bip reputation\b", 30 * _MINUTE_S),
)

# Where nobody could be talked to, so that the next message would fare no better. Not STARTTLS: that it did not work
# matters only where a domain's policy or a message asks for it, and the next one may be for another domain.
_BEFORE_MAIL = frozenset({Phase.DNS, Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.AUTH})


# About a domain's own policy or a message's wish, not about hosts that others may share.
_OF_ONE_DOMAIN = (Event.NO_REQUIRETLS, Event.NOT_IN_POLICY, Event.NO_TLSA, Event.BAD_CERTIFICATE)


class Providers:
    """The table with the settings laid over it."""

    def __init__(self, outbound: Outbound) -> None:
        given = {settings.name: settings for settings in outbound.provider}
        own = [_own(settings) for name, settings in given.items() if name not in {p.name for p in BUILT_IN}]
        # an administrator's own come first: they may take hosts out of a built-in one
        self._all = (*own, *(_overridden(p, given.get(p.name)) for p in BUILT_IN))
        self._by_name = {provider.name: provider for provider in self._all}
        self._everybody = Limits(outbound.max_per_destination, outbound.max_messages_per_connection)

    def place(self, domain: str, hosts: Sequence[str]) -> Place:
        """Where mail for a domain goes whose best mail servers are `hosts` (none known: the domain stands for them)."""
        names = sorted({host.lower().rstrip(".") for host in hosts}) or [domain]
        key = names[0] if len(names) == 1 else ",".join(names)[:255]
        if key in self._by_name or key == LOCAL or ":" in key:
            key += "."  # called like a provider, the mailboxes here, or the next hop of a route, but none of them
        provider = next((p for p in self._all if all(p.has(name) for name in names)), None)
        if provider is None:
            return Place(key, key, self._everybody, direct=True)
        everybody = self._everybody
        limits = Limits(
            provider.connections or everybody.connections,
            provider.messages_per_connection or everybody.messages_per_connection,
            provider.per_minute,
            provider.per_hour,
        )
        return Place(provider.name, key, limits, direct=True)

    def speaks_for(self, place: Place, host: str) -> bool:
        """Whether a server is one of those that the place is called after. Behind them a domain may name any other."""
        name = host.lower().rstrip(".")
        provider = self._by_name.get(place.site)
        if provider is not None:
            return provider.has(name)
        return not place.direct or name in place.hosts.rstrip(".").split(",")

    def strain(self, site: str, phase: Phase, what: Remote | Event) -> Strain | None:
        """What trouble with one message says about the whole place."""
        if what in _OF_ONE_DOMAIN:
            return None
        if isinstance(what, Event):
            down = phase in _BEFORE_MAIL or (phase is Phase.MAIL and what is not Event.GARBAGE)
            return Strain(Kind.DOWN, f"{what.value} ({phase.value})") if down else None
        slower = self._slower(site, what)
        if slower is not None:
            return Strain(Kind.SLOW, str(what), slower.pause_s)
        if phase in _BEFORE_MAIL or what.code == 421:
            return Strain(Kind.DOWN, str(what))  # RFC 5321 s. 3.8: 421 is about the service, not the message
        return None

    def _slower(self, site: str, reply: Remote) -> Slower | None:
        if not 400 <= reply.code < 600 or split_status(reply.text)[0][1:].startswith(".2."):
            return None
        words = str(reply)
        provider = self._by_name.get(site)
        if provider is not None:
            found = next((s for s in provider.slower if s.pattern.search(words)), None)
            if found is not None:
                return found
        if reply.code >= 500:
            return None
        return next((s for s in _EVERYBODY if s.pattern.search(words)), None)


def _own(settings: ProviderSettings) -> Provider:
    return Provider(
        settings.name,
        tuple(name.lower() for name in settings.mx),
        settings.max_connections,
        settings.max_messages_per_connection,
        settings.messages_per_minute,
        settings.messages_per_hour,
    )


def _overridden(provider: Provider, settings: ProviderSettings | None) -> Provider:
    if settings is None:
        return provider
    return Provider(
        provider.name,
        tuple(name.lower() for name in settings.mx) or provider.mx,
        settings.max_connections or provider.connections,
        settings.max_messages_per_connection or provider.messages_per_connection,
        settings.messages_per_minute or provider.per_minute,
        settings.messages_per_hour or provider.per_hour,
        provider.slower,
    )
