"""The live records by which mail finds us and is believed: MX, addresses, PTR, SPF, DKIM, DMARC.

SPF is evaluated for every address that we send from, DKIM is tried by verifying a signature of the private key in use.
All raise TemporaryDnsError.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections.abc import AsyncIterator

from pymx.admin.health.finding import Finding, fail, info, ok, warn
from pymx.admin.health.live import Site, ask, finding_id, publish, version_texts
from pymx.admin.zone import Record
from pymx.mail.address import Address
from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.record import RecordError, parse_record
from pymx.mailauth.dkim.tags import TagError, parse_tags
from pymx.mailauth.dmarc.record import parse_record as parse_dmarc
from pymx.mailauth.questions import texts
from pymx.mailauth.spf.check import check as check_spf
from pymx.resolver.answer import TemporaryDnsError

_UNPROVEN = "others take our mail for forged or unproven, and refuse it or file it as junk"
_PROBE = b"does the published key verify what we sign?"


# --- where mail goes


async def mx(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    record, host = group[0], site.server.hostname
    answer = await ask(site, record.name, "MX")
    if answer is None:
        yield fail(finding_id(record), f"{record.name} has no MX record: its mail does not come here", publish(record))
        return
    hosts = sorted((int(str(preference)), str(name).lower()) for preference, name in answer.records)
    names = [name for _, name in hosts]
    if host not in names:
        if names == [""]:
            said = f"{record.name} says by a null MX that it takes no mail"
        else:
            said = f"mail for {record.name} goes to {', '.join(names)}, not to {host}"
        yield fail(finding_id(record), said, publish(record), "what others write to it never comes here")
        return
    others = [name for name in names if name != host]
    if others and hosts[0][1] != host:
        yield warn(
            finding_id(record),
            f"mail for {record.name} goes to {hosts[0][1]} first, and to {host} only when that is down",
            f"give {host} the lowest number, or take the others out",
            "what the other server takes is not in the mailboxes here",
        )
    elif others:
        yield info(
            finding_id(record), f"mail for {record.name} comes to {host}, or to {', '.join(others)} when it is down"
        )
    else:
        yield ok(finding_id(record), f"mail for {record.name} comes to {host}")


async def addresses(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    """A and AAAA of the host, as one set."""
    host = group[0].name
    found: list[str] = []
    for rdtype in ("A", "AAAA"):
        answer = await ask(site, host, rdtype)
        if answer is not None:
            if answer.canonical_name.lower() != host:
                yield fail(
                    f"dns.cname:{host}",
                    f"{host} is an alias (CNAME) of {answer.canonical_name}, which the name in an MX must not be",
                    f"replace the CNAME by address records: {group[0].zone_line}",
                    "some servers don't deliver to such a name (RFC 2181 s. 10.3)",
                )
            found += [str(record[0]) for record in answer.records]
    live = {ipaddress.ip_address(a) for a in found}
    for record in group:
        if ipaddress.ip_address(record.value) in live:
            yield ok(f"{finding_id(record)}:{record.value}", f"{host} leads to {record.value}")
        elif not any(a.version == ipaddress.ip_address(record.value).version for a in live):
            text = f"{host} has no {record.rdtype} record with {record.value}"
            # one family is enough to receive mail
            finding = warn if live else fail
            why = "servers and clients that know no other kind of address can't reach this one"
            yield finding(f"{finding_id(record)}:{record.value}", text, publish(record), why)
        else:
            yield fail(
                f"{finding_id(record)}:{record.value}",
                f"{host} leads to {', '.join(map(str, sorted(live, key=str)))}, not to {record.value}",
                publish(record),
                "mail and mail clients go to another machine",
            )
    known = {ipaddress.ip_address(record.value) for record in group}
    for address in sorted(live - known, key=str):
        yield warn(
            f"dns.a:{host}:{address}",
            f"{host} leads to {address} too, where this server is not known to listen",
            f"take that {'AAAA' if address.version == 6 else 'A'} record out, if the address is not this server's",
            "servers that try it first deliver late, or to somebody else",
        )


async def ptr(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    host = site.server.hostname
    for record in group:
        address = _address_of(site, record)
        check = f"dns.ptr:{address}"
        answer = await ask(site, record.name, "PTR")
        names = sorted(str(r[0]).lower() for r in answer.records) if answer else []
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
            yield warn(
                check,
                f"the address {address} has several names: {', '.join(names)}",
                f"leave only {host}",
                "some servers look at the first of them only",
            )
        else:
            yield ok(check, f"the address {address} is named {host}")


def _address_of(site: Site, record: Record) -> str:
    for address in site.server.sends:
        if ipaddress.ip_address(address).reverse_pointer == record.name:
            return address
    return record.name


# --- who may send


async def spf(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    record = group[0]
    helo = record.kind == "spf-helo"
    published = await version_texts(site, record.name, b"v=spf1")
    if not published:
        text = f"{record.name} has no SPF record"
        if helo:
            yield warn(
                finding_id(record), f"{text}: bounces, which are sent in its name, are unproven", publish(record)
            )
        else:
            yield fail(
                finding_id(record),
                f"{text}: nobody can tell its mail from forged mail",
                publish(record),
                _UNPROVEN,
            )
        return
    if len(published) > 1:
        yield fail(
            finding_id(record),
            f"{record.name} has {len(published)} SPF records, so none of them counts",
            "leave only one",
            _UNPROVEN,
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
                fail(
                    finding_id(record),
                    f"the SPF record of {record.name} can't be used: {why} ({text})",
                    publish(record),
                    _UNPROVEN,
                )
            )
            break
        if result.result != "pass":
            # from an IPv6 address without a name nothing is sent, and one family is enough
            grade = warn if ":" in address else fail
            bad.append(
                grade(
                    f"{finding_id(record)}:{address}",
                    f"the SPF record of {record.name} does not let {address} send, from where we do ({text})",
                    publish(record),
                    _UNPROVEN,
                )
            )
    for finding in bad:
        yield finding
    if not bad:
        if text.lower().rstrip().endswith(("+all", " all")):
            yield fail(
                finding_id(record),
                f"the SPF record of {record.name} lets everybody send ({text})",
                publish(record),
                "anybody can send in the domain's name",
            )
        elif not text.lower().rstrip().endswith(("-all", "~all")) and "redirect=" not in text.lower():
            yield warn(
                finding_id(record),
                f"the SPF record of {record.name} does not end in -all or ~all ({text})",
                publish(record),
                "mail from elsewhere in the domain's name counts as neither good nor bad",
            )
        else:
            yield ok(finding_id(record), f"{record.name} lets us send (SPF)")


async def dkim(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    for record in group:
        domain, selector = _key_of(record)
        state = site.states.get(record.name, "in use")
        live = await texts(site.resolver, record.name)
        if state == "waiting":
            if live and any(_same_key(text, record) for text in live):
                yield ok(finding_id(record), f"the record of the next key {selector} of {domain} is there")
            else:
                yield warn(
                    finding_id(record),
                    f"the next key {selector} of {domain} waits for its record",
                    publish(record),
                    "it can't take over before",
                )
            continue
        if not live:
            word = "signs" if state == "in use" else "signed until lately"
            yield fail(
                finding_id(record),
                f"the key {selector}, which {word} for {domain}, has no record in DNS: its signatures fail",
                publish(record),
                _UNPROVEN,
            )
        elif len(live) > 1:
            yield fail(
                finding_id(record),
                f"{record.name} has {len(live)} records: verifiers differ on which counts",
                "leave one",
                _UNPROVEN,
            )
        else:
            yield await asyncio.to_thread(_compare_key, site, record, live[0], domain, selector)


def _compare_key(site: Site, record: Record, live: bytes, domain: str, selector: str) -> Finding:
    """Does the published key verify what the private key signs? If not: how do the two differ?"""
    private = next((k for k in keys.load_all(site.keys, domain) if k.selector == selector), None)
    wanted = _public(record.value.encode())
    found = _public(live)
    mended = publish(record)
    if not found:
        return fail(
            finding_id(record),
            f"the record of key {selector} of {domain} has an empty p=: the key is revoked",
            mended,
            _UNPROVEN,
        )
    if found != wanted and wanted.startswith(found):
        cut = f"after {len(found)} of {len(wanted)} characters"
        remedy = f"enter it in pieces of at most 255 characters: pymxctl dns records {domain}"
        return fail(
            finding_id(record),
            f"the record of key {selector} of {domain} is cut off {cut}",
            remedy,
            _UNPROVEN,
        )
    try:
        parsed = parse_record(live)
    except RecordError as e:
        return fail(
            finding_id(record),
            f"the record of key {selector} of {domain} can't be used: {e.reason}",
            mended,
            _UNPROVEN,
        )
    if private is None or not parsed.verify(private.sign(_PROBE), hashlib.sha256(_PROBE).digest()):
        return fail(
            finding_id(record),
            f"the record of key {selector} of {domain} holds another key than the one that signs: its signatures fail",
            mended,
            _UNPROVEN,
        )
    if not parsed.for_mail or (parsed.hashes and "sha256" not in parsed.hashes):
        return fail(
            finding_id(record),
            f"the record of key {selector} of {domain} does not allow our signatures",
            mended,
            _UNPROVEN,
        )
    if parsed.testing:
        remedy = "take t=y out of the record"
        return warn(
            finding_id(record),
            f"the record of key {selector} of {domain} says that it is a test (t=y)",
            remedy,
            "signatures under test prove nothing",
        )
    return ok(finding_id(record), f"the record of key {selector} of {domain} fits the private key")


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


async def dmarc(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    record = group[0]
    domain = record.name.removeprefix("_dmarc.")
    live = await version_texts(site, record.name, b"v=dmarc1")
    if not live:
        why = "Google, Yahoo and Microsoft want one of everybody who sends much"
        yield fail(
            finding_id(record), f"{domain} has no DMARC record: its forged mail is not told apart", publish(record), why
        )
        return
    if len(live) > 1:
        yield fail(
            finding_id(record),
            f"{domain} has {len(live)} DMARC records, so none of them counts",
            "leave only one",
            "forged mail in the domain's name is delivered",
        )
        return
    text, parsed = live[0].decode("utf-8", "replace"), parse_dmarc(live[0])
    if parsed.tags.get("p", "").lower() not in ("none", "quarantine", "reject"):
        yield fail(
            finding_id(record),
            f"the DMARC record of {domain} has no valid policy p= ({text})",
            publish(record),
            "forged mail in the domain's name is delivered",
        )
    elif parsed.policy == "none":
        yield info(
            finding_id(record),
            f"{domain} asks others to deliver forged mail as well (DMARC p=none)",
            "when `pymxctl reports` shows that your own mail passes: p=quarantine, later p=reject",
        )
    elif not parsed.tags.get("rua"):
        yield info(
            finding_id(record),
            f"{domain} has a DMARC policy ({parsed.policy}) and gets no reports",
            f"add {_reports_to(record)}",
        )
    else:
        yield ok(finding_id(record), f"{domain} has a DMARC policy ({parsed.policy}) and gets reports")


def _reports_to(record: Record) -> str:
    return next((part.strip() for part in record.value.split(";") if "rua=" in part), "rua=")
