"""pymxctl dkim: make, show and choose the keys that sign outgoing mail (RFC 6376)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from pymx.admin.context import Context, CtlError, Exit
from pymx.mail.address import AddressError, domain_to_ascii, parse_domain
from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.keys import SigningKey

_STRING_OCTETS = 255  # of one character-string in a TXT record (RFC 1035 s. 3.3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    generate = verbs.add_parser("generate", help="make a key and show the DNS record to publish")
    generate.add_argument("domain", metavar="DOMAIN")
    generate.add_argument("--selector", default="", help="its name in DNS (default: year, month and algorithm)")
    generate.add_argument("--algorithm", choices=["rsa", "ed25519"], default="rsa")
    generate.add_argument("--bits", type=int, default=2048, help="size of an RSA key (default 2048)")
    show = verbs.add_parser("show", help="the DNS records of a domain's keys")
    show.add_argument("domain", metavar="DOMAIN")
    show.add_argument("--selector", default="", help="only this one")
    use = verbs.add_parser("use", help="sign with these keys from now on")
    use.add_argument("domain", metavar="DOMAIN")
    use.add_argument("selectors", metavar="SELECTOR", nargs="+", help="at most one of each algorithm counts")


def run(args: argparse.Namespace, context: Context) -> int:
    directory = Path(context.config.data_dir) / "dkim"
    try:
        domain = domain_to_ascii(parse_domain(args.domain))
        if args.verb == "generate":
            return _generate(args, context, directory, domain)
        if args.verb == "use":
            keys.activate(directory, domain, args.selectors)
            context.out.done(f"{domain} signs with {', '.join(args.selectors)}", domain=domain, active=args.selectors)
            return Exit.OK
        return _show(args, context, directory, domain)
    except (AddressError, ValueError) as e:
        raise CtlError(str(e), Exit.USAGE) from None
    except (keys.KeyUnusable, keys.KeyExists) as e:
        raise CtlError(str(e)) from None


def _generate(args: argparse.Namespace, context: Context, directory: Path, domain: str) -> int:
    selector = args.selector or time.strftime("%Y%m", time.gmtime()) + args.algorithm
    key = keys.generate(directory, domain, selector, algorithm=args.algorithm, bits=args.bits)
    active = key.selector in {k.selector for k in keys.active_keys(directory, domain)}
    if context.json:
        context.out.done("", **_facts(key, active=active))
        return Exit.OK
    print(f"Key {selector} of {domain} is in {directory / domain / (selector + '.pem')}")
    _print_forms(key)
    if not active:
        print(f"\nAnother key stays in use. When this record is in DNS: pymxctl dkim use {domain} {selector}")
    return Exit.OK


def _show(args: argparse.Namespace, context: Context, directory: Path, domain: str) -> int:
    found = [k for k in keys.load_all(directory, domain) if args.selector in ("", k.selector)]
    if not found:
        raise CtlError(f"{domain} has no such key; make one with: pymxctl dkim generate {domain}")
    in_use = {k.selector for k in keys.active_keys(directory, domain)}
    if context.json:
        context.out.done("", domain=domain, records=[_facts(k, active=k.selector in in_use) for k in found])
        return Exit.OK
    for key in found:
        print(f"{key.selector} ({key.algorithm}, {'in use' if key.selector in in_use else 'not in use'})")
        _print_forms(key)
    return Exit.OK


def _facts(key: SigningKey, *, active: bool) -> dict[str, object]:
    return {
        "domain": key.domain,
        "selector": key.selector,
        "algorithm": key.algorithm,
        "active": active,
        "name": key.record_name,
        "txt": key.record,
        "strings": _strings(key.record),
        "zone": _zone_line(key),
    }


def _strings(record: str) -> list[str]:
    """The record in character-strings of at most 255 octets, as DNS carries it."""
    return [record[i : i + _STRING_OCTETS] for i in range(0, len(record), _STRING_OCTETS)]


def _zone_line(key: SigningKey) -> str:
    strings = " ".join(f'"{s}"' for s in _strings(key.record))
    return f"{key.record_name}. IN TXT ( {strings} )"


def _print_forms(key: SigningKey) -> None:
    print(f"\nName:\n  {key.record_name}\n\nTXT record, for providers that take it in one piece:\n  {key.record}")
    print("\nIn strings of at most 255 characters:")
    for string in _strings(key.record):
        print(f'  "{string}"')
    print(f"\nFor a zone file:\n  {_zone_line(key)}")
