"""The public pages: ACME challenges, the MTA-STS policy, and what mail clients ask for to set themselves up.

    /.well-known/acme-challenge/TOKEN             RFC 8555 s. 8.3, any host name
    /.well-known/mta-sts.txt                      RFC 8461 s. 3.2, on mta-sts.DOMAIN
    /mail/config-v1.1.xml                         autoconfig, on autoconfig.DOMAIN or the server's name
    /.well-known/autoconfig/mail/config-v1.1.xml  autoconfig, on DOMAIN
    /autodiscover/autodiscover.xml                Outlook, POST
    /autodiscover/autodiscover.json               the probe of newer clients
    /mail/profile.mobileconfig                    Apple; ?emailaddress=

Everything else is 404, and so is everything about a domain that is not ours. Nothing tells whether an account exists:
the answers are made from the domain and the configuration alone. Status and metrics have a listener of their own.

While the accounts database does not answer, pages are 503 with Retry-After; challenges need no database.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import parse_qs, unquote

from pymx import log, metrics
from pymx.accounts.account import DirectoryUnavailable
from pymx.config.model import Config
from pymx.mail.address import Address, AddressError, domain_to_ascii, parse_address, parse_domain
from pymx.mail.sts_policy import policy_text
from pymx.web import autoconfig, autodiscover, mobileconfig
from pymx.web.http import TEXT, Request, Response
from pymx.web.services import Services, services

MAX_BODY_OCTETS = 16_384
_CHALLENGE = "/.well-known/acme-challenge/"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")  # base64url (RFC 8555 s. 8.3)
_MAX_CHALLENGE_OCTETS = 1024
_STS = "/.well-known/mta-sts.txt"
_POX = "/autodiscover/autodiscover.xml"
_PROBE = "/autodiscover/autodiscover.json"
_PREFIXES = ("mta-sts.", "autoconfig.", "autodiscover.")
_NOT_FOUND = Response.text(404, "there is nothing here\n")

IsLocal = Callable[[str], Awaitable[bool]]
KeyPair = Callable[[], tuple[Path, Path]]

_log = log.get("web")


class PublicPages:
    """`is_local` says whether a domain is ours, `challenges` is where challenges are put, `key_pair` are the files of
    the server's certificate and key. `redirect_to_tls`: Outlook asking over HTTP is sent to HTTPS."""

    def __init__(self, config: Config, is_local: IsLocal, *, challenges: Path, key_pair: KeyPair) -> None:
        self._services: Services = services(config)
        self._hostname = config.hostname.lower()
        self._policy = policy_text(
            config.mta_sts.mode, config.mta_sts.mx or [config.hostname], config.mta_sts.max_age_s
        )
        self._is_local = is_local
        self._challenges = challenges
        self._key_pair = key_pair
        self._redirect_to_tls = bool(config.web.listen_tls)
        self._complained = ""

    async def respond(self, request: Request) -> Response:
        """For `HttpServer`."""
        try:
            response = await self._page(request)
        except DirectoryUnavailable as e:
            _log.warning("page_unavailable", path=request.path[:200], reason=e.reason)
            response = Response(503, b"try again later\n", TEXT, (("Retry-After", "300"),))
        metrics.add("web_requests", 1, status=str(response.status))
        # scanners ask for whatever there is in the world: that is not worth a line
        write = _log.debug if response.status == 404 else _log.info
        write(
            "page_served", peer_ip=request.peer_ip, host=request.host[:255], path=request.path[:200],
            status=response.status, size_octets=len(response.body), tls=request.secure,
        )  # fmt: skip
        return response

    async def _page(self, request: Request) -> Response:
        path = request.path
        if path.lower() == _POX:  # clients don't agree on its case
            return await self._autodiscover(request)
        if request.method != "GET":
            return Response(405, b"only GET and HEAD\n", TEXT, (("Allow", "GET, HEAD"),))
        if path.startswith(_CHALLENGE):
            return await asyncio.to_thread(self._challenge, path.removeprefix(_CHALLENGE))
        if path == _STS:
            return await self._sts(request)
        if path in autoconfig.PATHS:
            domain = await self._domain(request)
            if domain:
                return _cached(autoconfig.client_config(domain, self._services), autoconfig.CONTENT_TYPE)
        elif path == mobileconfig.PATH:
            return await self._mobileconfig(request)
        elif path.lower().startswith(_PROBE):
            return await self._probe(request)
        return _NOT_FOUND

    def _challenge(self, token: str) -> Response:
        if not _TOKEN.match(token):
            return _NOT_FOUND
        try:
            with (self._challenges / token).open("rb") as file:
                content = file.read(_MAX_CHALLENGE_OCTETS)
        except OSError:
            return _NOT_FOUND
        return Response(200, content, "application/octet-stream")

    async def _sts(self, request: Request) -> Response:
        domain = request.host.removeprefix("mta-sts.")
        if domain == request.host or not await self._is_ours(domain):
            return _NOT_FOUND
        return _cached(self._policy.encode(), "text/plain")

    async def _autodiscover(self, request: Request) -> Response:
        if request.method != "POST":
            # "the client sends an unauthenticated GET … and follows a redirect" (MS-OXDISCO s. 3.1.5.4)
            if request.method == "GET" and not request.secure and self._redirect_to_tls and await self._domain(request):
                return Response(302, b"", TEXT, (("Location", f"https://{request.host}{_POX}"),))
            return Response(405, b"only POST\n", TEXT, (("Allow", "POST"),))
        try:
            wanted = autodiscover.read_request(request.body)
            address = parse_address(wanted.email)
        except (autodiscover.RequestError, AddressError) as e:
            _log.debug("page_refused", peer_ip=request.peer_ip, path=request.path[:200], reason=str(e))
            return _autodiscover_failure(600, "Invalid Request")
        if not await self._is_ours(address.domain):
            return _NOT_FOUND
        if not wanted.answerable:
            return _autodiscover_failure(601, "There is no provider for the requested schema")
        return Response(200, autodiscover.settings(str(address), self._services), autodiscover.CONTENT_TYPE)

    async def _probe(self, request: Request) -> Response:
        """/autodiscover/autodiscover.json?Email=…&Protocol=… or /autodiscover/autodiscover.json/v1.0/ADDRESS?…"""
        rest = request.path[len(_PROBE) :]
        query = {name.lower(): values[0] for name, values in _query(request).items()}
        address = _address(unquote(rest.rpartition("/")[2]) if rest else query.get("email", ""))
        if address is None or not await self._is_ours(address.domain):
            return _NOT_FOUND
        status, body = autodiscover.probe(query.get("protocol", ""), f"https://{request.host}{_POX}")
        return Response(status, body, autodiscover.JSON)

    async def _mobileconfig(self, request: Request) -> Response:
        address = _address(_query(request).get("emailaddress", [""])[0])
        domain = await self._domain(request)
        if not domain:
            return _NOT_FOUND
        content = mobileconfig.profile(domain, address, self._services)
        try:
            content = await asyncio.to_thread(mobileconfig.signed, content, *self._key_pair())
            self._complained = ""
        except mobileconfig.SigningError as e:
            if str(e) != self._complained:  # once, not for each visitor
                self._complained = str(e)
                _log.warning("profile_not_signed", reason=str(e))
        return Response(
            200, content, mobileconfig.CONTENT_TYPE,
            (("Content-Disposition", 'attachment; filename="mail.mobileconfig"'), ("Cache-Control", "no-store")),
        )  # fmt: skip

    async def _domain(self, request: Request) -> str:
        """The domain of ours that a request is about, in A-labels; "" = none.

        It is the one of `emailaddress` if that is given, else that of the host name; a host that is not ours gets no
        answer in either case.
        """
        host = request.host
        for prefix in _PREFIXES:
            host = host.removeprefix(prefix)
        if host != self._hostname and not await self._is_ours(host):
            return ""
        given = _query(request).get("emailaddress")
        if given:
            address = _address(given[0])
            return address.ascii_domain if address is not None and await self._is_ours(address.domain) else ""
        return host

    async def _is_ours(self, domain: str) -> bool:
        try:
            return bool(domain) and await self._is_local(parse_domain(domain))
        except AddressError:
            return False


def _cached(body: bytes, content_type: str) -> Response:
    return Response(200, body, content_type, (("Cache-Control", "max-age=300"),))


def _autodiscover_failure(code: int, message: str) -> Response:
    # the protocol's errors come with status 200
    body = autodiscover.failure(code, message, time_of_day=time.strftime("%H:%M:%S.0000000", time.gmtime()))
    return Response(200, body, autodiscover.CONTENT_TYPE)


def _query(request: Request) -> dict[str, list[str]]:
    with contextlib.suppress(ValueError):
        return parse_qs(request.query, max_num_fields=20)
    return {}


def _address(text: str) -> Address | None:
    try:
        address = parse_address(text)
        domain_to_ascii(address.domain)
    except AddressError:
        return None
    return address
