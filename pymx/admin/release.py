"""pymxctl release: give the mailboxes back to Dovecot. Stop pymx, start Dovecot, run this at once.

Messages, flags, the first 26 keywords of each mailbox, subscriptions and UIDs are in Dovecot's files already. What is
not: keywords beyond the 26 letters, which are listed, and how far MODSEQ has come, which clients with CONDSTORE must
not see go back: Dovecot is told by `doveadm mailbox update --min-highest-modseq`, printed here or, with --execute, run.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.control_client import ControlError, NotRunning
from pymx.admin.mailbox import accounts, printable
from pymx.ms.index import IndexTrouble, open_read_only
from pymx.ms.layout import Layout, is_mailbox
from pymx.ms.mend import index_path
from pymx.ms.names import LETTERS
from pymx.ms.owner import Owner

_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Left:
    """What one mailbox leaves behind. `keywords` have no letter; `messages` have one of them."""

    mailbox: str
    modseq: int
    keywords: list[str]
    messages: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", metavar="USER", nargs="?", help="address of one account; all of them without")
    parser.add_argument("--execute", action="store_true", help="run the doveadm commands; Dovecot must be there again")
    parser.add_argument("--doveadm", metavar="COMMAND", default="doveadm", help="how to call it, with options")
    parser.add_argument("--force", action="store_true", help="even while pymx runs (the numbers may grow meanwhile)")


def run(args: argparse.Namespace, context: Context) -> int:
    if not args.force and _serving(context):
        raise CtlError("pymx runs; stop it first: systemctl disable --now pymx")
    everything: list[dict[str, object]] = []
    failed = 0
    with _as_user(context):
        found = [(owner, left) for owner in accounts(context, args.user) for left in left_behind(context, owner)]
    for owner, left in found:
        command = [
            *shlex.split(args.doveadm), "mailbox", "update", "-u", owner.email,
            "--min-highest-modseq", str(left.modseq), _their_name(context, left.mailbox),
        ]  # fmt: skip
        error = _execute(command) if args.execute else ""
        failed += bool(error)
        everything.append(
            {
                "user": owner.email, "mailbox": left.mailbox, "modseq": left.modseq, "keywords": left.keywords,
                "messages": left.messages, "command": shlex.join(command), "error": error,
            }
        )  # fmt: skip
        if not context.json:
            _show(owner, left, command, error, executed=args.execute)
    if context.json:
        context.out.done("", mailboxes=everything, executed=args.execute)
    elif not everything:
        print("pymx has used none of these mailboxes: there is nothing to tell Dovecot")
    return Exit.FAILED if failed else Exit.OK


@contextmanager
def _as_user(context: Context) -> Iterator[None]:
    """While the mail is read: doveadm may need root, but what SQLite makes beside an index must not be root's."""
    if os.geteuid() != 0 or context.config.user == "none":
        yield
        return
    try:
        user = pwd.getpwnam(context.config.user)
    except KeyError:
        raise CtlError(f"there is no user {context.config.user}") from None
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def _serving(context: Context) -> bool:
    try:
        context.control.call("status", timeout_s=5.0)
    except NotRunning:
        return False
    except ControlError:
        return True
    return True


def left_behind(context: Context, owner: Owner) -> list[Left]:
    """Of every mailbox the index knows. Raises CtlError if it can't be read."""
    mail = context.config.mail
    layout = Layout(mail.layout, mail.separator)
    root = owner.path(os.fsencode(mail.root))
    try:
        db = open_read_only(index_path(mail, owner))
    except FileNotFoundError:
        return []
    except IndexTrouble as error:
        text = f"the index of {owner.email} can't be read: {error}; first: pymxctl mailbox reindex {owner.email}"
        raise CtlError(text) from None
    out = []
    try:
        for number, name, modseq in db.execute("SELECT id, name, highestmodseq FROM mailbox WHERE guid <> ''"):
            levels = tuple(name.split("/"))
            if not is_mailbox(layout.path(root, levels)):
                continue
            low, high = number << 32, number << 32 | 0xFFFFFFFF
            messages, used = 0, 0
            for (bits,) in db.execute(
                "SELECT keywords FROM message WHERE id BETWEEN ? AND ? AND keywords >> 26", (low, high)
            ):
                messages += 1
                used |= bits
            beyond = db.execute(
                "SELECT bit, name FROM keyword WHERE mailbox=? AND bit>=? ORDER BY bit", (number, LETTERS)
            )
            out.append(Left(layout.name(levels), modseq, [k for bit, k in beyond if used >> bit & 1], messages))
    finally:
        db.close()
    return sorted(out, key=lambda left: (left.mailbox != "INBOX", left.mailbox))


def _their_name(context: Context, mailbox: str) -> str:
    """As Dovecot's users name it: with the namespace's prefix."""
    return mailbox if mailbox == "INBOX" else context.config.mail.prefix + mailbox


def _execute(command: list[str]) -> str:
    """ "" or what went wrong."""
    try:
        done = subprocess.run(  # noqa: S603  (the admin's own command)
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except OSError as error:
        raise CtlError(f"{command[0]} can't be run: {error.strerror}; say how with --doveadm") from None
    except subprocess.TimeoutExpired:
        return f"no answer within {_TIMEOUT_S} s"
    return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""


def _show(owner: Owner, left: Left, command: list[str], error: str, *, executed: bool) -> None:
    if left.keywords:
        print(
            printable(
                f"# {owner.email} {left.mailbox}: {left.messages} messages have keywords beyond the 26 that Maildir "
                f"has letters for; they stay behind in pymx-keywords: {', '.join(left.keywords)}"
            )
        )
    if not executed:
        print(printable(shlex.join(command)))
    elif error:
        print(printable(f"{owner.email} {left.mailbox}: {shlex.join(command)} failed: {error}"))
    else:
        print(printable(f"{owner.email} {left.mailbox}: MODSEQ goes on from {left.modseq}"))
