"""pymxctl doctor: is everything well that mail depends on? Each finding is a sentence, with what to do about it.

Ends with 1 when something fails, with 0 when there is at most advice. `--nightly` compares with the last run and mails
the administrator only what changed (pymx-nightly.timer); `--prove ADDRESS` sends signed messages through the real queue
and reads what the other side thinks of them.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.control_client import ControlError
from pymx.admin.dns import address, gather, open_resolver

if TYPE_CHECKING:
    from pymx.admin.health.finding import Finding
    from pymx.admin.health.listening import Listening
    from pymx.admin.health.subject import Places, Subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", dest="everything", help="show what is good as well")
    parser.add_argument(
        "--address", action="append", default=[], type=address,
        help="a public address of this server, when it is behind a router that translates; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--nightly", action="store_true", help="mail the postmaster what changed since the last such run"
    )
    parser.add_argument(
        "--second-look", metavar="SECONDS", type=float, default=60.0,
        help="with --nightly: what is new must still be so then, or it is not mailed (default 60; 0 = no such look)",
    )  # fmt: skip
    parser.add_argument(
        "--prove", metavar="ADDRESS", default="",
        help="send signed probes to a mailbox elsewhere, or to a reflector, and read what it thinks of them",
    )  # fmt: skip
    parser.add_argument("--from", metavar="ACCOUNT", dest="sender", default="", help="whose address probes come from")
    parser.add_argument(
        "--imap-url", metavar="URL", default="", help="where ADDRESS is read: imaps://user@imap.example.net"
    )
    parser.add_argument("--imap-password-file", metavar="FILE", default="", help="its password, on one line")
    parser.add_argument("--wait", metavar="SECONDS", type=float, default=300.0, help="for the answer (default 300)")


def run(args: argparse.Namespace, context: Context) -> int:
    from pymx.admin.health.listening import listening

    held = listening()  # while we may still see whose the sockets are
    password = _read_password(args.imap_password_file)  # and read what only root may
    context.become_user()
    if args.prove:
        from pymx.admin.prove import prove

        return prove(args, context, password)
    findings = examine_site(context, args.address, held)
    if args.nightly:
        from pymx.admin import nightly

        def again() -> list[Finding]:
            return examine_site(context, args.address, held)

        return nightly.run(context, findings, again=again, second_look_s=args.second_look)
    return report(context, findings, everything=args.everything)


def _read_password(path: str) -> str:
    if not path:
        return ""
    with open(path, encoding="utf-8") as f:
        return f.readline().rstrip("\r\n")


def examine_site(
    context: Context, addresses: Sequence[str], held: Listening, places: Places | None = None
) -> list[Finding]:
    """All checks of a server that is set up."""
    from pymx.admin.health.examination import examine

    async def everything() -> list[Finding]:
        return await examine(subject_of(context, addresses, held, places))

    return asyncio.run(everything())


def subject_of(context: Context, addresses: Sequence[str], held: Listening, places: Places | None = None) -> Subject:
    """In a running event loop."""
    from pymx.admin import identity
    from pymx.admin.health.activation import activation
    from pymx.admin.health.subject import Places, Subject
    from pymx.mailauth.dkim.keys import KeyUnusable

    try:
        server, domains = gather(context, "", addresses)
    except CtlError:  # the database is down, which a check says
        try:
            server, domains = identity.server(context.config, addresses), []
        except KeyUnusable as e:
            raise CtlError(str(e)) from None
    places = places or Places()
    return Subject(
        config=context.config,
        server=server,
        domains=tuple(domains),
        resolver=open_resolver(context),
        now=time.time(),
        listening=held,
        running=is_running(context),
        began=asyncio.get_running_loop().time(),
        places=places,
        activation=activation(places.systemctl),
    )


def is_running(context: Context) -> bool:
    try:
        context.control.call("status", timeout_s=10.0)
    except ControlError:
        return False
    return True


def report(context: Context, findings: Sequence[Finding], *, everything: bool) -> int:
    from pymx.admin.health.finding import Severity, as_facts, worst
    from pymx.admin.health.present import show

    bad = worst(findings) >= Severity.FAIL
    if context.json:
        ordered = sorted(findings, key=lambda finding: -finding.severity)
        context.out.details({"ok": not bad, "findings": [as_facts(finding) for finding in ordered]})
    else:
        show(findings, everything=everything, about=context.config.hostname)
    return Exit.FAILED if bad else Exit.OK
