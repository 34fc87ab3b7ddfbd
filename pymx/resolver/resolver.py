"""The one way to ask the name system: dnspython behind one cache, one question at a time for each name and type.

Guarantees: a temporary failure is never reported as "no record"; equal questions asked at the same time are sent
once; every wait ends after `[dns] timeout_s`, all servers and tries included; memory is bounded by
`[dns] cache_entries`.

Questions carry EDNS with a 1,232 octet buffer (RFC 9715) and the AD bit (RFC 6840 s. 5.7), so a validating resolver
says whether the answer was authenticated. Its word counts when `[dns] authenticated` says so: on the way from a server
elsewhere anybody could set the bit. A truncated answer is asked for again over TCP; a server that does not know
EDNS (FORMERR, RFC 6891 s. 7) is asked again without it.

Negative answers are kept for the SOA's time, at most five minutes (RFC 2308 s. 5 allows more, but people who repair
their DNS want mail soon); failures for five seconds (s. 7.1).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.resolver
import dns.reversename
from dns.rdtypes.tlsabase import TLSABase

from pymx import log, metrics
from pymx.config.model import Dns
from pymx.resolver.answer import Answer, DnsError, Located, NoRecords, NoSuchDomain, TemporaryDnsError
from pymx.resolver.cache import TtlCache

_EDNS_OCTETS = 1232
_MIN_TTL_S = 5  # a TTL of 0 still serves the questions of one message
_MAX_NEGATIVE_TTL_S = 300
_FAILURE_TTL_S = 5
_TRIES = 2
_MAX_CACHE_OCTETS = 33_554_432
_RECORD_OCTETS = 200  # what a small record takes with what is around it

_Key = tuple[str, str]
_log = log.get("resolver")


class Resolver:
    """Asynchronous DNS lookups for one event loop."""

    def __init__(self, dns_settings: Dns) -> None:
        take_any_tlsa()
        self._servers = servers(dns_settings)
        self.trusted = _trusted(dns_settings.authenticated, self._servers)
        self._timeout_s = dns_settings.timeout_s
        self._max_ttl_s = dns_settings.max_ttl_s
        self._cache: TtlCache[Answer | DnsError] = TtlCache(dns_settings.cache_entries, _MAX_CACHE_OCTETS)
        self._asking: dict[_Key, asyncio.Future[None]] = {}
        self._backend = dns.asyncbackend.get_backend("asyncio")
        self._no_edns: set[tuple[str, int]] = set()

    async def mx(self, domain: str) -> list[tuple[int, str]]:
        """(preference, host) in no order. A null MX (RFC 7505) is visible as a host ""."""
        answer = await self.resolve(domain, "MX")
        return [(int(str(preference)), str(host)) for preference, host in answer.records]

    async def addresses(self, host: str, *, ipv6: bool = True) -> list[str]:
        """The addresses of a host, IPv6 first. Raises NoRecords or NoSuchDomain when it has none at all.

        When one family has addresses and the other fails temporarily, the addresses are given; when none is found and
        one failed, that is a temporary failure.
        """
        if not ipv6:
            return [str(r[0]) for r in (await self.resolve(host, "A")).records]
        return list((await self.located(host)).addresses)

    async def located(self, host: str) -> Located:
        """The same, with what DNSSEC says of it."""
        answers: list[Answer] = []
        failure: DnsError | None = None
        results = await asyncio.gather(self.resolve(host, "AAAA"), self.resolve(host, "A"), return_exceptions=True)
        for result in results:
            if isinstance(result, Answer):
                answers.append(result)
            elif not isinstance(result, DnsError):
                raise result
            elif failure is None or isinstance(result, TemporaryDnsError):
                failure = result
        if not answers:
            assert failure is not None
            raise failure
        return Located(
            tuple(str(record[0]) for answer in answers for record in answer.records),
            answers[0].canonical_name,
            all(answer.authenticated for answer in answers),
        )

    async def txt(self, name: str) -> list[bytes]:
        """The TXT records of a name, the strings of each joined (RFC 7208 s. 3.3)."""
        answer = await self.resolve(name, "TXT")
        return [b"".join(s for s in record if isinstance(s, bytes)) for record in answer.records]

    async def ptr(self, ip: str) -> list[str]:
        """The names of an address."""
        name = dns.reversename.from_address(ip).to_text()
        return [str(r[0]) for r in (await self.resolve(name, "PTR")).records]

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()

    async def resolve(self, name: str, rdtype: str) -> Answer:
        """The records of a type at a name. Raises NoSuchDomain, NoRecords or TemporaryDnsError."""
        key = (name.rstrip(".").lower(), rdtype)
        loop = asyncio.get_running_loop()
        while True:
            known = self._cache.get(key, loop.time())
            if known is not None:
                return _give(known)
            running = self._asking.get(key)
            if running is None:
                break
            # Somebody asks this already. If that one is cancelled there is no answer, and one of us asks instead.
            await asyncio.shield(running)
        done = self._asking[key] = loop.create_future()
        try:
            result = await self._ask(*key)
            self._cache.put(key, result, loop.time() + self._lifetime(result), _weight(result))
        finally:
            del self._asking[key]
            done.set_result(None)
        return _give(result)

    def _lifetime(self, result: Answer | DnsError) -> float:
        if isinstance(result, Answer):
            return max(_MIN_TTL_S, min(self._max_ttl_s, result.ttl_s))
        if isinstance(result, TemporaryDnsError):
            return _FAILURE_TTL_S
        return max(_MIN_TTL_S, min(_MAX_NEGATIVE_TTL_S, self._max_ttl_s, result.ttl_s))

    async def _ask(self, name: str, rdtype: str) -> Answer | DnsError:
        """Ask the servers in turn until one gives an answer or the time is over."""
        metrics.add("dns_questions")
        try:
            qname = dns.name.from_text(name)
        except (dns.exception.DNSException, UnicodeError) as e:
            return NoSuchDomain(name, rdtype, f"not a domain name: {e}")
        reason = "no nameserver is configured"
        try:
            async with asyncio.timeout(self._timeout_s):
                for _ in range(_TRIES):
                    for server in self._servers:
                        result = await self._ask_one(server, qname, rdtype)
                        if not isinstance(result, str):
                            return _read(name, rdtype, result, trusted=self.trusted)
                        reason = result
        except TimeoutError:
            reason = f"no answer within {self._timeout_s} s"
        metrics.add("dns_failures")
        _log.warning("dns_failed", key=f"{name} {rdtype}", reason=reason)
        return TemporaryDnsError(name, rdtype, reason)

    async def _ask_one(self, server: tuple[str, int], qname: dns.name.Name, rdtype: str) -> dns.message.Message | str:
        """A usable response of one server, or why there is none."""
        host, port = server
        per_try_s = max(0.5, self._timeout_s / (_TRIES * len(self._servers)))
        edns = server not in self._no_edns
        query = dns.message.make_query(qname, rdtype, use_edns=0 if edns else False, payload=_EDNS_OCTETS)
        query.flags |= dns.flags.AD
        try:
            response, _ = await dns.asyncquery.udp_with_fallback(
                query, host, timeout=per_try_s, port=port, ignore_unexpected=True, ignore_errors=True,
                backend=self._backend,
            )  # fmt: skip
        except (dns.exception.DNSException, OSError, EOFError) as e:
            return f"{host}: {type(e).__name__} {e}".rstrip()
        rcode = response.rcode()
        if rcode == dns.rcode.FORMERR and edns:
            self._no_edns.add(server)
            return await self._ask_one(server, qname, rdtype)
        if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            return f"{host}: {dns.rcode.to_text(rcode)}"
        return response


def _weight(result: Answer | DnsError) -> int:
    """About how much memory an answer takes."""
    if not isinstance(result, Answer):
        return _RECORD_OCTETS
    return sum(
        _RECORD_OCTETS + sum(len(field) for field in record if isinstance(field, str | bytes))
        for record in result.records
    )


def _give(result: Answer | DnsError) -> Answer:
    if isinstance(result, Answer):
        return result
    # A cached exception must not collect the tracebacks of all who met it.
    error = type(result)(result.name, result.rdtype, result.reason)
    error.authenticated = result.authenticated
    raise error


def _read(name: str, rdtype: str, response: dns.message.Message, *, trusted: bool) -> Answer | DnsError:
    """A response with NOERROR or NXDOMAIN as an answer or the fact that there is none."""
    authenticated = trusted and bool(response.flags & dns.flags.AD)
    try:
        chain = response.resolve_chaining()  # type: ignore[attr-defined]  # only QueryMessage has it, and this is one
    except dns.exception.DNSException as e:
        return TemporaryDnsError(name, rdtype, f"malformed answer: {type(e).__name__}")
    if chain.answer is None:
        error: DnsError
        if response.rcode() == dns.rcode.NXDOMAIN:
            error = NoSuchDomain(name, rdtype, "no such domain")
        else:
            error = NoRecords(name, rdtype, f"no {rdtype} records")
        error.ttl_s = chain.minimum_ttl
        error.authenticated = authenticated
        return error
    write = _WRITERS.get(rdtype, _write_text)
    return Answer(
        name=name,
        canonical_name=_text(chain.canonical_name),
        rdtype=rdtype,
        records=tuple(write(rdata) for rdata in chain.answer),
        ttl_s=int(chain.minimum_ttl),
        authenticated=authenticated,
    )


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True) if len(name) > 1 else ""


def _write_text(rdata: dns.rdata.Rdata) -> tuple[object, ...]:
    return (rdata.to_text(),)


_WRITERS: dict[str, Callable[..., tuple[object, ...]]] = {
    "MX": lambda rdata: (rdata.preference, _text(rdata.exchange).lower()),
    "A": lambda rdata: (rdata.address,),
    "AAAA": lambda rdata: (rdata.address,),
    "TXT": lambda rdata: tuple(rdata.strings),
    "PTR": lambda rdata: (_text(rdata.target),),
    "CNAME": lambda rdata: (_text(rdata.target),),
    "TLSA": lambda rdata: (rdata.usage, rdata.selector, rdata.mtype, bytes(rdata.cert)),
}


def take_any_tlsa() -> None:
    """Have dnspython read TLSA records whose digest has a wrong length.

    It refuses the whole answer for one of them, as if the name server were broken; by RFC 7672 s. 2.2 such a record is
    just not usable.
    """
    getattr(TLSABase, "_cert_length_by_mtype", {}).clear()


_DOCKER = "127.0.0.11"  # passes on what servers outside of the machine say


def servers(settings: Dns) -> list[tuple[str, int]]:
    """The configured name servers, or the system's. Raises ValueError, naming the setting."""
    return [_server(spec) for spec in settings.nameservers] or _system_servers()


def _server(spec: str) -> tuple[str, int]:
    """ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT. Raises ValueError, naming the setting."""
    host, port = spec, "53"
    if spec.startswith("["):
        host, _, rest = spec[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else "53"
    elif spec.count(":") == 1:
        host, _, port = spec.partition(":")
    try:
        return str(ipaddress.ip_address(host)), int(port)
    except ValueError:
        raise ValueError(f"[dns] nameservers: {spec!r} is not ADDRESS or ADDRESS:PORT") from None


def _system_servers() -> list[tuple[str, int]]:
    try:
        found = dns.resolver.Resolver(configure=True)
    except dns.resolver.NoResolverConfiguration:
        return [("127.0.0.1", 53)]
    return [(str(address), found.port) for address in found.nameservers]


def _trusted(setting: str, servers: list[tuple[str, int]]) -> bool:
    """Whether the AD bit of these servers counts."""
    if setting != "auto":
        return setting == "yes"
    return all(ipaddress.ip_address(host).is_loopback and host != _DOCKER for host, _ in servers)
