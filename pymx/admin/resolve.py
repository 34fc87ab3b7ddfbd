"""pymxctl resolve ADDRESS: where mail for an address goes, by the database as it is now."""

from __future__ import annotations

import argparse
import asyncio
import logging

from pymx.accounts.account import AliasLoop, Resolution, UnknownRecipient
from pymx.accounts.directory import Directory
from pymx.admin.accounts import translated
from pymx.admin.context import Context, CtlError, Exit
from pymx.mail.address import Address, AddressError, parse_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS")


def run(args: argparse.Namespace, context: Context) -> int:
    try:
        address, rest = parse_path(f"<{args.address}>")
    except AddressError as e:
        raise CtlError(f"{args.address!r} is not an address: {e}", Exit.USAGE) from None
    if address is None or rest:
        raise CtlError(f"{args.address!r} is not an address", Exit.USAGE)
    logger, warnings = logging.getLogger("pymx.accounts"), _Warnings(context)
    logger.addHandler(warnings)
    try:
        with translated(context):
            return asyncio.run(_resolve(address, context))
    finally:
        logger.removeHandler(warnings)


class _Warnings(logging.Handler):
    """What the directory would log about the address (a destination that does not exist), for the person who asked."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() != "database_unavailable":  # the command fails with that
            fields = getattr(record, "fields", {})
            self._context.out.warn(str(fields.get("reason", record.getMessage())))


async def _resolve(address: Address, context: Context) -> int:
    config = context.config
    directory = Directory(
        config.database,
        config.accounts,
        delimiter=config.mail.subaddress_delimiter,
        hostname=config.hostname,
        default_quota_octets=config.mail.default_quota_mb * 1024 * 1024,
        default_quota_messages=config.mail.default_quota_messages,
    )
    await directory.start()
    try:
        if not await directory.is_local(address.domain):
            context.out.done(
                f"{address.domain} is not a domain of this server: its MX records decide",
                local=False,
                mailboxes=[],
                external=[str(address)],
            )
            return Exit.OK
        found = await directory.resolve(address)
    except (UnknownRecipient, AliasLoop) as e:
        context.out.failed(e.reason, local=True, mailboxes=[], external=[])
        return Exit.FAILED
    finally:
        await directory.close()
    _show(found, context)
    return Exit.OK


def _show(found: Resolution, context: Context) -> None:
    mailboxes = [account.email for account in found.accounts]
    external = [str(address) for address in found.external]
    if context.json:
        context.out.details({"local": True, "mailboxes": mailboxes, "external": external})
        return
    rows = [("mailbox", email) for email in mailboxes] + [("elsewhere", address) for address in external]
    context.out.table(["Kind", "Address"], rows)
