"""pymxctl setup HOSTNAME --domain DOMAIN: from a fresh machine to a mail server that is ready to start.

Looks first at what a mail server needs of its surroundings, then makes what is missing: the user vmail, directories,
configuration, tables, DKIM keys, certificate, systemd units; last it prints the DNS records to publish. What is there
already stays, so it may be run again, also after a kill. On a terminal it asks, with --yes it doesn't; --dry-run only
shows what would be done.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.dns import address
from pymx.admin.install.answers import CONFIG, USER, Answers
from pymx.config.secret import secret_line
from pymx.mail.address import AddressError, domain_to_ascii, parse_address, parse_domain

if TYPE_CHECKING:
    from pymx.admin.health.finding import Finding
    from pymx.config.model import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hostname", metavar="HOSTNAME", help="the server's own name, such as mx.example.com")
    parser.add_argument("--domain", action="append", default=[], help="receive mail for it; may be repeated")
    parser.add_argument("--user", default="", metavar="ADDRESS", help="the first account, who is postmaster too")
    parser.add_argument("--password-file", default="", metavar="FILE", help="its password, on one line")
    parser.add_argument(
        "--database", default="", metavar="URL", help="mysql://USER:PASSWORD@HOST/NAME (default: SQLite)"
    )
    parser.add_argument(
        "--certificate", choices=["acme", "files", "later"], default="",
        help="by ACME (Let's Encrypt); certbot's files; or by hand (default: certbot's if they are there, else acme)",
    )  # fmt: skip
    parser.add_argument(
        "--contact", default="", metavar="ADDRESS", help="for notices of the authority (default: --user)"
    )
    parser.add_argument("--address", action="append", default=[], type=address, help="a public address of this machine")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    parser.add_argument("--skip-checks", action="store_true", help="don't look at the surroundings first")
    parser.add_argument("--root", default="/", metavar="DIR", help="set up a tree of another machine")


def run(args: argparse.Namespace, context: Context) -> int:
    from pymx.admin.install.steps import SetupError

    asks = sys.stdin.isatty() and not args.yes and not args.dry_run
    answers = _answers(args, context, asks=asks)
    if os.geteuid() and answers.root == Path("/") and not args.dry_run:
        raise CtlError("setup makes a user and system files: run it as root, or look with --dry-run", Exit.USAGE)
    try:
        return _set_up(args, context, answers, asks=asks)
    except SetupError as e:
        raise CtlError(str(e)) from None


def _set_up(args: argparse.Namespace, context: Context, answers: Answers, *, asks: bool) -> int:
    from pymx.admin.install.plan import effective_config, located

    if any(answers.programs.is_relative_to(home) for home in ("/root", "/home")):
        context.out.warn(f"pymx is installed in {answers.programs}, where {USER} can't read it: move it to /opt/pymx")
    config = located(answers, effective_config(answers))
    if config.hostname.lower() != answers.hostname:
        text = f"{answers.config} says hostname = {config.hostname}, not {answers.hostname}: it is left as it is"
        context.out.warn(text)
    findings: list[Finding] = []
    if not args.skip_checks and answers.root == Path("/"):
        findings = _surroundings(context, config, answers, args.address)
        if asks and not _yes("Go on?"):
            return Exit.FAILED
    password = _Password(args.password_file, answers.user, asks=asks)
    changed = _walk(context, answers, password, dry_run=args.dry_run)
    if context.json:
        context.out.done("", changed=changed, password=password.made, findings=_json(findings))
        return Exit.OK
    if args.dry_run:
        print("\nNothing was done (--dry-run)." if changed else "Nothing is missing.")
        return Exit.OK
    print("Nothing was missing." if not changed else "\nDone.")
    if password.made:
        print(f"\nThe password of {answers.user}, which is not written down anywhere: {password.made}")
    _records(context, config, answers, args.address)
    _what_next(answers)
    return Exit.OK


def _walk(context: Context, answers: Answers, password: _Password, *, dry_run: bool) -> list[str]:
    """Do each step that is needed; the titles of those."""
    from pymx.admin.install.plan import plan

    changed = []
    for step in plan(answers, password.get):
        pending = step.pending()
        if not pending:
            continue
        changed.append(step.title)
        if dry_run:
            if not context.json:
                print(pending)
            continue
        if not context.json:
            print(pending if len(pending.splitlines()) < 4 else f"write {step.title}")
        step.apply()
    return changed


# --- questions


def _answers(args: argparse.Namespace, context: Context, *, asks: bool) -> Answers:
    try:
        hostname = domain_to_ascii(parse_domain(args.hostname)).lower()
        domains = tuple(dict.fromkeys(domain_to_ascii(parse_domain(d)).lower() for d in args.domain))
        user = args.user
        if asks and not user and domains:
            user = input(f"Address of the first account, who is postmaster too [postmaster@{domains[0]}]: ").strip()
            user = user or f"postmaster@{domains[0]}"
    except AddressError as e:
        raise CtlError(str(e), Exit.USAGE) from None
    for given in filter(None, (user, args.contact)):
        try:
            parse_address(given)
        except AddressError as e:
            raise CtlError(f"{given}: {e}", Exit.USAGE) from None
    if "." not in hostname:
        raise CtlError(f"{hostname}: expected a full name such as mx.example.com", Exit.USAGE)
    if not domains and user:
        domains = (parse_address(user).ascii_domain,)
    if user and parse_address(user).ascii_domain not in domains:
        raise CtlError(f"{user} is in none of the domains {', '.join(domains)}; name it too: --domain", Exit.USAGE)
    if not domains:
        raise CtlError("which domain is mail received for? --domain example.com", Exit.USAGE)
    root = Path(args.root).absolute()
    lineage = root / f"etc/letsencrypt/live/{hostname}/fullchain.pem"
    certificate = args.certificate or ("files" if lineage.exists() else "acme")
    if asks and not args.certificate:
        certificate = _choose(certificate)
    return Answers(
        hostname=hostname,
        domains=domains,
        user=user.lower(),
        database_url=args.database,
        certificate=certificate,
        contact=args.contact or user,
        programs=_programs(root),
        root=root,
        ipv6=root != Path("/") or Path("/proc/net/if_inet6").exists(),
        config=str(context.config_path) if context.config_path.is_absolute() else CONFIG,
    )


def _programs(root: Path) -> Path:
    """Where pymx and pymxctl are, as the machine that is set up sees it."""
    here = Path(sys.executable).parent
    return Path("/") / here.relative_to(root) if here.is_relative_to(root) else here


def _choose(default: str) -> str:
    ways = {"1": "acme", "2": "files", "3": "later"}
    number = next(n for n, way in ways.items() if way == default)
    print(
        "Certificate:\n  1  from Let's Encrypt, by pymx itself (needs port 80; you accept their terms of service)\n"
        "  2  certbot's, which is there or will be\n  3  later, by hand: pymxctl cert install"
    )
    while True:
        said = input(f"Which? [{number}] ").strip() or number
        if said in ways:
            return ways[said]


def _yes(question: str) -> bool:
    return input(f"{question} [Y/n] ").strip().lower() in ("", "y", "yes")


class _Password:
    """The first account's password, asked for or made only when it is needed."""

    def __init__(self, file: str, user: str, *, asks: bool) -> None:
        self.made = ""
        self._file = file
        self._user = user
        self._asks = asks

    def get(self) -> str:
        if self._file:
            try:
                return secret_line(Path(self._file).read_bytes())
            except ValueError as e:
                raise CtlError(f"--password-file {self._file}: {e}") from None
        while self._asks:
            first = getpass.getpass(f"Password for {self._user} (empty: one is made): ")
            if not first:
                break
            if first == getpass.getpass("Once more: "):
                return first
            print("These differ.")
        self.made = secrets.token_urlsafe(15)
        return self.made


# --- around it


def _surroundings(context: Context, config: Config, answers: Answers, addresses: Sequence[str]) -> list[Finding]:
    """What a mail server needs; said, and left to be decided."""
    from pymx.admin.doctor import subject_of
    from pymx.admin.health.examination import examine
    from pymx.admin.health.listening import listening
    from pymx.admin.health.present import show
    from pymx.admin.health.subject import Places

    here = Context(config, context.config_path, json=context.json)
    held = listening()

    async def everything() -> list[Finding]:
        return await examine(subject_of(here, addresses, held, Places(statvfs=_room)), before_start=True)

    findings = asyncio.run(everything())
    if not context.json:
        show(findings, everything=False, about="surroundings")
        print()
    return findings


def _room(path: str) -> os.statvfs_result:
    """Of the file system that a directory will be on, which is made later."""
    there = Path(path)
    while not there.exists() and there != there.parent:
        there = there.parent
    return os.statvfs(there)


def _json(findings: Sequence[Finding]) -> list[dict[str, object]]:
    from pymx.admin.health.finding import as_facts

    return [as_facts(finding) for finding in findings]


def _records(context: Context, config: Config, answers: Answers, addresses: Sequence[str]) -> None:
    from pymx.admin import identity
    from pymx.admin.dns import print_records

    print("\nDNS records to publish\n")
    here = Context(config, context.config_path, json=False)
    domains = [identity.domain(config, name) for name in answers.domains]
    print_records(here, identity.server(config, addresses), domains, zone=False)


def _what_next(answers: Answers) -> None:
    lines = ["systemctl start pymx", "pymxctl doctor"]
    if Path("/sys/fs/selinux/enforce").exists():
        lines.insert(0, "restorecon -R /etc/pymx /var/lib/pymx /var/vmail /etc/systemd/system   (SELinux labels)")
    ports = "25,465,587,993" + (",80,443" if answers.certificate == "acme" else "")
    if Path("/usr/sbin/ufw").exists():
        lines.insert(0, f"ufw allow {ports}/tcp")
    if Path("/usr/bin/firewall-cmd").exists():
        opened = " ".join(f"--add-port={port}/tcp" for port in ports.split(","))
        lines.insert(0, f"firewall-cmd --permanent {opened} && firewall-cmd --reload")
    print("\nNext:\n" + "\n".join(f"  {line}" for line in lines))
