"""The Sender Rewriting Scheme: an envelope sender of ours that leads back to the original one.

A forwarder that keeps the sender fails the next host's SPF check. With SRS the sender becomes an address in the
forwarder's domain that carries the original one and a tag that nobody else can make:

    SRS0=HHHH=TT=example.com=alice@forwarder        HHHH tag, TT day, alice@example.com was the sender
    SRS1=HHHH=first==HHHH=TT=example.com=alice@us   the sender was a first forwarder's SRS0: back to it, no further
    SRS0=HHHH=TT=~=TOKEN@forwarder                  too long for 64 octets, or not ASCII: the sender is in a store

There is no RFC. The form, the tag (HMAC-SHA1, 24 bits, told apart without regard to case, so that at least 20 count)
and the days (of 1,024, two base32 digits) are those of Mail::SRS and postsrsd, byte for byte: with their secret in our
key file, addresses made by them lead back here, and ours lead back there. Collisions of SHA-1 don't help against HMAC.

Deviation from them: an SRS1 that is made of another one's SRS1 has a tag of its own kind. What stands in it comes from
the sender alone, and the tags of the others are made of parts put together without a border: MAIL FROM
SRS1=x=TTexample.com=alice@evil would buy the tag of SRS0=HHHH=TT=example.com=alice.

`Secrets` is the key file: one secret a line, `#` comments; the first makes tags, all are accepted. It is made with mode
0600 when it does not exist, unless it is a credential of systemd, and read again when it changes.

Nothing here looks anything up. Errors: SrsError for an address that is not one of ours any more, or that does not fit;
OSError for a key file that can't be read or made.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from pymx.config.secret import SecretUnavailable, no_credential
from pymx.mail.address import MAX_LOCAL_PART_OCTETS, MAX_PATH_OCTETS, Address, AddressError, parse_domain

_SRS = re.compile(r"SRS([01])([-+=])", re.IGNORECASE)
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_TAG_LETTERS = 4  # of base64: 24 bits; of 36 letters when case does not count: 20.6
_DAY_S = 86400
_DAYS = 1024
_STORED = "~"  # where the domain would be; no domain is called that
_TOKEN_OCTETS = 10


class SrsError(Exception):
    """The address leads nowhere, or the sender can't be written as one."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The sender has to be looked up by this token."""

    token: str


def is_srs(address: Address) -> bool:
    """Does the local part have the form?"""
    return _SRS.match(address.local_part) is not None


class Srs:
    """`secrets` are as in a key file, `lifetime_days` is how long an address leads back."""

    def __init__(self, secrets: Secrets, *, lifetime_days: int = 21) -> None:
        self.secrets = secrets
        self._lifetime_days = lifetime_days

    def forward(self, sender: Address, domain: str, *, now: float) -> Address | None:
        """The sender rewritten into `domain`; None when it has to be stored under a token (`shortened`)."""
        if not sender.local_part.isascii():
            return None
        made = Address(self._local_part(sender, now), domain)
        return made if _fits(made) else None

    def shortened(self, sender: Address, domain: str, *, now: float) -> tuple[Address, str]:
        """The sender rewritten into `domain`, and the token under which it must be stored. Raises SrsError."""
        digest = hmac.digest(self.secrets.all()[0], b"token " + str(sender).encode(), "sha256")
        token = base64.b32encode(digest[:_TOKEN_OCTETS]).decode("ascii")
        made = Address(self._srs0(_STORED, token, now), domain)
        if not _fits(made):
            raise SrsError(f"{domain} is too long for an address of its own")
        return made, token

    def reverse(self, address: Address, *, now: float) -> Address | Stored:
        """Where mail for an SRS address goes. Raises SrsError."""
        found = _SRS.match(address.local_part)
        if not found:
            raise SrsError("not an SRS address")
        rest = address.local_part[found.end() :]
        if found[1] == "1":
            tag, host, user = _split(rest, 3)
            self._verify(tag, _joined(host, user), _bordered(host, user))
            return Address("SRS0" + user, _domain(host))
        tag, day, host, user = _split(rest, 4)
        self._verify(tag, _joined(day, host, user))
        age_days = (int(now // _DAY_S) - _day_number(day)) % _DAYS
        if age_days > self._lifetime_days:
            raise SrsError("the SRS address has expired")
        return Stored(user.upper()) if host == _STORED else Address(user, _domain(host))

    def _local_part(self, sender: Address, now: float) -> str:
        found = _SRS.match(sender.local_part)
        if found is None:
            return self._srs0(sender.ascii_domain, sender.local_part, now)
        rest = sender.local_part[found.end() :]
        if found[1] == "0":
            # its separator stays: it belongs to the address that the first forwarder will get back
            host, user = sender.ascii_domain, found[2] + rest
            return self._srs1(host, user, _joined(host, user))
        parts = rest.split("=", 2)
        if len(parts) < 3:
            return self._srs0(sender.ascii_domain, sender.local_part, now)  # it only looks like one
        return self._srs1(parts[1], parts[2], _bordered(parts[1], parts[2]))

    def _srs0(self, host: str, user: str, now: float) -> str:
        number = int(now // _DAY_S) % _DAYS
        day = _BASE32[number >> 5] + _BASE32[number & 31]
        return f"SRS0={_tag(self.secrets.all()[0], _joined(day, host, user))}={day}={host}={user}"

    def _srs1(self, host: str, user: str, text: bytes) -> str:
        return f"SRS1={_tag(self.secrets.all()[0], text)}={host}={user}"

    def _verify(self, tag: str, *texts: bytes) -> None:
        """The tag must be that of one of the texts, under one of the secrets. Raises SrsError."""
        given = tag.lower().encode("utf-8")
        right = [_tag(key, text).lower().encode() for key in self.secrets.all() for text in texts]
        if not any(hmac.compare_digest(given, each) for each in right):
            raise SrsError("the SRS address has a wrong tag")


def _split(text: str, count: int) -> list[str]:
    parts = text.split("=", count - 1)
    if len(parts) != count or not all(parts):
        raise SrsError("not a whole SRS address")
    return parts


def _joined(*parts: str) -> bytes:
    """What Mail::SRS and postsrsd make a tag of."""
    # local parts of other case lead to the same mailbox for all that is known, and get smashed on the way
    return "".join(parts).lower().encode("utf-8", "surrogateescape")


def _bordered(*parts: str) -> bytes:
    """Never the same as `_joined` of anything: no address has a NUL."""
    return b"srs1\0" + "\0".join(parts).lower().encode("utf-8", "surrogateescape")


def _tag(key: bytes, text: bytes) -> str:
    return base64.b64encode(hmac.digest(key, text, "sha1")).decode("ascii")[:_TAG_LETTERS]


def _day_number(day: str) -> int:
    high, low = (_BASE32.find(letter) for letter in day.upper()) if len(day) == 2 else (-1, -1)
    if high < 0 or low < 0:
        raise SrsError("the SRS address has no day")
    return high * 32 + low


def _domain(text: str) -> str:
    try:
        return parse_domain(text)
    except AddressError as e:
        raise SrsError(f"the SRS address has no domain: {e}") from None


def _fits(address: Address) -> bool:
    """Within the limits of RFC 5321 s. 4.5.3.1, quotes and angle brackets counted."""
    text = str(address)
    local_octets = len(text) - len(address.domain.encode()) - 1 if text.isascii() else MAX_LOCAL_PART_OCTETS + 1
    return local_octets <= MAX_LOCAL_PART_OCTETS and len(text) + 2 <= MAX_PATH_OCTETS


class Secrets:
    """The key file. Every process has it open for itself; whoever needs it first makes it.

    With the name of a `credential` it is systemd's to make, and to keep from others' eyes."""

    def __init__(self, path: Path, *, credential: str = "") -> None:
        self.path = path
        self._credential = credential
        self._stamp: tuple[int, int, int] = (0, 0, 0)
        self._keys: tuple[bytes, ...] = ()

    def all(self) -> tuple[bytes, ...]:
        """All secrets, the one that makes tags first. Raises OSError."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            if self._keys:
                return self._keys  # taken away while we run: what is remembered still leads back
            if self._credential:
                said = no_credential(self._credential, "No such file or directory")
                raise SecretUnavailable(f'[forwarding] srs_secret_credential = "{self._credential}": {said}') from None
            self._make()
            found = self.path.stat()
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp != self._stamp:
            lines = (line.strip() for line in self.path.read_bytes().splitlines())
            keys = tuple(line for line in lines if line and not line.startswith(b"#"))
            if not keys:
                raise OSError(f"{self.path} holds no secret")
            self._keys, self._stamp = keys, stamp
        return self._keys

    def is_private(self) -> bool:
        """May nobody but the owner read it? True when it is not there, or not ours to say."""
        if self._credential:
            return True
        try:
            return not self.path.stat().st_mode & 0o077
        except OSError:
            return True

    def _make(self) -> None:
        """Write it so that it is there whole or not at all, and once, whoever else does so now."""
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(secrets.token_hex(hashlib.sha256().digest_size).encode("ascii") + b"\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, self.path)
        finally:
            temporary.unlink()
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
