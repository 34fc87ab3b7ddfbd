"""pymxctl mailbox fulltext on|off|build|stats: an account's full-text index."""

from __future__ import annotations

import argparse
import os
import time

from pymx.admin.context import Context, CtlError, Exit
from pymx.ms.errors import StoreError
from pymx.ms.owner import Owner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    for name, text in (
        ("on", "index the account's texts again, from its next search on"),
        ("off", "no index for this account: every search of a text reads its messages"),
        ("build", "take in now what is missing"),
        ("stats", "how much is in it"),
    ):
        steps.add_parser(name, help=text).add_argument("user", metavar="USER", help="address of the account")


def run(args: argparse.Namespace, context: Context, owner: Owner) -> int:
    return {"on": _switch, "off": _switch, "build": _build, "stats": _stats}[args.step](args, context, owner)


def _switch(args: argparse.Namespace, context: Context, owner: Owner) -> int:
    from pymx.ms.fulltext import FullText
    from pymx.ms.mend import index_path

    path = index_path(context.config.mail, owner)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        FullText(path, 0o600).switch(on=args.step == "on")
    except OSError as e:
        raise CtlError(f"{os.fsdecode(os.path.dirname(path))}: {e.strerror}") from None
    if args.step == "on" and not context.config.mail.fulltext:
        context.out.warn(f"[mail] fulltext is off in {context.config_path}, for all accounts")
    context.out.done(f"{owner.email}: full-text index {args.step}", email=owner.email, fulltext=args.step == "on")
    return Exit.OK


def _build(_args: argparse.Namespace, context: Context, owner: Owner) -> int:
    from pymx.ms.fulltextbuild import Builder
    from pymx.ms.mend import open_account

    mail, started, cpu = context.config.mail, time.monotonic(), time.process_time()
    account = open_account(mail, owner, context.config.hostname)
    try:
        built = Builder(account, max_percent=mail.fulltext_max_percent).run()
    except StoreError as error:
        raise CtlError(f"{owner.email}: {error} ({error.reason})") from None
    finally:
        account.close()
    if built.refused:
        raise CtlError(f"{owner.email}: {built.refused}")
    took, cpu = time.monotonic() - started, time.process_time() - cpu
    text = f"{owner.email}: {built.messages} messages taken in, {_mib(built.size_octets)} MiB, {took:.1f} s"
    if built.left_out:
        text += f"; {built.left_out} with too much text left out"
    if built.full:
        text += f"; full at {mail.fulltext_max_percent} % of the mail, older messages are not in it"
    context.out.done(
        text, email=owner.email, messages=built.messages, left_out=built.left_out, dropped_volumes=built.dropped,
        size_octets=built.size_octets, full=built.full, duration_s=round(took, 2), cpu_s=round(cpu, 2),
    )  # fmt: skip
    return Exit.OK


def _stats(_args: argparse.Namespace, context: Context, owner: Owner) -> int:
    from pymx.ms.fulltext import Damaged, FullText, Trouble
    from pymx.ms.fulltextbuild import stats
    from pymx.ms.mend import index_path

    try:
        found = stats(FullText(index_path(context.config.mail, owner), 0o600))
    except Damaged as e:
        raise CtlError(f"{owner.email}: the full-text index is damaged and will be made anew: {e}") from None
    except (Trouble, OSError) as e:
        raise CtlError(f"{owner.email}: the full-text index can't be read: {e}") from None
    state = "off" if found.is_off or not context.config.mail.fulltext else "full" if found.full else "on"
    context.out.details(
        {
            "email": owner.email,
            "state": state,
            "messages": found.messages,
            "left_out": found.left_out,
            "volumes": found.volumes,
            "size_octets": found.size_octets,
            "searched": _when(found.searched_s),
            "built": _when(found.built_s),
        }
    )
    return Exit.OK


def _when(unix_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s)) if unix_s else "never"


def _mib(octets: int) -> str:
    return f"{octets / 1048576:.1f}"
