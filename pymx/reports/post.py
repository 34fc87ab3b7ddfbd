"""A TLS report handed over by HTTPS (RFC 8460 s. 5.4).

No redirects, no proxies from the environment, at most 64 KB of answer, and no address that is not public: where a
domain's record leads, our own network must not be reached. The name is looked up by our resolver and the connection
made to the address that was checked: that is asked of the address of each socket, so that nothing hangs on how the HTTP
library reads a URL. It is loaded with the first report.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from pymx.reports.error import NotTaken
from pymx.resolver.answer import DnsError, TemporaryDnsError
from pymx.resolver.public import is_public

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

_TIMEOUT_S = 60.0
_MAX_ANSWER_OCTETS = 65_536


class Addresses(Protocol):
    """What is used of `resolver.resolver.Resolver`."""

    async def addresses(self, host: str, *, ipv6: bool = True) -> list[str]: ...


async def post(
    resolver: Addresses,
    url: str,
    payload: bytes,
    media_type: str,
    *,
    allow_private: bool = False,
    context: ssl.SSLContext | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> None:
    """POST `payload`; returns when it was taken. Raises NotTaken."""
    import aiohttp

    host = urlsplit(url).hostname or ""
    if _is_literal(host) and not (allow_private or is_public(host)):
        raise NotTaken(f"{host} is not a public address", temporary=False)

    def checked_socket(address: Sequence[object]) -> socket.socket:
        """`address` is what getaddrinfo gives for one."""
        family, kind, protocol = address[:3]
        to = str(address[4][0])  # type: ignore[index]  # host and port, for which it has no type
        if not _is_literal(to) or not (allow_private or is_public(to)):
            raise NotTaken(f"{to} is not a public address", temporary=False)
        made = socket.socket(family, kind, protocol)  # type: ignore[arg-type]  # as above
        made.setblocking(False)
        return made

    connector = aiohttp.TCPConnector(
        resolver=_checked_resolver(resolver, allow_private=allow_private),
        ssl=context or ssl.create_default_context(),
        limit=1,
        socket_factory=checked_socket,
    )
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            session.post(url, data=payload, headers={"Content-Type": media_type}, allow_redirects=False) as answer,
        ):
            await answer.content.read(_MAX_ANSWER_OCTETS)
            if answer.status in (200, 201, 202, 204):
                return
            temporary = answer.status in (408, 425, 429) or answer.status >= 500
            raise NotTaken(f"{host} answered {answer.status}", temporary=temporary)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as e:
        raise NotTaken(f"{host}: {e or type(e).__name__}", temporary=True) from e


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _checked_resolver(resolver: Addresses, *, allow_private: bool) -> AbstractResolver:
    """aiohttp's view of our resolver, which knows public addresses only."""
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Checked(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            try:
                found = await resolver.addresses(host)
            except DnsError as e:
                raise NotTaken(str(e), temporary=isinstance(e, TemporaryDnsError)) from e
            public = [a for a in found if allow_private or is_public(a)]
            if not public:
                raise NotTaken(f"{host} has no public address", temporary=False)
            return [
                ResolveResult(
                    hostname=host,
                    host=address,
                    port=port,
                    family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                    proto=0,
                    flags=socket.AI_NUMERICHOST,
                )
                for address in public
            ]

        async def close(self) -> None:
            """Nothing is held."""

    return Checked()
