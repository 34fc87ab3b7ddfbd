"""How the nouns reach the accounts database: a registry, with its errors turned into what a person can act on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pymx.accounts.account import AccountsError, DirectoryUnavailable
from pymx.accounts.passwords import MAX_PASSWORD_OCTETS, PasswordUnusable, UnsupportedScheme, make, parse
from pymx.accounts.registry import Registry
from pymx.admin.context import Context, CtlError, Exit


@contextmanager
def translated(context: Context) -> Iterator[None]:
    try:
        yield
    except DirectoryUnavailable as e:
        raise CtlError(f"the accounts database is not available: {e.reason}", Exit.UNAVAILABLE) from None
    except AccountsError as e:
        raise CtlError(e.reason.replace("--config FILE", f"--config {context.config_path}")) from None


@contextmanager
def registry(context: Context) -> Iterator[Registry]:
    with translated(context):
        opened = Registry(context.config.database)
        try:
            yield opened
        finally:
            opened.close()


def read_password(context: Context, *, is_hash: bool) -> str:
    """What to store, from standard input: one line with a password, or with a hash made elsewhere (doveadm pw)."""
    line = sys.stdin.readline(MAX_PASSWORD_OCTETS + 2).rstrip("\n").removesuffix("\r")
    if is_hash:
        try:
            parse(line)
        except UnsupportedScheme as e:
            raise CtlError(f"this hash can't be used, {e}; make one with: doveadm pw -s BLF-CRYPT") from None
        return line
    try:
        return make(line, context.config.accounts.bcrypt_cost)
    except (PasswordUnusable, UnicodeEncodeError) as e:
        raise CtlError(f"{e}; give the password as one line on standard input") from None
