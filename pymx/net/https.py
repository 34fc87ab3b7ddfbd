"""One small file over HTTPS, from addresses that the caller chose.

`get` connects to those addresses and no others, verifies the certificate for the URL's host, follows no redirect, takes
no more than the octets and the seconds it is given, and wants status 200 and the content type asked for. No cookies, no
proxies of the environment, no content coding. Errors: `FetchError`, whose text names what was wrong.

aiohttp is loaded by the first call: most servers that never send mail to such domains do without its memory.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp


class FetchError(Exception):
    """There is no such file, or not in a way that may be trusted. `certificate`: its TLS certificate is at fault."""

    def __init__(self, reason: str, *, certificate: bool = False) -> None:
        super().__init__(reason)
        self.certificate = certificate


@dataclass(frozen=True, slots=True)
class Limits:
    """What one fetch may take."""

    octets: int
    timeout_s: float


async def get(
    url: str,
    *,
    addresses: Sequence[str],
    context: ssl.SSLContext,
    content_type: str,
    limits: Limits,
    agent: str = "pymx",
) -> bytes:
    """The body of the response. Raises FetchError."""
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Given(AbstractResolver):
        """The name's addresses are those that the caller looked up and judged."""

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            return [
                ResolveResult(
                    hostname=host, host=address, port=port, proto=0, flags=socket.AI_NUMERICHOST,
                    family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                )
                for address in addresses
            ]  # fmt: skip

        async def close(self) -> None:
            pass

    sockets: list[socket.socket] = []

    def kept(address: Sequence[object]) -> socket.socket:
        """A socket as aiohttp would make it. `address` is what getaddrinfo gives for one."""
        family, kind, protocol = address[:3]
        made = socket.socket(family, kind, protocol)  # type: ignore[arg-type]  # three numbers, which it has no type for
        made.setblocking(False)
        sockets.append(made)
        return made

    connector = aiohttp.TCPConnector(resolver=Given(), ssl=context, use_dns_cache=False, socket_factory=kept)
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=limits.timeout_s),
                headers={"User-Agent": agent, "Accept": content_type, "Accept-Encoding": "identity"},
            ) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            return await _body(response, content_type, limits.octets)
    except aiohttp.ClientConnectorCertificateError as e:
        raise FetchError(f"the certificate is not accepted: {e.certificate_error}", certificate=True) from None
    except aiohttp.ClientSSLError as e:
        raise FetchError(f"TLS failed: {e}", certificate=True) from None
    except TimeoutError:
        raise FetchError(f"no answer within {limits.timeout_s:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as e:
        raise FetchError(str(e) or type(e).__name__) from None
    finally:
        for one in sockets:
            # a peer that does not answer would not say goodbye in TLS either, and be waited for
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


async def _body(response: aiohttp.ClientResponse, content_type: str, octets: int) -> bytes:
    if 300 <= response.status < 400:
        raise FetchError(f"status {response.status}: redirects are not followed")
    if response.status != 200:
        raise FetchError(f"status {response.status}")
    if response.content_type != content_type:
        raise FetchError(f"content type {response.content_type!r} is not {content_type}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise FetchError("the content is compressed")
    found = bytearray()
    async for piece in response.content.iter_chunked(8192):
        found += piece
        if len(found) > octets:
            raise FetchError(f"longer than {octets} octets")
    return bytes(found)
