"""pymxctl cert: the server's certificates: show them, get and renew them by ACME, take over certbot's.

`renew` is what the server starts by itself when `[acme]` is enabled: what is due is got, the rest is left alone.
`issue` gets those named, due or not. `install` takes key and chain from elsewhere, for certbot's deploy hooks:

    pymxctl cert install        as /etc/letsencrypt/renewal-hooks/deploy/pymx: certbot says which in $RENEWED_LINEAGE

It reads as root and writes as the server's user. The running server is told to reload.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pymx.admin.accounts import registry
from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.control_client import ControlError, NotRunning
from pymx.mail.address import AddressError, domain_to_ascii

if TYPE_CHECKING:
    from pymx.certs.plan import Plan, Wanted
    from pymx.certs.round import How, Outcome, Round
    from pymx.config.model import Config
    from pymx.net.certificate import Facts

_LETSENCRYPT = Path("/etc/letsencrypt/live")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("show", help="the certificates, the names in them, and when they expire")
    issue = verbs.add_parser("issue", help="get certificates by ACME now")
    issue.add_argument("names", metavar="NAME", nargs="*", help="the host name, or a domain (default: all)")
    issue.add_argument("--new-key", action="store_true", help="with another key: TLSA records change")
    renew = verbs.add_parser("renew", help="get what is missing or about to expire, by ACME")
    renew.add_argument("--patient", action="store_true", help="keep to the waits after failures, as the server does")
    install = verbs.add_parser("install", help="take over key and chain from files, such as certbot's")
    install.add_argument("name", metavar="NAME", nargs="?", default="", help="what to call it (default: by its names)")
    install.add_argument(
        "--from", dest="source", metavar="DIR", type=Path,
        help=f"with fullchain.pem and privkey.pem (default $RENEWED_LINEAGE or {_LETSENCRYPT}/HOSTNAME)",
    )  # fmt: skip
    install.add_argument("--certificate", metavar="FILE", type=Path, help="instead: PEM file with the chain")
    install.add_argument("--private-key", metavar="FILE", type=Path, help="and PEM file with the key")


def run(args: argparse.Namespace, context: Context) -> int:
    if args.verb == "install":
        return _install(args, context)
    context.become_user()
    if args.verb == "show":
        return _show(context)
    from pymx.certs.round import How

    if args.verb == "renew":
        return _round(context, How(patient=args.patient))
    return _round(context, How(only=frozenset(args.names or _all_names(context)), new_key=args.new_key))


def look_after(context: Context, how: How) -> Round:
    """Get what is due and tell the server. Raises CtlError. For pymxctl's other nouns as well."""
    from pymx.certs import plan as plans
    from pymx.certs import round as rounds

    config = context.config
    wanted = plans.candidates(config, _domains(context))
    unknown = sorted(how.only - {one.name for one in wanted})
    if unknown:
        raise CtlError(
            f"{', '.join(unknown)}: expected the host name or a domain of this server ("
            f"{', '.join(one.name for one in wanted)})",
            Exit.USAGE,
        )
    if how.only:
        wanted = [one for one in wanted if one.name in how.only]
    try:
        plan = asyncio.run(_reachable(config, wanted))
        found = rounds.look(config.acme, Path(config.data_dir), plan, how)
    except plans.LookupFailed as e:
        raise CtlError(f"DNS does not say where {config.hostname} is: {e}", Exit.UNAVAILABLE) from None
    except rounds.Busy as e:
        raise CtlError(str(e)) from None
    if found.changed:
        tell_server(context)
    return found


async def _reachable(config: Config, wanted: list[Wanted]) -> Plan:
    from pymx.certs import plan as plans
    from pymx.resolver.answer import NoRecords, NoSuchDomain, TemporaryDnsError
    from pymx.resolver.resolver import Resolver

    resolver = Resolver(config.dns)

    async def addresses(host: str) -> frozenset[str]:
        try:
            return frozenset(await resolver.addresses(host))
        except (NoSuchDomain, NoRecords):
            return frozenset()
        except TemporaryDnsError as e:
            raise plans.LookupFailed(e.reason) from None

    return await plans.reachable(wanted, config.hostname, addresses)


def tell_server(context: Context) -> None:
    """Have the running server read its certificates again."""
    try:
        context.control.call("reload", timeout_s=10.0)
    except NotRunning:
        pass  # it reads them when it starts
    except ControlError as e:
        context.out.warn(f"the server does not use it yet: {e}; systemctl reload pymx")


def _domains(context: Context) -> list[str]:
    found = []
    with registry(context) as accounts:
        for domain in accounts.domains():
            try:
                found.append(domain_to_ascii(domain.name))
            except AddressError as e:
                context.out.warn(str(e))
    return found


def _all_names(context: Context) -> list[str]:
    from pymx.certs.plan import candidates

    return [one.name for one in candidates(context.config, _domains(context))]


def _round(context: Context, how: How) -> int:
    found = look_after(context, how)
    failed = [o for o in found.outcomes if o.result in ("failed", "waiting")]
    missing = how.only - {o.name for o in found.outcomes}
    if context.json:
        import msgspec

        print(msgspec.json.encode(found).decode())
    else:
        for outcome in found.outcomes:
            print(_sentence(outcome))
            for name, reason in outcome.left_out.items():
                print(f"  without {name}: {reason}")
        for name, reason in found.left_out.items():
            print(f"not asked for: {name} {reason}")
    return Exit.FAILED if failed or missing else Exit.OK


def _sentence(outcome: Outcome) -> str:
    if outcome.result == "issued":
        return f"{outcome.name}: new certificate for {', '.join(outcome.names)}, until {_day(outcome.not_after)}"
    if outcome.result == "kept":
        return f"{outcome.name}: good until {_day(outcome.not_after)}"
    if outcome.result == "foreign":
        return (
            f"{outcome.name}: installed by other means, good until {_day(outcome.not_after)}; "
            f"to get one by ACME: pymxctl cert issue {outcome.name}"
        )
    again = f"; the server tries again {_minute(outcome.retry_at)}" if outcome.retry_at else ""
    return f"{outcome.name}: FAILED: {outcome.reason}{again}"


def _show(context: Context) -> int:
    from pymx.certs import state
    from pymx.net.certificate import CertificateUnreadable, read_certificate
    from pymx.net.tls import certificate_files

    config, rows = context.config, []
    for path in certificate_files(config):
        try:
            facts = read_certificate(path)
        except CertificateUnreadable as e:
            context.out.warn(str(e))
            continue
        known = state.load(Path(config.data_dir), path.stem) if str(path) != config.tls.certificate else None
        keeper = "ACME" if known is not None else "[tls]" if str(path) == config.tls.certificate else "installed"
        trouble = known.reason if known is not None else ""
        rows.append(
            (list(facts.names), _day(facts.not_after), _left(facts.not_after), facts.issuer, facts.key, keeper,
             str(path), facts.spki_sha256.hex(), trouble)
        )  # fmt: skip
    columns = ["Names", "Expires", "In", "Issuer", "Key", "Kept up by", "File", "SPKI SHA256", "Trouble"]
    if context.json:
        context.out.table(columns, rows)
    else:
        shown = [columns.index(c) for c in columns if c != "SPKI SHA256"]
        context.out.table(
            [columns[i] for i in shown],
            [[row[i] for i in shown] for row in rows],
            empty="no certificate yet; see pymxctl cert --help",
        )
    return Exit.OK


def _install(args: argparse.Namespace, context: Context) -> int:
    from pymx.certs import files, state
    from pymx.net.certificate import CertificateUnreadable, facts

    if bool(args.certificate) != bool(args.private_key):
        raise CtlError("--certificate and --private-key belong together", Exit.USAGE)
    config = context.config
    source = args.source or Path(os.environ.get("RENEWED_LINEAGE") or _LETSENCRYPT / config.hostname)
    certificate, private_key = args.certificate or source / "fullchain.pem", args.private_key or source / "privkey.pem"
    chain, key = certificate.read_bytes(), private_key.read_bytes()  # while we are root
    context.become_user()
    data_dir = Path(config.data_dir)
    try:
        found: Facts = facts(chain, certificate)
        name = args.name.lower() or _name(found, config.hostname.lower(), source.name if not args.certificate else "")
        installed = files.install(data_dir, name, key, chain)
    except (files.NotInstalled, CertificateUnreadable) as e:
        raise CtlError(f"not installed: {e}") from None
    state.forget(data_dir, name)
    tell_server(context)
    if config.tls.certificate and installed.covers(config.hostname):
        context.out.warn(
            f"for {config.hostname} the server uses [tls] certificate = {config.tls.certificate}; "
            "take both settings out of the configuration to have it use this one"
        )
    context.out.done(
        f"{installed.path}: {', '.join(installed.names)}, until {_day(installed.not_after)}",
        name=name, names=list(installed.names), path=str(installed.path), not_after=round(installed.not_after),
    )  # fmt: skip
    return Exit.OK


def _name(found: Facts, hostname: str, directory: str) -> str:
    """What to call a certificate: by the host if it is good for it, else by its directory or its first name."""
    if found.covers(hostname):
        return hostname
    if directory.lower() in found.names or not found.names:
        return directory.lower()
    return found.names[0].removeprefix("*.")


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(when))


def _minute(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(when)) + " UTC"


def _left(when: float) -> str:
    days = (when - time.time()) / 86_400
    return "EXPIRED" if days <= 0 else f"{days:.0f} days"
