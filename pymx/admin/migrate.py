"""pymxctl migrate: make or upgrade the tables. What an earlier installation has there is left as it is."""

from __future__ import annotations

import argparse

from pymx.admin.accounts import registry
from pymx.admin.context import Context, Exit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace, context: Context) -> int:
    with registry(context) as accounts:
        before, now = accounts.migrate()
    if before == now:
        context.out.done(f"the database has schema {now} already", before=before, now=now)
    else:
        context.accounts_changed()
        context.out.done(f"the database has schema {now} now (before: {before or 'none'})", before=before, now=now)
    return Exit.OK
