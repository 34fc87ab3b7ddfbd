"""pymxctl user quota: an account's limits and what it uses of them.

Without a limit it shows; `--recount` compares each mailbox with its files first and counts anew.
"""

from __future__ import annotations

import argparse
import os
import re

from pymx.accounts.registry import Registry
from pymx.admin.context import Context, CtlError, Exit
from pymx.mail.address import parse_address
from pymx.ms.errors import NoSuchMailbox, StoreError
from pymx.ms.owner import Owner

_SIZE = re.compile(r"(\d+)([kmgt]?)(?:i?b)?\Z", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_KEEP = -1  # what is not named stays
_WORDS = {"unlimited": 0, "default": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("email", metavar="EMAIL")
    parser.add_argument(
        "quota", type=size, metavar="SIZE", nargs="?", default=_KEEP,
        help="500M, 2G, unlimited, or default; without it the present limits and use are shown",
    )  # fmt: skip
    parser.add_argument(
        "--messages", type=count, metavar="N", default=_KEEP,
        help="limit of the number of messages: a number, unlimited, or default",
    )  # fmt: skip
    parser.add_argument("--recount", action="store_true", help="compare every mailbox with its files and count anew")


def size(text: str) -> int | None:
    """In octets; 0 is unlimited, None the default."""
    if text in _WORDS:
        return _WORDS[text]
    match = _SIZE.match(text)
    if not match or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 500M, 2G, unlimited or default")
    return int(match[1]) * _UNITS[match[2].lower()]


def count(text: str) -> int | None:
    """A number of messages; 0 is unlimited, None the default."""
    if text in _WORDS:
        return _WORDS[text]
    if not re.fullmatch(r"[1-9][0-9]{0,17}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of messages; write 5000, unlimited or default")
    return int(text)


def size_text(octets: int | None) -> str:
    if octets is None or octets == 0:
        return count_text(octets)
    for unit in ("T", "G", "M", "K"):
        if octets % _UNITS[unit.lower()] == 0:
            return f"{octets // _UNITS[unit.lower()]}{unit}"
    return str(octets)


def count_text(number: int | None) -> str:
    return "default" if number is None else "unlimited" if number == 0 else str(number)


def run(args: argparse.Namespace, context: Context, accounts: Registry) -> int:
    email = args.email.lower()
    user = next((u for u in accounts.users() if u.email.lower() == email), None)
    if user is None or (args.quota, args.messages) != (_KEEP, _KEEP):
        octets, messages = args.quota, args.messages
        if user is not None:
            octets = user.quota_octets if octets == _KEEP else octets
            messages = user.quota_messages if messages == _KEEP else messages
        accounts.set_quota(args.email, octets, messages)  # says what is wrong with the address
        context.accounts_changed()
        text = f"{email}: quota {size_text(octets)}"
        if messages is not None:
            text += f", {count_text(messages)} messages" if messages else ", unlimited messages"
        if args.recount:
            _usage(context, email, recount=True)
        context.out.done(text, email=email, quota_octets=octets, quota_messages=messages)
        return Exit.OK
    octets, messages = _usage(context, email, recount=args.recount)
    mail = context.config.mail
    limits = (
        mail.default_quota_mb * 1024 * 1024 if user.quota_octets is None else user.quota_octets,
        mail.default_quota_messages if user.quota_messages is None else user.quota_messages,
    )
    context.out.details(
        {
            "email": email,
            "octets": octets,
            "quota_octets": limits[0] if context.json else size_text(limits[0]),
            "messages": messages,
            "quota_messages": limits[1] if context.json else count_text(limits[1]),
        }
    )
    return Exit.OK


def _usage(context: Context, email: str, *, recount: bool) -> tuple[int, int]:
    """Octets and messages."""
    from pymx.ms.box import Hold
    from pymx.ms.mend import open_account

    address, mail = parse_address(email), context.config.mail
    owner = Owner(address.domain, address.local_part)
    if not os.path.isdir(owner.path(os.fsencode(mail.root))):
        return 0, 0
    account = open_account(mail, owner, context.config.hostname)

    def count_anew() -> None:
        for levels in account.layout.mailboxes(account.home.root):
            try:
                with Hold(account.box(levels), full=True) as hold:
                    hold.recount()
                    hold.saved()
            except NoSuchMailbox:
                continue  # deleted meanwhile

    try:
        if recount:
            account.call(count_anew)
        return account.call(account.usage)
    except StoreError as error:
        raise CtlError(f"{email}: {error} ({error.reason})") from None
    finally:
        account.close()
