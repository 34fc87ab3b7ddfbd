"""pymxctl dns: the records that this server's mail needs (`records`), and how the live ones differ (`check`).

`check` ends with 1 when something is wrong that costs mail, with 0 when there is nothing but advice.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pymx.admin import identity
from pymx.admin.accounts import registry
from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.health.finding import Finding, Severity, as_facts, warn, worst
from pymx.admin.health.present import show
from pymx.admin.zone import Domain, Need, Record, Server, all_records
from pymx.mail.address import AddressError, domain_to_ascii, parse_domain
from pymx.mailauth.dkim.keys import KeyUnusable

if TYPE_CHECKING:
    from pymx.resolver.resolver import Resolver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    records = verbs.add_parser("records", help="the records to publish, for one domain or all")
    records.add_argument("domain", metavar="DOMAIN", nargs="?", default="")
    records.add_argument("--zone", action="store_true", help="as lines of a zone file")
    check = verbs.add_parser("check", help="compare what is published with them and with the private keys")
    check.add_argument("domain", metavar="DOMAIN", nargs="?", default="")
    check.add_argument("--all", action="store_true", dest="everything", help="show what is right as well")
    for verb in (records, check):
        verb.add_argument(
            "--address",
            action="append",
            default=[],
            type=address,
            help="a public address of this server, when it is behind a router that translates; may be repeated",
        )


def address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IP address") from None


def run(args: argparse.Namespace, context: Context) -> int:
    server, domains = gather(context, args.domain, args.address)
    if args.verb == "records":
        return print_records(context, server, domains, zone=args.zone)
    findings = asyncio.run(check(context, server, domains))
    if context.json:
        bad = worst(findings) >= Severity.FAIL
        context.out.details({"ok": not bad, "findings": [as_facts(finding) for finding in findings]})
    else:
        show(findings, everything=args.everything, about="DNS")
    return Exit.FAILED if worst(findings) >= Severity.FAIL else Exit.OK


def gather(context: Context, name: str, addresses: Sequence[str]) -> tuple[Server, list[Domain]]:
    """The server, and one domain or all that have mail here."""
    config = context.config
    try:
        if name:
            names = [domain_to_ascii(parse_domain(name))]
        else:
            with registry(context) as accounts:
                names = [domain_to_ascii(parse_domain(entry.name)) for entry in accounts.domains()]
        return identity.server(config, addresses), [identity.domain(config, n) for n in names]
    except AddressError as e:
        raise CtlError(str(e), Exit.USAGE) from None
    except KeyUnusable as e:
        raise CtlError(str(e)) from None


async def check(context: Context, server: Server, domains: Sequence[Domain]) -> list[Finding]:
    """What differs, and what does not, the worst first."""
    from pymx.admin.health.examination import examine_dns

    findings = await examine_dns(open_resolver(context), context.config, server, domains)
    if server.certificate_trouble:
        text = f"the TLSA and CAA records were not compared: {server.certificate_trouble}"
        findings.append(warn(f"certificate:{server.hostname}", text, "pymxctl doctor says what to do"))
    return sorted(findings, key=lambda finding: -finding.severity)


def open_resolver(context: Context) -> Resolver:
    """A resolver whose failures are findings, and not told on standard error."""
    import logging

    from pymx.resolver.resolver import Resolver

    logging.getLogger("pymx").addHandler(logging.NullHandler())
    try:
        return Resolver(context.config.dns)
    except ValueError as e:
        raise CtlError(str(e), Exit.USAGE) from None


# --- records, for people


_TITLES = {
    Need.REQUIRED: "Needed: without these, mail does not arrive or is refused",
    Need.ADVISED: "Advised",
    Need.OPTIONAL: "Optional",
}


def print_records(context: Context, server: Server, domains: Sequence[Domain], *, zone: bool) -> int:
    found, missing = all_records(server, domains), _without_certificate(server)
    if context.json:
        trouble = server.certificate_trouble or None
        records = [_facts(record) for record in found]
        context.out.done("", hostname=server.hostname, records=records, certificate_trouble=trouble)
        return Exit.OK
    if not server.receives:
        context.out.warn("the server's public addresses are not known; give them: --address ADDRESS")
    for domain in domains:
        if not domain.keys:
            context.out.warn(f"{domain.name} has no DKIM key; make one: pymxctl dkim generate {domain.name}")
    if zone:
        for record in found:
            print(f"; {record.why}\n{record.zone_line}")
        if missing:
            print(f"; {missing}")
        return Exit.OK
    for need, title in _TITLES.items():
        some = [record for record in found if record.need is need]
        if some:
            print(f"{title}\n")
            for record in some:
                _print(record)
            print()
    if missing:
        print(f"{missing}\n")
    print("For a zone file: pymxctl dns records --zone. When they are published: pymxctl dns check")
    return Exit.OK


def _without_certificate(server: Server) -> str:
    """Why the records that follow from the certificate are missing; "" when they are not."""
    if server.key_digests:
        return ""
    if server.certificate_trouble:
        why = f"The certificate can't be read ({server.certificate_trouble})"
        return f"{why}, so there are no TLSA and CAA records here. What to do: pymxctl doctor"
    return (
        "There is no certificate yet, so there are no TLSA and CAA records here. When it is there: pymxctl dns records"
    )


def _print(record: Record) -> None:
    print(f"  {record.name}  {record.rdtype}    ({record.why})")
    print(f"      {record.value}")
    if len(record.strings) > 1 and record.rdtype == "TXT":
        print("    in strings of at most 255 characters:")
        for string in record.strings:
            print(f'      "{string}"')
        print(f"    in a zone file:\n      {record.zone_line}")


def _facts(record: Record) -> dict[str, object]:
    facts: dict[str, object] = {
        "kind": record.kind,
        "name": record.name,
        "type": record.rdtype,
        "value": record.value,
        "need": record.need.value,
        "why": record.why,
        "zone": record.zone_line,
    }
    if record.rdtype == "TXT":
        facts["strings"] = record.strings
    return facts
