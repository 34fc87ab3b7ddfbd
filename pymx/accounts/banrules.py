"""The rules of bans and slowed answers, without a clock and without a database.

A ban is for guessing: what counts are *different* wrong passwords, so a phone that sends an old one for days is only
answered slowly. Whoever logged in to an account from an address lately is never kept from it there, whatever else comes
from that address, and wrong passwords for it don't count; at other accounts the address counts as anyone's.

Who has an IPv6 /48 has 65,536 /64s to guess from, so what counts is counted once more per /48, with a limit of its own:
then the whole /48 is banned, but for accounts that were logged in to from anywhere in it lately.

A ban lasts `first_s`, each further one of the same address twice as long as the last, never longer than `max_s`. An
address that was quiet for `FORGIVEN_S` after its ban begins anew.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from pymx.config.model import Limits

FORGIVEN_S = 7 * 86_400.0
MAX_ACCOUNT_OCTETS = 254  # of a login that is remembered: the longest address
_DAY_S = 86_400.0
_FIRST_WAIT_S = 0.5
_ACCOUNT_GUESSES = 50  # different wrong passwords for one account, from everywhere: then all its wrong answers are slow


@dataclass(frozen=True, slots=True)
class Rules:
    """`[limits]`, in seconds."""

    ban_after: int
    site_ban_after: int
    window_s: float
    first_s: float
    max_s: float
    good_s: float
    slow_max_s: float

    @classmethod
    def of(cls, settings: Limits) -> Rules:
        return cls(
            ban_after=settings.ban_after,
            site_ban_after=settings.ban_after_ipv6_48,
            window_s=settings.ban_window_s,
            first_s=settings.ban_first_s,
            max_s=settings.ban_max_s,
            good_s=settings.good_login_days * _DAY_S,
            slow_max_s=settings.slow_max_s,
        )

    def earns_ban(self, distinct: int) -> bool:
        """`distinct`: different wrong passwords from an address that count, within the window."""
        return 0 < self.ban_after <= distinct

    def earns_site_ban(self, distinct: int) -> bool:
        """The same for an IPv6 /48."""
        return 0 < self.site_ban_after <= distinct

    def ban_s(self, level: int) -> float:
        """How long the ban lasts that comes after `level` others."""
        return min(self.max_s, self.first_s * 2.0 ** min(level, 32))

    def wait_s(self, times: int, account_guesses: int) -> float:
        """How long an address waits for the answer to its `times`-th wrong password within the window.

        `account_guesses`: different wrong passwords for the account from all addresses. Somebody who guesses from many
        addresses is slowed down by them; the right password is never.
        """
        if account_guesses >= _ACCOUNT_GUESSES:
            return self.slow_max_s
        return min(self.slow_max_s, _FIRST_WAIT_S * 2.0 ** min(max(times, 1) - 1, 16))


def account_key(login: str) -> str:
    """What wrong passwords for a login are kept under, whether there is such a user or not."""
    return login.strip().lower().encode("utf-8", "replace")[:MAX_ACCOUNT_OCTETS].decode("utf-8", "ignore")


def tag(key: bytes, account: str, password: str) -> int:
    """16 bits that tell one wrong password for an account from another, and nobody what it was."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for field in (account, password):
        octets = field.encode("utf-8", "surrogateescape")
        mac.update(len(octets).to_bytes(8, "big") + octets)
    return int.from_bytes(mac.digest()[:2], "big")
