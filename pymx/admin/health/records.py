"""Live DNS against what it should be: `dns check`, record by record.

A record is not compared as text where several texts do the same: SPF is evaluated for every address that we send from,
DKIM is tried by verifying a signature of the private key in use, DMARC is parsed. What can't be asked now is a warning
and no difference: name servers that fail say nothing about the zone.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pymx.admin.health.finding import Finding, fail, info, ok, warn
from pymx.admin.zone import Domain, Record, Server
from pymx.mail.address import Address
from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.record import RecordError, parse_record
from pymx.mailauth.dkim.tags import TagError, parse_tags
from pymx.mailauth.dmarc.record import parse_record as parse_dmarc
from pymx.mailauth.questions import texts
from pymx.mailauth.spf.check import check as check_spf
from pymx.resolver.answer import Answer, NoRecords, NoSuchDomain, TemporaryDnsError
from pymx.resolver.resolver import Resolver

_PROBE = b"does the published key verify what we sign?"


@dataclass(frozen=True, slots=True)
class Site:
    """What the live records are compared with. `keys` is the directory of DKIM keys."""

    resolver: Resolver
    server: Server
    domains: tuple[Domain, ...]
    keys: Path

    @property
    def states(self) -> dict[str, str]:
        """What each DKIM key is for, by the name of its record."""
        every = [*self.server.keys, *(key for domain in self.domains for key in domain.keys)]
        return {key.name: key.state for key in every}


async def check_records(site: Site, records: Sequence[Record]) -> list[Finding]:
    """Every record once; at most a few findings for each."""
    jobs: list[Awaitable[list[Finding]]] = []
    by_kind: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        # records that are one set are compared as one
        by_kind.setdefault((record.kind, record.name), []).append(record)
    for (kind, _), group in by_kind.items():
        jobs.append(_guarded(_CHECKS[kind], site, group))
    return [finding for found in await asyncio.gather(*jobs) for finding in found]


_Check = Callable[[Site, list[Record]], AsyncIterator[Finding]]


async def _guarded(check: _Check, site: Site, group: list[Record]) -> list[Finding]:
    found: list[Finding] = []
    try:
        found += [finding async for finding in check(site, group)]
    except TemporaryDnsError as e:
        found.append(
            warn(
                _id(group[0]),
                f"{e.name} {e.rdtype} can't be looked up: {e.reason}",
                "look whether the zone's name servers answer; run the check again later",
            )
        )
    return found


def _id(record: Record) -> str:
    return f"dns.{record.kind}:{record.name}"


def _set(record: Record) -> str:
    return f"publish: {record.zone_line}"


async def _ask(site: Site, name: str, rdtype: str) -> Answer | None:
    """None: there are no such records. Raises TemporaryDnsError."""
    try:
        return await site.resolver.resolve(name, rdtype)
    except (NoRecords, NoSuchDomain):
        return None


async def _texts(site: Site, name: str, start: bytes) -> list[bytes]:
    """TXT records that begin with a version tag, in any case."""
    return [t for t in await texts(site.resolver, name) if t.lower().startswith(start)]


# --- where mail goes


async def _mx(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    record, host = group[0], site.server.hostname
    answer = await _ask(site, record.name, "MX")
    if answer is None:
        yield fail(_id(record), f"{record.name} has no MX record: its mail does not come here", _set(record))
        return
    hosts = sorted((int(str(preference)), str(name).lower()) for preference, name in answer.records)
    names = [name for _, name in hosts]
    if host not in names:
        if names == [""]:
            said = f"{record.name} says by a null MX that it takes no mail"
        else:
            said = f"mail for {record.name} goes to {', '.join(names)}, not to {host}"
        yield fail(_id(record), said, _set(record))
        return
    others = [name for name in names if name != host]
    if others and hosts[0][1] != host:
        yield warn(
            _id(record),
            f"mail for {record.name} goes to {hosts[0][1]} first, and to {host} only when that is down",
            f"give {host} the lowest number, or take the others out",
        )
    elif others:
        yield info(_id(record), f"mail for {record.name} comes to {host}, or to {', '.join(others)} when it is down")
    else:
        yield ok(_id(record), f"mail for {record.name} comes to {host}")


async def _addresses(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    """A and AAAA of the host, as one set."""
    host = group[0].name
    found: list[str] = []
    for rdtype in ("A", "AAAA"):
        answer = await _ask(site, host, rdtype)
        if answer is not None:
            if answer.canonical_name.lower() != host:
                yield fail(
                    f"dns.cname:{host}",
                    f"{host} is an alias (CNAME) of {answer.canonical_name}, which the name in an MX must not be",
                    f"replace the CNAME by address records: {group[0].zone_line}",
                )
            found += [str(record[0]) for record in answer.records]
    live = {ipaddress.ip_address(a) for a in found}
    for record in group:
        if ipaddress.ip_address(record.value) in live:
            yield ok(f"{_id(record)}:{record.value}", f"{host} leads to {record.value}")
        elif not any(a.version == ipaddress.ip_address(record.value).version for a in live):
            text = f"{host} has no {record.rdtype} record with {record.value}"
            # one family is enough to receive mail
            finding = warn if live else fail
            yield finding(f"{_id(record)}:{record.value}", text, _set(record))
        else:
            yield fail(
                f"{_id(record)}:{record.value}",
                f"{host} leads to {', '.join(map(str, sorted(live, key=str)))}, not to {record.value}",
                _set(record),
            )
    known = {ipaddress.ip_address(record.value) for record in group}
    for address in sorted(live - known, key=str):
        yield warn(
            f"dns.a:{host}:{address}",
            f"{host} leads to {address} too, where this server is not known to listen",
            f"take that {'AAAA' if address.version == 6 else 'A'} record out, if the address is not this server's",
        )


async def _ptr(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    host = site.server.hostname
    for record in group:
        address = _address_of(site, record)
        check = f"dns.ptr:{address}"
        answer = await _ask(site, record.name, "PTR")
        names = [str(r[0]).lower() for r in answer.records] if answer else []
        remedy = f"ask your hoster (its panel: reverse DNS) to name {address} {host}"
        why = "Google, Microsoft and others refuse mail from an address whose name is not the server's"
        finding = fail
        if ":" in address:
            # the deliveries look at this themselves
            finding, why = warn, "nothing is sent from it: who can be reached by IPv6 only is not"
        if not names:
            yield finding(check, f"the address {address} has no name in reverse DNS (PTR)", remedy, why)
        elif host not in names:
            yield finding(check, f"the address {address} is named {', '.join(names)}, not {host}", remedy, why)
        elif len(names) > 1:
            yield warn(check, f"the address {address} has several names: {', '.join(names)}", f"leave only {host}")
        else:
            yield ok(check, f"the address {address} is named {host}")


def _address_of(site: Site, record: Record) -> str:
    for address in site.server.sends:
        if ipaddress.ip_address(address).reverse_pointer == record.name:
            return address
    return record.name


# --- who may send


async def _spf(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    record = group[0]
    helo = record.kind == "spf-helo"
    published = await _texts(site, record.name, b"v=spf1")
    if not published:
        text = f"{record.name} has no SPF record"
        if helo:
            yield warn(_id(record), f"{text}: bounces, which are sent in its name, are unproven", _set(record))
        else:
            yield fail(_id(record), f"{text}: nobody can tell its mail from forged mail", _set(record))
        return
    if len(published) > 1:
        yield fail(
            _id(record), f"{record.name} has {len(published)} SPF records, so none of them counts", "leave only one"
        )
        return
    text = published[0].decode("utf-8", "replace")
    bad: list[Finding] = []
    for address in site.server.sends:
        mail_from = None if helo else Address("postmaster", record.name)
        result = await check_spf(
            site.resolver, ip=address, mail_from=mail_from, helo=record.name if helo else site.server.hostname
        )
        if result.result == "temperror":
            raise TemporaryDnsError(record.name, "SPF", "a record that it needs does not answer")
        if result.result == "permerror":
            why = result.explanation or "it is in error"
            bad.append(
                fail(_id(record), f"the SPF record of {record.name} can't be used: {why} ({text})", _set(record))
            )
            break
        if result.result != "pass":
            # from an IPv6 address without a name nothing is sent, and one family is enough
            grade = warn if ":" in address else fail
            bad.append(
                grade(
                    f"{_id(record)}:{address}",
                    f"the SPF record of {record.name} does not let {address} send, from where we do ({text})",
                    _set(record),
                )
            )
    for finding in bad:
        yield finding
    if not bad:
        if text.lower().rstrip().endswith(("+all", " all")):
            yield fail(_id(record), f"the SPF record of {record.name} lets everybody send ({text})", _set(record))
        elif not text.lower().rstrip().endswith(("-all", "~all")) and "redirect=" not in text.lower():
            yield warn(
                _id(record), f"the SPF record of {record.name} does not end in -all or ~all ({text})", _set(record)
            )
        else:
            yield ok(_id(record), f"{record.name} lets us send (SPF)")


async def _dkim(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    for record in group:
        domain, selector = _key_of(record)
        state = site.states.get(record.name, "in use")
        live = await texts(site.resolver, record.name)
        if state == "waiting":
            if live and any(_same_key(text, record) for text in live):
                yield ok(_id(record), f"the record of the next key {selector} of {domain} is there")
            else:
                yield warn(_id(record), f"the next key {selector} of {domain} waits for its record", _set(record))
            continue
        if not live:
            word = "signs" if state == "in use" else "signed until lately"
            yield fail(
                _id(record),
                f"the key {selector}, which {word} for {domain}, has no record in DNS: its signatures fail",
                _set(record),
            )
        elif len(live) > 1:
            yield fail(
                _id(record), f"{record.name} has {len(live)} records: verifiers differ on which counts", "leave one"
            )
        else:
            yield await asyncio.to_thread(_compare_key, site, record, live[0], domain, selector)


def _compare_key(site: Site, record: Record, live: bytes, domain: str, selector: str) -> Finding:
    """Does the published key verify what the private key signs? If not: how do the two differ?"""
    private = next((k for k in keys.load_all(site.keys, domain) if k.selector == selector), None)
    wanted = _public(record.value.encode())
    found = _public(live)
    mended = _set(record)
    if not found:
        return fail(
            _id(record), f"the record of key {selector} of {domain} has an empty p=: the key is revoked", mended
        )
    if found != wanted and wanted.startswith(found):
        cut = f"after {len(found)} of {len(wanted)} characters"
        remedy = f"enter it in pieces of at most 255 characters: pymxctl dns records {domain}"
        return fail(_id(record), f"the record of key {selector} of {domain} is cut off {cut}", remedy)
    try:
        parsed = parse_record(live)
    except RecordError as e:
        return fail(_id(record), f"the record of key {selector} of {domain} can't be used: {e.reason}", mended)
    if private is None or not parsed.verify(private.sign(_PROBE), hashlib.sha256(_PROBE).digest()):
        return fail(
            _id(record),
            f"the record of key {selector} of {domain} holds another key than the one that signs: its signatures fail",
            mended,
        )
    if not parsed.for_mail or (parsed.hashes and "sha256" not in parsed.hashes):
        return fail(_id(record), f"the record of key {selector} of {domain} does not allow our signatures", mended)
    if parsed.testing:
        remedy = "take t=y out of the record"
        return warn(_id(record), f"the record of key {selector} of {domain} says that it is a test (t=y)", remedy)
    return ok(_id(record), f"the record of key {selector} of {domain} fits the private key")


def _key_of(record: Record) -> tuple[str, str]:
    selector, _, domain = record.name.partition("._domainkey.")
    return domain, selector


def _same_key(live: bytes, record: Record) -> bool:
    return bool(found := _public(live)) and found == _public(record.value.encode())


def _public(text: bytes) -> str:
    """The p= tag without white space."""
    try:
        return "".join(parse_tags(text, gaps=True).get("p", "").split())
    except TagError:
        return ""


async def _dmarc(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    record = group[0]
    domain = record.name.removeprefix("_dmarc.")
    live = await _texts(site, record.name, b"v=dmarc1")
    if not live:
        why = "Google, Yahoo and Microsoft want one of everybody who sends much"
        yield fail(_id(record), f"{domain} has no DMARC record: its forged mail is not told apart", _set(record), why)
        return
    if len(live) > 1:
        yield fail(_id(record), f"{domain} has {len(live)} DMARC records, so none of them counts", "leave only one")
        return
    text, parsed = live[0].decode("utf-8", "replace"), parse_dmarc(live[0])
    if parsed.tags.get("p", "").lower() not in ("none", "quarantine", "reject"):
        yield fail(_id(record), f"the DMARC record of {domain} has no valid policy p= ({text})", _set(record))
    elif parsed.policy == "none":
        yield info(
            _id(record),
            f"{domain} asks others to deliver forged mail as well (DMARC p=none)",
            "when `pymxctl reports` shows that your own mail passes: p=quarantine, later p=reject",
        )
    elif not parsed.tags.get("rua"):
        yield info(
            _id(record),
            f"{domain} has a DMARC policy ({parsed.policy}) and gets no reports",
            f"add {_reports_to(record)}",
        )
    else:
        yield ok(_id(record), f"{domain} has a DMARC policy ({parsed.policy}) and gets reports")


def _reports_to(record: Record) -> str:
    return next((part.strip() for part in record.value.split(";") if "rua=" in part), "rua=")


# --- TLS


async def _tlsrpt(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    record = group[0]
    live = await _texts(site, record.name, b"v=tlsrptv1")
    domain = record.name.removeprefix("_smtp._tls.")
    if not live:
        yield warn(_id(record), f"nobody reports when TLS to the server of {domain} fails (TLSRPT)", _set(record))
    elif len(live) > 1 or b"rua=" not in live[0]:
        said = "several TLSRPT records" if len(live) > 1 else "a TLSRPT record without rua="
        yield warn(_id(record), f"{domain} has {said}, so no reports come", _set(record))
    else:
        yield ok(_id(record), f"failures of TLS to the server of {domain} are reported")


async def _mta_sts(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    record = group[0]
    domain = record.name.removeprefix("_mta-sts.")
    live = await _texts(site, record.name, b"v=stsv1")
    if not live:
        yield warn(_id(record), f"{domain} has no MTA-STS record: its policy is not looked for", _set(record))
    elif len(live) > 1:
        yield fail(_id(record), f"{domain} has several MTA-STS records, so none of them counts", "leave only one")
    elif (id_ := _tag(live[0], "id")) != _tag(record.value.encode(), "id"):
        yield warn(
            _id(record),
            f"the MTA-STS record of {domain} is of an earlier policy (id {id_}): others keep that for a while",
            _set(record),
        )
    else:
        yield ok(_id(record), f"{domain} has the MTA-STS record of its policy")


def _tag(text: bytes, name: str) -> str:
    for part in text.decode("utf-8", "replace").split(";"):
        key, _, value = part.partition("=")
        if key.strip().lower() == name:
            return value.strip()
    return ""


async def _tlsa(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    record, host = group[0], site.server.hostname
    answer = await _ask(site, record.name, "TLSA")
    addresses = await _ask(site, host, "A") or await _ask(site, host, "AAAA")
    signed = addresses is not None and addresses.authenticated
    if answer is None:
        if signed:
            text = f"{host} is signed by DNSSEC, but has no TLSA record (DANE)"
            yield info(_id(record), text, _set(record), "with it, senders that know DANE insist on TLS with our key")
        else:
            yield ok(_id(record), f"{host} is not signed by DNSSEC and has no TLSA record, as it should be")
        return
    digests = {(r[0], r[1], r[2], bytes(r[3]).hex()) for r in answer.records if isinstance(r[3], bytes)}
    wanted = {(3, 1, 1, digest) for digest in site.server.key_digests}
    if digests & wanted:
        if signed or not site.resolver.trusted:
            yield ok(_id(record), f"the TLSA record of {host} fits the certificate's key")
        else:
            yield warn(
                _id(record),
                f"{host} has a TLSA record, but is not signed by DNSSEC: nobody heeds it",
                "sign the zone, or take the record out",
            )
    elif all((usage, selector) in ((3, 0), (2, 0), (2, 1)) for usage, selector, *_ in digests):
        yield info(
            _id(record),
            f"the TLSA records of {host} are of another kind than ours (not 3 1 x): they are not compared",
            f"simpler, and it outlives renewals: {record.zone_line}",
        )
    else:
        finding = fail if signed else warn
        yield finding(
            _id(record),
            f"the TLSA record of {host} is of another key than the certificate in use",
            _set(record),
            "senders that know DANE don't deliver to us",
        )


async def _caa(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    """RFC 8659 s. 3: the nearest set of records counts, upwards from the name."""
    record = group[0]
    labels = record.name.split(".")
    for i in range(len(labels) - 1):
        name = ".".join(labels[i:])
        answer = await _ask(site, name, "CAA")
        if answer is None:
            continue
        issuers = [text.split(None, 2) for text in (str(r[0]) for r in answer.records)]
        allowed = [words[2].strip('"').partition(";")[0].strip() for words in issuers if words[1].lower() == "issue"]
        if not allowed or site.server.authority in allowed:
            yield ok(_id(record), f"{site.server.authority} may issue certificates for {record.name} (CAA)")
        else:
            text = (
                f"the CAA records of {name} let only {', '.join(filter(None, allowed)) or 'nobody'} issue certificates"
            )
            why = "the next renewal of the certificate fails"
            yield fail(_id(record), f"{text}; ours is from {site.server.authority}", _set(record), why)
        return
    yield info(_id(record), f"any authority may issue certificates for {record.name} (no CAA record)", _set(record))


# --- what helps mail clients


async def _client(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    for record in group:
        try:
            found = await site.resolver.addresses(record.name)
        except (NoRecords, NoSuchDomain):
            yield warn(_id(record), f"{record.name} does not exist", _set(record), record.why)
            continue
        ours = {ipaddress.ip_address(a) for a in site.server.receives}
        others = [a for a in found if ipaddress.ip_address(a) not in ours]
        if ours and others:
            text = f"{record.name} leads to {', '.join(others)}, not to this server"
            yield warn(_id(record), text, _set(record), record.why)
        else:
            yield ok(_id(record), f"{record.name} leads here")


async def _srv(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    for record in group:
        answer = await _ask(site, record.name, "SRV")
        live = {tuple(str(r[0]).lower().rstrip(".").split()) for r in answer.records} if answer else set()
        wanted = tuple(record.value.lower().rstrip(".").split())
        if not live:
            yield info(_id(record), f"mail clients find nothing at {record.name}", _set(record))
        elif any(found[2:] == wanted[2:] for found in live):
            yield ok(_id(record), f"{record.name} tells mail clients the right thing")
        else:
            said = "; ".join(" ".join(found) for found in sorted(live))
            yield warn(_id(record), f"{record.name} sends mail clients elsewhere ({said})", _set(record))


_CHECKS: dict[str, _Check] = {
    "mx": _mx,
    "a": _addresses,
    "ptr": _ptr,
    "spf": _spf,
    "spf-helo": _spf,
    "dkim": _dkim,
    "dmarc": _dmarc,
    "tlsrpt": _tlsrpt,
    "mta-sts": _mta_sts,
    "tlsa": _tlsa,
    "caa": _caa,
    "client": _client,
    "srv": _srv,
}


def unsigned(server: Server, domains: Sequence[Domain]) -> Iterator[Finding]:
    """Domains without a key; and nothing can be said about a server whose addresses nobody knows."""
    for domain in domains:
        if not any(key.state == "in use" for key in domain.keys):
            yield fail(
                f"dns.dkim:{domain.name}",
                f"mail from {domain.name} is not signed: it has no DKIM key",
                f"pymxctl dkim generate {domain.name}",
            )
    if not server.receives:
        yield warn(
            f"dns.a:{server.hostname}",
            "the server's public addresses are not known: none of its own is one",
            "name them: --address ADDRESS (or [outbound] source_addresses)",
        )
