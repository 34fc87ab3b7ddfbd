"""pymxctl mailbox check|reindex|fulltext.

`check` looks only, at any time. `reindex` mends under the store's own locks, so it may run beside the server; the
server's sessions see what was mended at their next command. Exit status 1 of `check`: something is wrong.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from pymx.admin import fulltext
from pymx.admin.context import Context, CtlError, Exit
from pymx.ms.audit import Audit
from pymx.ms.dovecotplace import Place, control_root
from pymx.ms.errors import InvalidName, NoSuchMailbox, StoreError
from pymx.ms.fault import Finding
from pymx.ms.layout import Layout, is_mailbox
from pymx.ms.owner import Owner

_SKIPPED = ".removed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    check = verbs.add_parser("check", help="is what lies on disk sound? changes nothing")
    check.add_argument("user", metavar="USER", nargs="?", help="address of one account; all of them without")
    check.add_argument("mailbox", metavar="MAILBOX", nargs="?", help="one mailbox of it")
    check.add_argument("--quick", action="store_true", help="don't read the messages (finds no wrong W=)")
    check.add_argument("--notes", action="store_true", help="show also what is only good to know")
    reindex = verbs.add_parser("reindex", help="mend index and Dovecot's files, losing as little as can be")
    reindex.add_argument("user", metavar="USER", help="address of the account")
    reindex.add_argument("mailbox", metavar="MAILBOX", nargs="?", help="one mailbox of it")
    fulltext.add_arguments(verbs.add_parser("fulltext", help="the index for searches of texts"))


def run(args: argparse.Namespace, context: Context) -> int:
    return {"check": _check, "reindex": _reindex, "fulltext": _fulltext}[args.verb](args, context)


def _fulltext(args: argparse.Namespace, context: Context) -> int:
    return fulltext.run(args, context, next(accounts(context, args.user)))


def owner_of(email: str) -> Owner:
    local_part, at, domain = email.rpartition("@")
    try:
        owner = Owner(domain, local_part)
        owner.path(b"/")
    except InvalidName:
        at = ""
    if not at:
        raise CtlError(f"{email!r} is not an address of an account", Exit.USAGE)
    return owner


def accounts(context: Context, user: str | None) -> Iterator[Owner]:
    """The one that is named, or all that have mail: every directory <root>/<domain>/<local part>."""
    root = Path(context.config.mail.root)
    if user is not None:
        owner = owner_of(user)
        if not os.path.isdir(owner.path(os.fsencode(root))):
            raise CtlError(f"{user} has no mail: there is no {os.fsdecode(owner.path(os.fsencode(root)))}")
        yield owner
        return
    if not root.is_dir():
        raise CtlError(f"there is no {root}; see [mail] root in {context.config_path}")
    for domain in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for account in sorted(p for p in domain.iterdir() if p.is_dir() and not p.name.startswith(".")):
            yield Owner(domain.name, account.name)


def _check(args: argparse.Namespace, context: Context) -> int:
    found: list[tuple[str, Finding]] = []
    owners = [o for o in accounts(context, args.user) if args.user or is_mailbox(_root(context, o))]
    with context.out.progress("accounts", len(owners)) as step:
        for owner in owners:
            found += [(owner.email, finding) for finding in _audit(args, context, owner)]
            step()
    looked_at = len(owners)
    wrong = sum(finding.wrong for _, finding in found)
    if context.json:
        rows = [(email, f.mailbox, f.kind, f.text, f.remedy, f.wrong) for email, f in found]
        context.out.table(["User", "Mailbox", "Kind", "Text", "Remedy", "Wrong"], rows)
    else:
        _print(found, notes=args.notes)
        said = "nothing is wrong" if not wrong else f"{wrong} things are wrong" if wrong > 1 else "one thing is wrong"
        print(f"{looked_at} {'account' if looked_at == 1 else 'accounts'} looked at: {said}")
    return Exit.FAILED if wrong else Exit.OK


def _root(context: Context, owner: Owner) -> bytes:
    return owner.path(os.fsencode(context.config.mail.root))


def _audit(args: argparse.Namespace, context: Context, owner: Owner) -> list[Finding]:
    """What is to be said of one account."""
    from pymx.ms.mend import index_path

    mail = context.config.mail
    layout = Layout(mail.layout, mail.separator)
    root = _root(context, owner)
    place = Place(root, layout.fs, control_root(mail.control_dir, owner))
    audit = Audit(root, layout, index_path(mail, owner), user=owner.email, read_messages=not args.quick, place=place)
    try:
        return list(audit.run(layout.levels(args.mailbox) if args.mailbox else None))
    except StoreError as error:
        raise CtlError(f"{owner.email}: {error}") from None


def _print(found: list[tuple[str, Finding]], *, notes: bool) -> None:
    for email, finding in found:
        if not finding.wrong and not notes:
            continue
        where = f"{email} {finding.mailbox}".strip()
        print(printable(f"{where}: {finding.text}"))
        if finding.remedy:
            print(printable(f"    {finding.remedy}"))


def printable(text: str) -> str:
    """File names come from anywhere: nothing in them reaches a terminal as a control."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _reindex(args: argparse.Namespace, context: Context) -> int:
    from pymx.ms.mend import Mending, index_path, open_account

    owner = owner_of(args.user)
    next(accounts(context, args.user))
    mail = context.config.mail
    account = open_account(mail, owner, context.config.hostname)
    done: list[str] = []

    def say(text: str) -> None:
        done.append(text)
        if not context.json:
            print(printable(text), flush=True)

    try:
        levels = account.layout.levels(args.mailbox) if args.mailbox else None
        Mending(account, index_path(mail, owner), say).run(levels)
    except NoSuchMailbox:
        raise CtlError(f"{owner.email} has no mailbox {args.mailbox}") from None
    except StoreError as error:
        raise CtlError(f"{owner.email}: {error} ({error.reason})") from None
    finally:
        account.close()
    text = f"{owner.email}: {len(done)} things were mended" if done else f"{owner.email}: there was nothing to mend"
    context.out.done(text, email=owner.email, mended=done)
    return Exit.OK
