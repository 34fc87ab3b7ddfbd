"""pymxctl dkim: make, show, choose and replace the keys that sign outgoing mail (RFC 6376).

`rotate` only makes the new key; the server looks for its record, switches, and later deletes the old key
(`mailauth.dkim.rotation`). Private keys are never printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from pymx.admin.context import Context, CtlError, Exit
from pymx.mail.address import AddressError, domain_to_ascii, parse_domain
from pymx.mailauth.dkim import keys, rotation
from pymx.mailauth.dkim.keys import SigningKey
from pymx.mailauth.dkim.rotation import KeyState

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
    rotate = verbs.add_parser("rotate", help="make a key that takes over when its record is in DNS")
    rotate.add_argument("domain", metavar="DOMAIN")
    rotate.add_argument(
        "--algorithm", choices=["rsa", "ed25519"], action="append", default=[], help="default: those in use"
    )
    rotate.add_argument("--bits", type=int, default=2048, help="size of an RSA key (default 2048)")
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
            rotation.activate(directory, domain, args.selectors, now=time.time())
            context.out.done(f"{domain} signs with {', '.join(args.selectors)}", domain=domain, active=args.selectors)
            return Exit.OK
        if args.verb == "rotate":
            return _rotate(args, context, directory, domain)
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


def _rotate(args: argparse.Namespace, context: Context, directory: Path, domain: str) -> int:
    made = rotation.begin(directory, domain, args.algorithm, now=time.time(), bits=args.bits)
    if context.json:
        context.out.done("", domain=domain, records=[_state_facts(state) for state in made])
        return Exit.OK
    for state in made:
        _print_state(context, state)
    settings = context.config.dkim
    print(
        f"\nPut the record into DNS. The server looks for it every {_duration(settings.check_interval_s)}; when it has "
        f"been there for {_duration(settings.settle_s)}, it signs with the new key.\nLeave the old record where it is: "
        f"{_duration(settings.overlap_s)} later the old key is deleted, and `pymxctl dkim show {domain}` says that its "
        "record may be removed."
    )
    return Exit.OK


def _show(args: argparse.Namespace, context: Context, directory: Path, domain: str) -> int:
    found = [s for s in rotation.states(directory, domain) if args.selector in ("", s.selector)]
    if not found:
        raise CtlError(f"{domain} has no such key; make one with: pymxctl dkim generate {domain}")
    if context.json:
        context.out.done(
            "",
            domain=domain,
            records=[_state_facts(state) for state in found if state.key is not None],
            retired=[{"selector": s.selector, **_dates(s)} for s in found if s.key is None],
        )
        return Exit.OK
    for state in found:
        _print_state(context, state)
        if state.key is not None and not keys.is_private(directory, state.key):
            context.out.warn(f"others may read {directory / domain / (state.selector + '.pem')}: chmod 600")
    return Exit.OK


def _print_state(context: Context, state: KeyState) -> None:
    name = f"{state.selector}._domainkey"
    if state.key is None:
        print(f"{state.selector} ({state.dates.algorithm}, {_status(context, state)}); name: {name}")
        return
    print(f"{state.selector} ({state.key.algorithm}, {_status(context, state)})")
    _print_forms(state.key)


def _status(context: Context, state: KeyState) -> str:
    """What is with a key, and since when."""
    dates = state.dates
    if state.active:
        return f"in use since {_day(dates.used)}" if dates.used else f"in use, made {_day(dates.made)}"
    if dates.retired:
        return f"retired {_day(dates.retired)}: its record may be removed from DNS"
    if dates.replaced:
        until = dates.replaced + context.config.dkim.overlap_s
        return f"replaced {_day(dates.replaced)}; its record must stay in DNS until {_day(until)}"
    if dates.waiting and dates.seen:
        return f"made {_day(dates.made)}, its record was seen in DNS {_day(dates.seen)}: takes over soon"
    if dates.waiting:
        return f"made {_day(dates.made)}, waits for its record in DNS"
    return f"not in use, made {_day(dates.made)}"


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(when)) + " UTC"


def _duration(seconds: int) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds // unit} {name if seconds > unit else name[:-1]}"
    return f"{seconds} seconds"


def _dates(state: KeyState) -> dict[str, object]:
    dates = state.dates
    known = {"made": dates.made, "seen": dates.seen, "used": dates.used, "replaced": dates.replaced}
    return {name: round(when) for name, when in {**known, "retired": dates.retired}.items() if when}


def _state_facts(state: KeyState) -> dict[str, object]:
    assert state.key is not None
    return {**_facts(state.key, active=state.active), "waiting": state.dates.waiting, **_dates(state)}


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
