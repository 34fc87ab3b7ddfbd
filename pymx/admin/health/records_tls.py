"""The live records around TLS (TLSRPT, MTA-STS, TLSA, CAA), and those by which mail clients find us (CNAME, SRV).

All raise TemporaryDnsError.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator

from pymx.admin.health.finding import Finding, fail, info, ok, warn
from pymx.admin.health.live import Site, ask, finding_id, publish, version_texts
from pymx.admin.zone import Record
from pymx.resolver.answer import NoRecords, NoSuchDomain


async def tlsrpt(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    record = group[0]
    live = await version_texts(site, record.name, b"v=tlsrptv1")
    domain = record.name.removeprefix("_smtp._tls.")
    if not live:
        yield warn(
            finding_id(record),
            f"nobody reports when TLS to the server of {domain} fails (TLSRPT)",
            publish(record),
            "that others can't deliver is then noticed only when mail is missing",
        )
    elif len(live) > 1 or b"rua=" not in live[0]:
        said = "several TLSRPT records" if len(live) > 1 else "a TLSRPT record without rua="
        yield warn(
            finding_id(record),
            f"{domain} has {said}, so no reports come",
            publish(record),
            "that others can't deliver is then noticed only when mail is missing",
        )
    else:
        yield ok(finding_id(record), f"failures of TLS to the server of {domain} are reported")


async def mta_sts(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    record = group[0]
    domain = record.name.removeprefix("_mta-sts.")
    live = await version_texts(site, record.name, b"v=stsv1")
    if not live:
        yield warn(
            finding_id(record),
            f"{domain} has no MTA-STS record: its policy is not looked for",
            publish(record),
            "without it senders take any certificate, or none",
        )
    elif len(live) > 1:
        yield fail(
            finding_id(record),
            f"{domain} has several MTA-STS records, so none of them counts",
            "leave only one",
            "without it senders take any certificate, or none",
        )
    elif (id_ := _tag(live[0], "id")) != _tag(record.value.encode(), "id"):
        yield warn(
            finding_id(record),
            f"the MTA-STS record of {domain} is of an earlier policy (id {id_}): others keep that for a while",
            publish(record),
        )
    else:
        yield ok(finding_id(record), f"{domain} has the MTA-STS record of its policy")


def _tag(text: bytes, name: str) -> str:
    for part in text.decode("utf-8", "replace").split(";"):
        key, _, value = part.partition("=")
        if key.strip().lower() == name:
            return value.strip()
    return ""


async def tlsa(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    record, host = group[0], site.server.hostname
    answer = await ask(site, record.name, "TLSA")
    addresses = await ask(site, host, "A") or await ask(site, host, "AAAA")
    signed = addresses is not None and addresses.authenticated
    if answer is None:
        if signed:
            text = f"{host} is signed by DNSSEC, but has no TLSA record (DANE)"
            yield info(
                finding_id(record), text, publish(record), "with it, senders that know DANE insist on TLS with our key"
            )
        else:
            yield ok(finding_id(record), f"{host} is not signed by DNSSEC and has no TLSA record, as it should be")
        return
    digests = {(r[0], r[1], r[2], bytes(r[3]).hex()) for r in answer.records if isinstance(r[3], bytes)}
    wanted = {(3, 1, 1, digest) for digest in site.server.key_digests}
    if digests & wanted:
        if signed or not site.resolver.trusted:
            yield ok(finding_id(record), f"the TLSA record of {host} fits the certificate's key")
        else:
            yield warn(
                finding_id(record),
                f"{host} has a TLSA record, but is not signed by DNSSEC: nobody heeds it",
                "sign the zone, or take the record out",
            )
    elif all((usage, selector) in ((3, 0), (2, 0), (2, 1)) for usage, selector, *_ in digests):
        yield info(
            finding_id(record),
            f"the TLSA records of {host} are of another kind than ours (not 3 1 x): they are not compared",
            f"simpler, and it outlives renewals: {record.zone_line}",
        )
    else:
        finding = fail if signed else warn
        yield finding(
            finding_id(record),
            f"the TLSA record of {host} is of another key than the certificate in use",
            publish(record),
            "senders that know DANE don't deliver to us",
        )


async def caa(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    """RFC 8659 s. 3: the nearest set of records counts, upwards from the name."""
    record = group[0]
    labels = record.name.split(".")
    for i in range(len(labels) - 1):
        name = ".".join(labels[i:])
        answer = await ask(site, name, "CAA")
        if answer is None:
            continue
        # in an order of its own: the sentence is compared with that of the night before
        issuers = [text.split(None, 2) for text in sorted(str(r[0]) for r in answer.records)]
        allowed = [words[2].strip('"').partition(";")[0].strip() for words in issuers if words[1].lower() == "issue"]
        if not allowed or site.server.authority in allowed:
            yield ok(finding_id(record), f"{site.server.authority} may issue certificates for {record.name} (CAA)")
        else:
            text = (
                f"the CAA records of {name} let only {', '.join(filter(None, allowed)) or 'nobody'} issue certificates"
            )
            why = "the next renewal of the certificate fails"
            yield fail(finding_id(record), f"{text}; ours is from {site.server.authority}", publish(record), why)
        return
    yield info(
        finding_id(record), f"any authority may issue certificates for {record.name} (no CAA record)", publish(record)
    )


# --- what helps mail clients


async def client(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    for record in group:
        try:
            found = await site.resolver.addresses(record.name)
        except (NoRecords, NoSuchDomain):
            yield warn(finding_id(record), f"{record.name} does not exist", publish(record), record.why)
            continue
        ours = {ipaddress.ip_address(a) for a in site.server.receives}
        others = [a for a in found if ipaddress.ip_address(a) not in ours]
        if ours and others:
            text = f"{record.name} leads to {', '.join(others)}, not to this server"
            yield warn(finding_id(record), text, publish(record), record.why)
        else:
            yield ok(finding_id(record), f"{record.name} leads here")


async def srv(site: Site, group: list[Record]) -> AsyncIterator[Finding]:
    for record in group:
        answer = await ask(site, record.name, "SRV")
        live = {tuple(str(r[0]).lower().rstrip(".").split()) for r in answer.records} if answer else set()
        wanted = tuple(record.value.lower().rstrip(".").split())
        if not live:
            yield info(finding_id(record), f"mail clients find nothing at {record.name}", publish(record))
        elif any(found[2:] == wanted[2:] for found in live):
            yield ok(finding_id(record), f"{record.name} tells mail clients the right thing")
        else:
            said = "; ".join(" ".join(found) for found in sorted(live))
            yield warn(
                finding_id(record),
                f"{record.name} sends mail clients elsewhere ({said})",
                publish(record),
                "who sets a client up with them can't log in",
            )
