"""pymxctl user add|list|passwd|quota|remove.

A removed user's mail goes to `<root>/.removed/<domain>/<local-part>-<time>`. The row goes first, then the daemon is
told, then the mail is moved; and the removal is written down with the row. So whatever is found in a mailbox of that
name when the name is given away again (a stop between the steps, a delivery that was under way) is moved out of the
way then, and the next user of the name never sees it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path

from pymx.accounts.registry import Registry
from pymx.admin import quota
from pymx.admin.accounts import read_password, registry
from pymx.admin.context import Context, CtlError, Exit
from pymx.mail.address import Address, AddressError, parse_address
from pymx.ms.disk import Disk
from pymx.ms.dovecotplace import control_root
from pymx.ms.errors import InvalidName
from pymx.ms.owner import Owner
from pymx.ms.removed import DIRECTORY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    add = verbs.add_parser("add", help="a new user with a mailbox")
    add.add_argument("email", metavar="EMAIL")
    _add_password_source(add)
    add.add_argument("--quota", type=quota.size, metavar="SIZE", help="limit: 500M, 2G, unlimited, default")
    add.add_argument("--quota-messages", type=quota.count, metavar="N", help="limit: messages, unlimited, default")
    passwd = verbs.add_parser("passwd", help="another password; the old one stops working at once")
    passwd.add_argument("email", metavar="EMAIL")
    _add_password_source(passwd)
    listing = verbs.add_parser("list", help="the users")
    listing.add_argument("--domain", help="of this domain only")
    quota.add_arguments(verbs.add_parser("quota", help="limit a mailbox, or show what it uses"))
    remove = verbs.add_parser("remove", help="remove a user; the mail is moved to .removed in the mail root")
    remove.add_argument("email", metavar="EMAIL")


def _add_password_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    source.add_argument("--hash-stdin", action="store_true", help="read a hash made by doveadm pw instead")


def run(args: argparse.Namespace, context: Context) -> int:
    with registry(context) as accounts:
        return _VERBS[args.verb](args, context, accounts)


def _add(args: argparse.Namespace, context: Context, accounts: Registry) -> int:
    stored = read_password(context, is_hash=args.hash_stdin)
    _refuse_without_mailbox(args.email)
    left_over = None
    if accounts.was_removed(args.email):
        left_over = _put_aside(context, args.email)
        accounts.forget_removal(args.email)
    email = accounts.add_user(args.email, stored, args.quota, args.quota_messages)
    context.accounts_changed()
    for alias in accounts.aliases(email.rpartition("@")[2]):
        if alias.source.lower() == email and email not in map(str.lower, alias.destinations):
            context.out.warn(
                f"there is an alias {email}, which takes the mail to {', '.join(alias.destinations)}; "
                f"to have it in the mailbox: pymxctl alias remove {email}"
            )
    if left_over:
        context.out.warn(f"mail left of the former {email} was moved to {left_over}")
    context.out.done(f"{email} added", email=email)
    return Exit.OK


def _refuse_without_mailbox(email: str) -> None:
    """The store has no place for every name that is an address."""
    try:
        address = parse_address(email)
        Owner(address.domain, address.local_part).path(b"/")
    except AddressError as e:
        raise CtlError(f"{email!r} is not an address: {e}") from None
    except InvalidName:
        raise CtlError(
            f"{email} can't be the name of a mailbox: no part may begin with a dot or hold a slash"
        ) from None


def _passwd(args: argparse.Namespace, context: Context, accounts: Registry) -> int:
    accounts.set_password(args.email, read_password(context, is_hash=args.hash_stdin))
    context.accounts_changed()
    context.out.done(f"the password of {args.email.lower()} is changed", email=args.email.lower())
    return Exit.OK


def _list(args: argparse.Namespace, context: Context, accounts: Registry) -> int:
    users = accounts.users(args.domain)
    if context.json:
        rows: list[tuple[object, ...]] = [
            (user.email, user.quota_octets, user.quota_messages, user.scheme) for user in users
        ]
    else:
        rows = [(u.email, quota.size_text(u.quota_octets), quota.count_text(u.quota_messages), u.scheme) for u in users]
    context.out.table(
        ["Email", "Quota octets" if context.json else "Quota", "Quota messages", "Password scheme"],
        rows,
        empty="no users yet; add one: pymxctl user add EMAIL --password-stdin",
    )
    return Exit.OK


def _remove(args: argparse.Namespace, context: Context, accounts: Registry) -> int:
    aliases = accounts.remove_user(args.email)
    context.accounts_changed()
    email = args.email.lower()
    moved = _put_aside(context, email)
    if aliases:
        context.out.warn(f"still lead to {email}: {', '.join(aliases)}; see: pymxctl alias remove")
    text = f"{email} removed; the mail is in {moved}" if moved else f"{email} removed; there was no mail"
    context.out.done(text, email=email, mail=str(moved) if moved else None, aliases=aliases)
    return Exit.OK


_VERBS = {"add": _add, "passwd": _passwd, "list": _list, "quota": quota.run, "remove": _remove}


def _put_aside(context: Context, email: str) -> Path | None:
    """Move what is in the mailbox to .removed; returns where it went, None if there was nothing."""
    address = parse_address(email)
    root = Path(context.config.mail.root)
    try:
        source = Path(os.fsdecode(Owner(address.domain, address.local_part).path(os.fsencode(root))))
    except InvalidName:
        return None  # the store gives such a name no mailbox
    _drop_index(context, address)
    if not source.is_dir():
        return None
    directory = root / DIRECTORY / address.domain.lower()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = _free(directory, f"{source.name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        source.rename(target)
        for changed in (source.parent, directory):
            Disk().sync_directory(os.fsencode(changed))
    except OSError as e:
        raise CtlError(
            f"the mail of {email} could not be moved from {source} to {directory}: {e.strerror}; move it by hand"
        ) from None
    return target


def _drop_index(context: Context, address: Address) -> None:
    """What lies apart from the mail, index and Dovecot's CONTROL=: it would tell the next user of the name about it."""
    owner = Owner(address.domain, address.local_part)
    if context.config.mail.control_dir:
        shutil.rmtree(control_root(context.config.mail.control_dir, owner), ignore_errors=True)
    if context.config.mail.index_dir:
        shutil.rmtree(owner.path(os.fsencode(context.config.mail.index_dir)), ignore_errors=True)


def _free(directory: Path, name: str) -> Path:
    target, number = directory / name, 2
    while target.exists():
        target, number = directory / f"{name}-{number}", number + 1
    return target
