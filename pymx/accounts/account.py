"""What the accounts room hands out: accounts, resolved recipients, and its errors.

Errors: `AccountsError` > `UnknownRecipient` (no such address here), `AliasLoop` (aliases that lead in circles, too deep
or to too many addresses), `DirectoryUnavailable` (the database does not answer: temporary), `SchemaError` (the tables
are missing or of another version: the administrator has to act), `AuthenticationFailed` (wrong login; the reason is for
the log alone), `AuthenticationUnavailable` (can't be checked now: temporary) > `AuthenticationBanned` (too many wrong
passwords came from the peer's address).
"""

from __future__ import annotations

from dataclasses import dataclass

from pymx.mail.address import Address


@dataclass(frozen=True, slots=True)
class Account:
    """A user with a mailbox. `email`, `domain` and `local_part` are lower case; quotas of 0 are none."""

    id: int
    email: str
    domain: str
    local_part: str
    quota_octets: int
    quota_messages: int = 0


@dataclass(frozen=True, slots=True)
class Resolution:
    """Where mail for a recipient goes: mailboxes here, and addresses elsewhere. Never both empty."""

    accounts: tuple[Account, ...]
    external: tuple[Address, ...] = ()


class AccountsError(Exception):
    """Base of this room's errors; `reason` is for the log and the administrator."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownRecipient(AccountsError):
    """No mailbox and no alias of that name."""


class AliasLoop(AccountsError):
    """The aliases lead in a circle without a mailbox, are nested too deep or lead to too many addresses."""


class DirectoryUnavailable(AccountsError):
    """The database can't be asked and the answer is not remembered. Try again later."""


class SchemaError(AccountsError):
    """The database has no tables of ours, or those of another version."""


class AuthenticationFailed(AccountsError):
    """Login or password is wrong. The peer must not hear which."""

    is_guess = True  # False: nothing is wrong with what the peer sent


class StoredPasswordUnusable(AuthenticationFailed):
    """No password can fit what is stored, or it was replaced during the check. The peer may have sent the right one."""

    is_guess = False


class AuthenticationUnavailable(AccountsError):
    """The password can't be checked now. Try again later."""


class AuthenticationBanned(AuthenticationUnavailable):
    """The peer's address may not log in for a while."""
